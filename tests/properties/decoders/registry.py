"""Every decoder of what others have written, by module and name: the houses' tables in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.properties.decoders.client import client
from tests.properties.decoders.delivery import delivery
from tests.properties.decoders.device import device
from tests.properties.decoders.documents import documents
from tests.properties.decoders.drawings import drawings
from tests.properties.decoders.enrolment import enrolment
from tests.properties.decoders.images import images
from tests.properties.decoders.log import log
from tests.properties.decoders.messages import messages
from tests.properties.decoders.operations import operations
from tests.properties.decoders.pages import pages
from tests.properties.decoders.rows import Decoder
from tests.properties.decoders.sounds import sounds
from tests.properties.decoders.world import World

TABLES = (
    *(documents, log, messages, enrolment, delivery, device, client, images, sounds),
    *(pages, drawings, operations),
)


def registry(world: World) -> dict[str, Decoder]:
    """All rows of one run."""
    return {name: row for table in TABLES for name, row in table(world).items()}


def of_paths(world: World) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Those that open a path."""
    opening = {name: decoder.opens for name, decoder in registry(world).items()}
    return {name: opens for name, opens in opening.items() if opens is not None}
