"""``fedge plan head``: the plan whose head begins with vectors of the labels' names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedge.plan_files import say_plan, write_plan
from protocol.errors import PlanError
from protocol.legality import check
from protocol.plan import plan_from
from protocol.tasks.classification import Classification


def name_head(
    plan: Annotated[Path, typer.Argument(help="a plan, TOML or JSON, of a classification")],
    base: Annotated[Path, typer.Option("--base", help="folder of the base the plan names")],
    out: Annotated[Path, typer.Option("--out", help="file to write; must not exist yet")],
    fixed: Annotated[
        bool, typer.Option("--fixed", help="leave the vectors as they are, and send biases alone")
    ] = False,
    length: Annotated[
        float, typer.Option("--length", min=0.01, max=64.0, help="of a label's vector")
    ] = 4.0,
    rank: Annotated[
        int,
        typer.Option("--rank", min=0, help="directions in which it moves, and is sent; 0: all"),
    ] = 0,
    turns: Annotated[
        int,
        typer.Option("--turns", min=1, max=8, help="rounds that share the directions of --rank"),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Write the plan with a head that begins with the labels' names, as the base reads them.

    All else is as in the plan. Nobody needs the base again to know the head: the plan carries it.
    """
    from edge_runtime.label_vectors import named_head
    from fedge.plans import read_manifest, read_plan

    before, manifest = read_plan(plan), read_manifest(base)
    if not isinstance(before.task, Classification):
        raise PlanError(f"{plan}: only a classification has labels", "leave the head out")
    if before.base.fingerprint != manifest.fingerprint:
        raise PlanError(f"{plan}: it names another base", "name the plan's own with --base")
    head = named_head(
        base, before.task.labels, length=length, trained=not fixed, rank=rank, turns=turns
    )
    document = before.model_dump(mode="json") | {"head": head.model_dump(mode="json")}
    after = plan_from(document, source="the plan with a head")
    findings = check(after, manifest)
    for finding in findings:
        if finding.severity == "error" and finding.field.startswith("head."):
            raise PlanError(f"`{finding.field}`: {finding.cause}", finding.remedy)
    write_plan(out, after)
    say_plan(out, after, findings, as_json=as_json, labels=len(head.rows))
