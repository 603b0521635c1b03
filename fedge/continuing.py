"""``fedge plan continue``: the plan of more rounds, from a run that has some."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedge.plan_files import say_plan, write_plan
from protocol.encoding import vector_digest
from protocol.errors import PlanError
from protocol.legality import Finding, check
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.step.state import initial_state
from protocol.transparency.note import parse_key

if TYPE_CHECKING:
    from audit.published import Run
    from protocol.start import Start

NUMBERED = re.compile(r"(.*)-([0-9]{1,6})")
LONGEST_NAME = 64


def continue_run(
    run: Annotated[
        Path, typer.Argument(help="a run, its last round is meant; or a round's adapter")
    ],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="how many more")],
    out: Annotated[Path, typer.Option("--out", help="file to write; must not exist yet")] = Path(
        "plan.toml"
    ),
    name: Annotated[
        str, typer.Option("--name", help="the run's; else the old one, counted up")
    ] = "",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="else the same; from round 0 the next one")
    ] = None,
    despite_withdrawal: Annotated[
        bool,
        typer.Option("--despite-withdrawal", help="also from what a site that withdrew is part of"),
    ] = False,
    earlier: Annotated[
        list[Path] | None,
        typer.Option("--before", help="the run RUN goes on from; again for the one before it"),
    ] = None,
    log: Annotated[
        str, typer.Option("--log", help="with witnesses: the verifier key of the new run's log")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable output")] = False,
) -> None:
    """Write a plan that goes on from a run's adapter: everybody agrees to it as to any other plan.

    All else is as in the run's own plan; change the file as you like. Round 0 is nobody's work: from there it
    begins anew as that run began, with another seed. Exit code 3 while it may not be run.
    """
    from audit.log_copy import Trust
    from audit.sources import Folder
    from audit.verify import load_run
    from server.starting import round_of

    folder = round_of(run)
    before = load_run(Folder(folder.parent.parent), Trust())
    line = [load_run(Folder(each), Trust()) for each in earlier or []]
    withdrawals = [*_withdrawals(before, int(folder.name), line, despite=despite_withdrawal)]
    start = _start(before, folder)
    next_seed = before.plan.seed + (start is None) if seed is None else seed
    document = _document(before, start, rounds=rounds, seed=next_seed, name=name, log=log)
    plan = plan_from(document, source="the plan that goes on")
    findings = [*check(plan, before.manifest), *withdrawals, *_said_of_round_0(plan, before)]
    write_plan(out, plan)
    say_plan(
        out,
        plan,
        findings,
        as_json=as_json,
        next_step=_next_step(start, out, folder),
        start=document["start"],
    )


def _document(
    before: Run, start: Start | None, *, rounds: int, seed: int, name: str, log: str
) -> dict[str, Any]:
    """The plan before with what is new. Raises PlanError where the run has witnesses and `log` is no key."""
    document = before.plan.model_dump(mode="json") | {
        "name": name or next_name(before.plan.name),
        "rounds": rounds,
        "seed": seed,
        "start": start and start.model_dump(mode="json"),
    }
    if before.plan.witnessed:
        document["audit"] |= {"log": _log_key(log, before.plan)}
    return document


def _start(before: Run, folder: Path) -> Start | None:
    """The adapter of a round as a start: of round 0 what that run itself started from, None without any.

    Raises PlanError while a sum of it is open.
    """
    from audit.continued import start_of
    from server.starting import sums_asked

    number = int(folder.name)
    start = start_of(before, number) if number else before.plan.start
    if start is not None:
        sums_asked(folder, start.adapter)  # raises while one is open
    return start


def _withdrawals(
    run: Run, number: int, earlier: Sequence[Run], *, despite: bool
) -> Iterator[Finding]:
    """Who withdrew and has updates in the adapter of round ``number``, in its run and in those before.

    Raises PlanError for the run's own, unless ``despite``; ProofError for a run that is not one before.
    """
    from audit.ancestry import not_named, touching

    own = [each.withdrawn for each in touching(run, number)]
    if own and not despite:
        raise PlanError(
            f"the adapter of round {number} holds updates of {own[0].client}, who withdrew "
            f"(leaf {own[0].leaf})",
            f"go on from round {min(one.before for one in own)}, the last without it (`fedge audit lineage "
            "RUN --site ID` says who can), or say --despite-withdrawal",
        )
    for each in touching(run, number, earlier):
        yield Finding(
            severity="warning",
            field="start",
            cause=f"round {each.number} of {each.origin}, which this comes from, holds updates of "
            f"{each.withdrawn.client}, who withdrew (leaf {each.withdrawn.leaf})",
            remedy="the gate refuses what comes of it: go on from an adapter without it, or know why not",
        )
    if missing := not_named(run, earlier):
        yield Finding(
            severity="warning",
            field="start",
            cause=f"nobody has looked whether a site withdrew from {missing} of the runs before",
            remedy="name each, the latest first: --before RUN",
        )


def _said_of_round_0(plan: Plan, before: Run) -> Iterator[Finding]:
    """A plan anew whose round 0 is the earlier run's all the same: sites would open a second sum of it."""
    if plan.start is not None:
        return
    recipe = Recipe(plan=plan, manifest=before.manifest)
    first = vector_digest(recipe.layout.flatten(initial_state(plan, before.manifest).adapter))
    if first == before.log.rounds[0].adapter.leaf.adapter_out:
        yield Finding(
            severity="warning",
            field="seed",
            cause="round 0 is the earlier run's: a sum of it over other sites shows nearly what their "
            "difference did",
            remedy="choose another seed; where the method begins alike for all, another [adapter]",
        )


def _next_step(start: Start | None, out: Path, folder: Path) -> str:
    if start is None:
        return f"begins anew\nnext: every client agrees to it, then `fedge run {out} …`"
    of = folder / "adapter"
    if folder.name == "0000":
        of = Path("RUN", "rounds", f"{start.round:04d}", "adapter")  # of that run's own start
    return (
        f"goes on from round {start.round} of {start.origin} ({start.rounds} rounds so far)\n"
        f"next: every client agrees to it, then `fedge run {out} --start {of} …`"
    )


def next_name(name: str) -> str:
    """The same with a number behind it, or the number counted up."""
    numbered = NUMBERED.fullmatch(name)
    stem, number = (numbered[1], int(numbered[2]) + 1) if numbered else (name, 2)
    return f"{stem[: LONGEST_NAME - 8]}-{number}"


def _log_key(given: str, before: Plan) -> str:
    """Of the new run's log. Raises PlanError, ProofError."""
    if not given or parse_key(given).name == before.audit.log.partition("+")[0]:
        raise PlanError(
            "the plan's witnesses know its run's log by name: another run has a log of its own",
            "make a key with another name: `fedge log new NAME --out FILE`, and give what it prints: --log",
        )
    return given
