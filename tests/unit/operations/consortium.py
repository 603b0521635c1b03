"""What tests of consortium folders have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from operations.folders import Invitation
from operations.site import Site, Work, make_site

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def enrolled(folder: Path, name: str, invitation: Invitation) -> Site:
    return make_site(folder / name, name, invitation, work=Work(), port=9100)


def request_of(site: Site) -> bytes:
    return (site.folder / "request.json").read_bytes()
