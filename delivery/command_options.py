"""What the commands of ``fedge deploy`` share: options, the repository and keys that they name, output."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from delivery.keys import KeyRing
    from delivery.repository import Repository

Repo = Annotated[Path, typer.Argument(metavar="REPO", help="the repository's folder")]
RepoOption = Annotated[Path, typer.Option("--repo", help="the repository's folder")]
Keys = Annotated[list[Path], typer.Option("--keys", help="folder with keys; may be given again")]
Reports = Annotated[
    Path | None, typer.Option("--reports", help="folder where devices' reports are collected")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Before = Annotated[
    list[Path] | None,
    typer.Option("--before", help="the run this one goes on from; again for the one before it"),
]
Despite = Annotated[
    bool,
    typer.Option("--despite-withdrawal", help="also what holds updates of a site that withdrew"),
]
ReleaseArgument = Annotated[str, typer.Argument(metavar="RELEASE", help="such as home-r0007")]


def opened(repo: Path) -> Repository:
    """The repository in a folder. Raises DeliveryError."""
    from delivery.repository import Repository

    return Repository(repo)


def key_ring(keys: list[Path]) -> KeyRing:
    """All keys of these folders. Raises DeliveryError."""
    from delivery.keys import read_keys

    return read_keys(keys)


def utc_now() -> datetime:
    """The time that is signed."""
    return datetime.now(UTC)


def print_json(value: Any) -> None:
    """For programs."""
    typer.echo(json.dumps(value, indent=1))


def print_either(document: Any, line: str, as_json: bool) -> None:
    """The same as JSON and for people."""
    typer.echo(json.dumps(document, indent=1) if as_json else line)
