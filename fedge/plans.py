"""``fedge init`` and ``fedge plan``: write a plan, check it, forecast it, list the rules."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.errors import ArtefactError, PlanError
from protocol.forecast import Forecast
from protocol.manifest import MANIFEST_NAME, Manifest, parse_manifest
from protocol.plan import Plan, Section, plan_from_text
from protocol.regular_files import read_regular_text, read_settings_text
from protocol.rules import RULES
from simulations.progress import duration

if TYPE_CHECKING:
    from fedge.checks import Checked

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Check a plan, forecast what it costs, list the rules.",
)
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]
Base = Annotated[Path | None, typer.Option("--base", help="folder of the base the plan names")]
STYLE = {"error": "red", "warning": "yellow", "note": "dim"}


def init(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file to write, plan.toml without it; must not exist yet"),
    ] = None,
    base: Base = None,
    experiment: Annotated[
        Path | None,
        typer.Option("--experiment", help="rows; an experiment over them is proposed instead"),
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="with --experiment: rows to test on")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented plan with every key, its meaning and its default; or propose an experiment."""
    if experiment is not None:
        _init_experiment(experiment, test, out or Path("experiment.toml"), as_json)
        return
    if test is not None:
        raise typer.BadParameter("--test belongs to --experiment")
    fingerprint = read_manifest(base).fingerprint if base else "0" * 64
    out = out or Path("plan.toml")
    _write_new(out, commented_plan(fingerprint))
    if as_json:
        typer.echo(json.dumps({"plan": str(out), "base_fingerprint": fingerprint}))
    else:
        Console(markup=False, emoji=False).print(
            f"wrote {out}; next: set labels, text and label of [task], size and quorum of [cohort],\n"
            f"then `fedge plan check {out} --base BASE`"
        )


def _init_experiment(rows: Path, test: Path | None, out: Path, as_json: bool) -> None:
    from simulations.proposal import propose, render

    found = propose(rows, test)
    _write_new(out, render(found, rows, test, out))
    if as_json:
        body = asdict(found) | {"experiment": str(out)}
        typer.echo(json.dumps(body))
        return
    devices = f"one per value of `{found.column}`" if found.column else "no column says whose"
    Console(markup=False, emoji=False).print(
        f"{rows}: {found.rows} rows; text `{found.text}`, label `{found.label}` "
        f"({len(found.labels)} labels), {found.clients} devices ({devices})\n"
        f"wrote {out}; next: look at it, set base.source, then `fedge simulate {out}`",
        soft_wrap=True,
    )


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ArtefactError(f"{path} exists already", "choose another --out or remove it") from None
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be written: {error.strerror}", "choose another --out"
        ) from None


def commented_plan(fingerprint: str) -> str:
    """A plan's text: made from the model itself, so that it cannot fall behind it."""
    lines = ["# A plan for fedge: everything the parties of a run must agree on.", "format = 1"]
    given: dict[str, Any] = {
        "name": "my-plan",
        "base.fingerprint": fingerprint,
        "task.labels": ["no", "yes"],
    }
    for key in ("name", "seed", "rounds"):
        lines.append(f"{key} = {_toml(given.get(key, Plan.model_fields[key].default))}")
    for name, field in Plan.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, Section)):
            continue
        lines += ["", f"# {(model.__doc__ or '').strip().splitlines()[0]}", f"[{name}]"]
        for key, inner in model.model_fields.items():
            value = given.get(f"{name}.{key}", inner.default)
            comment = f"  # {inner.description}" if inner.description else ""
            lines.append(f"{key} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


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
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="tokens per row")] = 16,
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
def rules(as_json: Json = False) -> None:
    """The aggregation rules and what each promises and demands."""
    if as_json:
        rows = [
            asdict(rule) | {"phases": [sorted(phase) for phase in rule.phases]}
            for rule in RULES.values()
        ]
        typer.echo(json.dumps(rows))
        return
    table = Table("rule", "trains", "needs", "exact", "mixed ranks", "what it does")
    for rule in RULES.values():
        phases = " then ".join("+".join(sorted(phase)) for phase in rule.phases)
        table.add_row(
            rule.name,
            phases,
            rule.needs,
            "yes" if rule.exact else "no",
            "yes" if rule.mixed_ranks else "no",
            f"{rule.summary} ({rule.source})",
        )
    Console(markup=False, emoji=False).print(table)


@app.command()
def keys(as_json: Json = False) -> None:
    """Every key of an experiment and of a plan: values, default, meaning; as Markdown."""
    from simulations.keys import experiment_keys, keys_document

    rows = experiment_keys()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
    else:
        typer.echo(keys_document(rows), nl=False)


def read_manifest(folder: Path) -> Manifest:
    """A base's manifest. Raises ArtefactError."""
    path = folder / MANIFEST_NAME
    try:
        return parse_manifest(read_regular_text(path), source=str(path))
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
    console = Console(markup=False, emoji=False)
    verdict = ("may be run", "green") if checked.legal else ("must not be run", "red")
    digest = checked.to_dict()["digest"]
    known = f"; digest {digest[:16]}…" if digest else ""
    console.print(Text.assemble(f"{source}: ", verdict, known), soft_wrap=True)
    for finding in checked.findings:
        line = Text(finding.line)
        line.stylize(STYLE[finding.severity], 0, len(finding.severity))
        console.print(line, soft_wrap=True)
    if checked.cost is not None:
        _print_cost(console, checked.cost)
    if checked.seconds is not None:
        table = Table(title="the simulation, by steps timed here", show_header=False)
        for part, seconds in checked.seconds.items():
            table.add_row(part, duration(seconds))
        table.add_row("in all", duration(sum(checked.seconds.values())))
        console.print(table)


def _print_cost(console: Console, cost: Forecast) -> None:
    table = Table(title="forecast", show_header=False)
    for key, value in cost.to_dict().items():
        if value is None:
            continue
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{name}: {number:,}" for name, number in value.items())
        elif isinstance(value, float):
            shown = f"{value:,.2f}" if value >= 0.1 else f"{value:.1g}"
        else:
            shown = f"{value:,}"
        table.add_row(key.replace("_", " "), shown)
    console.print(table)
