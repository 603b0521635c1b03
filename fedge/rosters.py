"""``fedge roster``: who may take part, by name and public key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import PlanError
from protocol.secagg.roster import parse_roster, render_roster
from storage.regular import read_settings_text
from storage.whole import write_whole

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Who may take part in secret sums."
)
File = Annotated[Path, typer.Argument(help="the roster, a JSON file")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def add(
    file: File,
    name: Annotated[str, typer.Argument(help="the site's name")],
    key: Annotated[str, typer.Argument(help="its public key, 64 hex digits")],
    as_json: Json = False,
) -> None:
    """Admit a site; makes the file when there is none."""
    known = read(file) if file.exists() else {}
    if name in known:
        raise PlanError(f"{file}: {name} is listed already", "remove it first")
    listed = {one: value.hex() for one, value in known.items()} | {name: key}
    # Parsed as anybody else will: a bad key or a second name for one key is refused here.
    roster = parse_roster(json.dumps({"clients": listed}), source=str(file))
    write(file, roster)
    _say(file, roster, as_json)


@app.command()
def remove(
    file: File, name: Annotated[str, typer.Argument(help="the site's name")], as_json: Json = False
) -> None:
    """Take a site out."""
    roster = read(file)
    if roster.pop(name, None) is None:
        raise PlanError(f"{file}: there is no {name}", f"it lists {', '.join(sorted(roster))}")
    if not roster:
        raise PlanError(f"{file}: {name} is the last one", "remove the file instead")
    write(file, roster)
    _say(file, roster, as_json)


def read(file: Path) -> dict[str, bytes]:
    """Public keys by name. Raises PlanError."""
    try:
        return parse_roster(read_settings_text(file), source=str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{file}: cannot be read ({type(error).__name__})", "check the path"
        ) from None


def write(file: Path, roster: dict[str, bytes]) -> None:
    """Replace the file as a whole. Raises PlanError."""
    try:
        write_whole(file, render_roster(roster).encode())
    except OSError as error:
        raise PlanError(
            f"{file}: cannot be written: {error.strerror}", "check the folder"
        ) from None


def _say(file: Path, roster: dict[str, bytes], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"roster": str(file), "clients": sorted(roster)}))
    else:
        typer.echo(f"{file}: {len(roster)} clients; give the same file to everybody")
