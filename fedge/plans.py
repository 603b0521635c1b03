"""``fedge plan``: check a plan, forecast it, list its keys; with ``continue`` and ``head`` write another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedge.continuing import continue_run
from fedge.heads import name_head
from fedge.plan_files import show_cost, show_findings
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import MANIFEST_NAME
from protocol.manifests import AnyManifest, parse_any_manifest
from protocol.plan import Plan, plan_from, plan_from_text
from protocol.tasks.classification import Classification
from simulations.progress import duration
from storage.regular import read_regular_text, read_settings_text

if TYPE_CHECKING:
    from fedge.checks import Checked

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Check a plan, forecast what it costs, list its keys.",
)
app.command("continue")(continue_run)
app.command("head")(name_head)
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Base = Annotated[Path | None, typer.Option("--base", help="folder of the base the plan names")]


def plan_to_start_from(fingerprint: str, kind: str = Classification.KIND) -> Plan:
    """A plan of defaults, with a stand-in for what has none; ``kind``: of its task."""
    document = {
        "name": "my-plan",
        "base": {"fingerprint": fingerprint},
        "task": {"labels": ["no", "yes"], "kind": kind},
    }
    return plan_from(document, source="the plan to start from")


@app.command("check")
def check_command(
    plan: Annotated[
        str, typer.Argument(help="a plan, TOML or JSON; or an experiment, as for `fedge simulate`")
    ],
    base: Base = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="of an experiment: a.b=value")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="time a few steps here for the forecast")
    ] = False,
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="rows per client, for the forecast of a plan")
    ] = 200,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="tokens per row, of texts")] = 16,
    speed: Annotated[
        int, typer.Option("--speed", min=1, help="tokens a client trains per second")
    ] = 2000,
    as_json: Json = False,
) -> None:
    """Say whether a plan may be run, why not, and what it will cost. Exit code 3 when not."""
    from fedge.checks import Assumed, check_experiment, check_plan, is_experiment

    assumed = Assumed(rows=rows, tokens=tokens, speed=speed)
    if is_experiment(plan):
        checked = check_experiment(plan, overrides or [], assumed, base, measure=measure)
    else:
        if overrides:
            raise typer.BadParameter("--set is for experiments")
        parsed = read_plan(Path(plan))
        if measure and base is None:
            raise typer.BadParameter("--measure needs --base for a plan")
        manifest = read_manifest(base) if base else None
        checked = check_plan(parsed, manifest, assumed, base, measure=measure)
    if as_json:
        typer.echo(json.dumps(checked.to_dict()))
    else:
        _print(plan, checked)
    if not checked.legal:
        raise typer.Exit(PlanError.exit_code)


@app.command()
def keys(as_json: Json = False) -> None:
    """Every key of an experiment and of a plan: values, default, meaning; as Markdown."""
    from simulations.keys import experiment_keys, keys_document

    rows = experiment_keys()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    else:
        typer.echo(keys_document(rows), nl=False)


def read_manifest(folder: Path) -> AnyManifest:
    """A base's manifest. Raises ArtefactError."""
    path = folder / MANIFEST_NAME
    try:
        return parse_any_manifest(read_regular_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(
            f"{folder} is not a base: {MANIFEST_NAME} cannot be read",
            "name the folder that `fedge base build --out` wrote",
        ) from None


def read_plan(path: Path) -> Plan:
    """A plan in TOML or JSON. Raises PlanError."""
    try:
        text = read_settings_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path}: cannot be read ({type(error).__name__})", "`fedge init` writes a plan"
        ) from None
    return plan_from_text(text, source=str(path))


def _print(source: str, checked: Checked) -> None:
    digest = checked.to_dict()["digest"]
    show_findings(source, digest, legal=checked.legal, findings=checked.findings)
    if checked.cost is not None:
        show_cost(checked.cost)
    if checked.seconds is not None:
        table = Table(title="the simulation, by steps timed here", show_header=False)
        for part, seconds in checked.seconds.items():
            table.add_row(part, duration(seconds))
        table.add_row("in all", duration(sum(checked.seconds.values())))
        Console(markup=False, emoji=False).print(table)
