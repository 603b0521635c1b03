"""``fedge init``: a plan or an experiment to start from, proposed from rows and a base."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedge.plan_files import write_new, write_plan
from fedge.plans import Base, Json, plan_to_start_from, read_manifest
from protocol.decoder_manifest import WritingManifest
from protocol.manifest import DOCUMENTS
from protocol.media import MEDIA
from protocol.plan import plan_from
from protocol.tasks.classification import Classification
from simulations.columns import read_columns_of


def init(
    out: Annotated[
        Path | None,
        typer.Option("--out", help="file to write, plan.toml without it; must not exist yet"),
    ] = None,
    base: Base = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="rows of a site; with --base: the plan is made for them"),
    ] = None,
    experiment: Annotated[
        Path | None,
        typer.Option(
            "--experiment",
            help="rows; an experiment over them is proposed instead, for --base where it is given",
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="with --experiment: rows to test on")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented plan with every key, its meaning and its default; or propose an experiment."""
    if experiment is not None:
        if data is not None:
            raise typer.BadParameter("--experiment names the rows already; leave --data out")
        _init_experiment(experiment, test, base, out or Path("experiment.toml"), as_json)
        return
    if test is not None:
        raise typer.BadParameter("--test belongs to --experiment")
    if data is not None and base is None:
        raise typer.BadParameter("--data needs --base: what can be learnt of rows hangs on it")
    fingerprint, kind = "0" * 64, _kind_of(base)
    if base is not None:
        fingerprint = read_manifest(base).fingerprint
    out = out or Path("plan.toml")
    if base is None or data is None:
        write_plan(out, plan_to_start_from(fingerprint, kind))
        body: dict[str, Any] = {}
        left = f"labels, {', '.join(read_columns_of(kind))} and label of [task], size and quorum of [cohort]"
    else:
        document, body = _planned(data, base)
        write_plan(out, plan_from(document, source="the proposed plan"))
        left = "size and quorum of [cohort]"
    if as_json:
        typer.echo(json.dumps(body | {"plan": str(out), "base_fingerprint": fingerprint}))
        return
    _say(
        *(_lines(data, body, site=True) if data else []),
        f"wrote {out}; next: set {left},\nthen `fedge plan check {out} --base {base or 'BASE'}`",
    )


def _kind_of(base: Path | None) -> str:
    """The task whose rows a base reads, of those with labels."""
    task = read_manifest(base).task if base is not None else ""
    return task if task in (*MEDIA, DOCUMENTS) else Classification.KIND


def _planned(data: Path, base: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A plan for a site's rows, and what was seen of them, both as documents. Raises DataError."""
    manifest = read_manifest(base)
    name = "my-plan"
    if isinstance(manifest, WritingManifest):
        from simulations.text_proposal import propose_texts

        texts = propose_texts(data, base, site=True)
        return texts.plan(name, manifest.fingerprint), asdict(texts)
    from simulations.proposal import propose

    seen = propose(data, kind=_kind_of(base))
    task = {"labels": seen.labels, **seen.columns}
    return {"name": name, "base": {"fingerprint": manifest.fingerprint}, "task": task}, asdict(seen)


def _init_experiment(
    rows: Path, test: Path | None, base: Path | None, out: Path, as_json: bool
) -> None:
    if base is not None and isinstance(read_manifest(base), WritingManifest):
        from simulations.text_experiment import render_texts
        from simulations.text_proposal import propose_texts

        texts = propose_texts(rows, base, test)
        text, body = render_texts(texts, rows, test, out, base=base), asdict(texts)
    else:
        from simulations.proposal import propose, render

        seen = propose(rows, test, kind=_kind_of(base))
        text, body = render(seen, rows, test, out, base=base), asdict(seen)
    write_new(out, text)
    if as_json:
        typer.echo(json.dumps(body | {"experiment": str(out)}))
        return
    look = "look at it" if base else "look at it, set base.source"
    _say(*_lines(rows, body), f"wrote {out}; next: {look}, then `fedge simulate {out}`")


def _lines(rows: Path, body: dict[str, Any], *, site: bool = False) -> list[str]:
    """What was seen in the rows, for people."""
    column = body["column"]
    owners = f"one per value of `{column}`" if column else "no column says whose"
    devices = "" if site else f", {body['clients']} devices ({owners})"
    if "labels" in body:
        read = (
            MEDIA[body["kind"]].noun if body["kind"] in MEDIA else read_columns_of(body["kind"])[0]
        )
        return [
            f"{rows}: {body['rows']} rows; {read} `{body['text']}`, label `{body['label']}` "
            f"({len(body['labels'])} labels){devices}"
        ]
    task = body["task"]
    named = ", ".join(f"{key} `{value}`" for key, value in task.items() if key != "kind")
    lengths = f"longest of {body['measured']} rows: {body['longest']} tokens, {body['cut']} are cut"
    return [f"{rows}: {body['rows']} rows; {task['kind']}, {named}; {lengths}{devices}"]


def _say(*lines: str) -> None:
    Console(markup=False, emoji=False).print("\n".join(lines), soft_wrap=True)
