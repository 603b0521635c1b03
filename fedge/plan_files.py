"""Plans as files and on the screen: commented TOML, and what is to be known about one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedge.forecast import Forecast
from protocol.documents import MOST_BYTES, MOST_TOML
from protocol.errors import ArtefactError, PlanError
from protocol.legality import Finding
from protocol.plan import Plan
from simulations.experiment_text import toml
from storage.whole import write_whole

LONGEST_LINE = 1000  # of a list, above which each of its values has a line
STYLE = {"error": "red", "warning": "yellow", "note": "dim"}


def plan_text(plan: Plan) -> str:
    """A plan as commented TOML: made from the model itself, so that it cannot fall behind it."""
    lines = ["# A plan for fedge: everything the parties of a run must agree on."]
    lines += [
        f"{key} = {_toml(getattr(plan, key))}" for key in ("format", "name", "seed", "rounds")
    ]
    for name in Plan.model_fields:
        if isinstance(table := getattr(plan, name), BaseModel):
            lines += _table_lines(name, table)
    return "\n".join(lines) + "\n"


def _table_lines(name: str, table: BaseModel) -> list[str]:
    """A table, and behind it those within it."""
    lines = ["", f"# {(table.__doc__ or '').strip().splitlines()[0]}", f"[{name}]"]
    inner: list[str] = []
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if value is None:
            continue
        if isinstance(value, BaseModel):
            inner += _table_lines(f"{name}.{key}", value)
            continue
        comment = f"  # {field.description}" if field.description else ""
        lines.append(f"{key} = {_toml(value)}{comment}")
    return lines + inner


def _toml(value: Any) -> str:
    text = toml(value)
    if isinstance(value, list) and len(text) > LONGEST_LINE:
        return "[\n" + "".join(f" {toml(each)},\n" for each in value) + "]"
    return text


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan to a file that is not there yet: JSON to a name that ends so, commented TOML else.

    Raises ArtefactError, and PlanError for a plan that no reader would take (P-1.7); then nothing is written.
    """
    if path.suffix == ".json":
        text, most, remedy = plan.render(), MOST_BYTES, "name fewer labels, or leave the head out"
    else:
        text, most = plan_text(plan), MOST_TOML
        remedy = f"write it as JSON, which may be longer: --out {path.with_suffix('.json')}"
    if (size := len(text.encode())) > most:
        raise PlanError(
            f"{path} would have {size:,} bytes, and no more than {most:,} of such a file are read",
            remedy,
        )
    write_new(path, text)


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet. Raises ArtefactError."""
    try:
        write_whole(path, text.encode(), new=True)
    except FileExistsError:
        raise ArtefactError(f"{path} exists already", "choose another --out or remove it") from None
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be written: {error.strerror}", "choose another --out"
        ) from None


def say_plan(
    out: Path,
    plan: Plan,
    findings: Sequence[Finding],
    *,
    as_json: bool,
    next_step: str = "",
    **more: Any,
) -> None:
    """What is to be known of a plan that was written to ``out``; ``more`` is for JSON alone.

    Raises typer.Exit with a PlanError's code where it may not be run.
    """
    legal = all(finding.severity != "error" for finding in findings)
    if as_json:
        body = {"plan": str(out), "digest": plan.digest, "legal": legal, **more}
        typer.echo(json.dumps(body | {"findings": [asdict(finding) for finding in findings]}))
    else:
        show_findings(out, plan.digest, legal=legal, findings=list(findings))
        if next_step:
            typer.echo(next_step)
    if not legal:
        raise typer.Exit(PlanError.exit_code)


def show_findings(
    source: Path | str, digest: str | None, *, legal: bool, findings: list[Finding]
) -> None:
    """Whether a plan may be run, and all that is to be known about it, for people."""
    console = Console(markup=False, emoji=False)
    verdict = ("may be run", "green") if legal else ("must not be run", "red")
    known = f"; digest {digest[:16]}…" if digest else ""
    console.print(Text.assemble(f"{source}: ", verdict, known), soft_wrap=True)
    for finding in findings:
        line = Text(finding.line)
        line.stylize(STYLE[finding.severity], 0, len(finding.severity))
        console.print(line, soft_wrap=True)


def show_cost(cost: Forecast) -> None:
    """A forecast as a table, for people."""
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
    Console(markup=False, emoji=False).print(table)
