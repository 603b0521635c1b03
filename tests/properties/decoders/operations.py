"""Decoders, by house. Settings and folders of operators."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from audit.log_copy import Trust, read_log
from audit.sources import Folder
from operations.certificates import make_authority
from operations.coordinator import CoordinatorSettings
from operations.folders import Invitation, read_settings
from operations.overview import read_outcome
from operations.site import SiteSettings, read_invitation
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    of_file,
)
from tests.properties.decoders.world import World


def operations(world: World) -> dict[str, Decoder]:
    authority = make_authority("x", now=datetime.now(UTC))
    invitation = Invitation(
        name="home",
        address="h:1",
        authority=authority.certificate.decode(),
        operator="0" * 64,
    )
    site = b'format = 1\nname = "ward"\nport = 9100\n[work]\ndata = "d"\nmirrors = ["m"]\n'
    coordinator = b'format = 1\nname = "c"\n[public]\nhosts = ["h"]\nport = 9092\n'
    copied = Path(shutil.copytree(world.run, world.folder / "copy"))
    waiting = copied / "log/log.batch"
    batch = json_line({"start": len(world.entries), "entries": [], "checkpoint": world.note})
    return {
        "operations.folders:read_settings": Decoder(
            read=of_file(
                world.folder / "site.toml", lambda path: read_settings(path, SiteSettings)
            ),
            seeds=(site,),
        ),
        "operations.folders:read_settings, coordinator": Decoder(
            read=of_file(
                world.folder / "config.toml",
                lambda path: read_settings(path, CoordinatorSettings),
            ),
            seeds=(coordinator,),
        ),
        "operations.site:read_invitation": Decoder(
            read=of_file(world.folder / "invitation.json", read_invitation),
            seeds=(invitation.model_dump_json().encode(),),
        ),
        "operations.overview:read_outcome": Decoder(
            read=of_file(
                world.folder / "outcome/outcome.json", lambda path: read_outcome(path.parent)
            ),
            seeds=(b'{"finished": true}',),
        ),
        "audit.log_copy:read_log": Decoder(
            read=of_file(waiting, lambda _: read_log(Folder(copied), Trust())), seeds=(batch,)
        ),
    }
