"""``fedge program``: derive a program from a base, or look at one. No torch is needed for either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protocol.errors import ArtefactError, PlanError

if TYPE_CHECKING:
    from base_model.programs.folder import Program
    from protocol.recipe import Recipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="What trains: derive it from a base, check it.",
)
Base = Annotated[Path, typer.Option("--base", help="folder of the base")]
PlanFile = Annotated[Path, typer.Option("--plan", help="the plan whose adapter is trained")]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


@app.command()
def build(
    base: Base,
    plan: PlanFile,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder to write; must not exist yet")
    ] = None,
    as_json: Json = False,
) -> None:
    """Derive the program of a plan; its digest is what `base.program` in the plan may name."""
    from base_model.files import writing
    from base_model.programs.folder import make_program, write_program

    recipe = _opened(base, plan)
    program = make_program(base, recipe)
    if out is not None:
        with writing(out):
            write_program(program, out)
    _show(program, as_json)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="folder of a program")],
    base: Base,
    plan: PlanFile,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="derive it again and compare bytes")
    ] = False,
    as_json: Json = False,
) -> None:
    """Files whole, graphs of known operators on this base, for the plan's adapter, and the plan's own."""
    from base_model.programs.folder import make_program, open_program, verify_named

    recipe = _opened(base, plan)
    program = open_program(folder, recipe)
    verify_named(program.document, recipe.plan)
    if rebuild:
        sets = [frozenset(e.parts) for e in program.document.graphs.values() if e.parts]
        again = make_program(base, recipe, sorted(sets, key=sorted))
        changed = [name for name, data in again.graphs.items() if program.graphs.get(name) != data]
        if changed or again.document != program.document:
            raise ArtefactError(
                f"{folder}: {changed[0] if changed else 'program.json'} is not what this base gives",
                "do not use it; or install the versions in constraints.txt and compare again",
            )
    _show(program, as_json, {"rebuilt": rebuild})


def _opened(base: Path, plan: Path) -> Recipe:
    from base_model.verify import verify_base
    from protocol.plan import plan_from_text
    from protocol.recipe import Recipe
    from storage.regular import read_settings_text

    try:
        agreed = plan_from_text(read_settings_text(plan), source=str(plan))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{plan}: cannot be read ({type(error).__name__})", "name a plan") from None
    manifest = verify_base(base)
    if manifest.fingerprint != agreed.base.fingerprint:
        raise ArtefactError(
            f"{base}: holds base {manifest.fingerprint[:12]}…, the plan names "
            f"{agreed.base.fingerprint[:12]}…",
            "name the plan's base",
        )
    return Recipe(plan=agreed, manifest=manifest)


def _show(program: Program, as_json: bool, more: dict[str, bool] | None = None) -> None:
    document = program.document
    sizes = {name: entry.bytes for name, entry in document.graphs.items()}
    facts = {"program": document.digest, "base": document.base, "graphs": sizes, **(more or {})}
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"program {document.digest}")
    typer.echo(f"   base {document.base}")
    for name, size in sizes.items():
        typer.echo(f"        {name}: {size:,} bytes")
    if (more or {}).get("rebuilt"):
        typer.echo("derived again: the same bytes")
