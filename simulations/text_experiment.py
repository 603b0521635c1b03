"""The text of a proposed experiment for a base that writes, each choice with its reason."""

from __future__ import annotations

from pathlib import Path

from simulations.experiment_text import (
    cohort_lines,
    first_lines,
    population_lines,
    relative,
    toml,
)
from simulations.text_proposal import TextProposal

OTHERWISE = ['partition = "iid"  # no column says whose a row is']
MEANT = {
    "messages": "chats: what the assistant says is learnt",
    "prompt": "a prompt and its completion, which is learnt",
    "text": "of a text all is learnt",
}


def render_texts(
    proposal: TextProposal, path: Path, test: Path | None, out: Path, *, base: Path
) -> str:
    """The text of an experiment that lies at ``out``, on the base that was looked at."""
    folder = [f"folder = {toml(relative(base, out))}"]
    lines = [
        *first_lines(path, test, out, rows=proposal.rows, base=folder),
        *population_lines(proposal.clients, proposal.column, proposal.others, otherwise=OTHERWISE),
        "",
        "[yardsticks]",
        "alone = 2",
        "",
        "[plan]",
        "rounds = 10",
        "",
        "[plan.task]",
        *_task(proposal),
        "",
        "[plan.adapter]",
        f'targets = "query-value"  # here {", ".join(proposal.targets)}: {proposal.numbers:,} numbers; '
        '"all-linear" learns more, and sends more',
        "",
        "[plan.rule]",
        'name = "mean"  # gets furthest in few rounds; `fedge plan rules` has the others',
        *cohort_lines(proposal.clients),
        "",
        "[plan.local]",
        *(f"{key} = {toml(value)}" for key, value in proposal.local.items()),
    ]
    return "\n".join(lines) + "\n"


def said_of_lengths(proposal: TextProposal) -> str:
    """What was measured, for people."""
    cut = f"{proposal.cut} of {proposal.measured} rows are cut" if proposal.cut else "no row is cut"
    return f"{cut}, the longest has {proposal.longest} tokens"


def said_of_unanswered(proposal: TextProposal) -> str:
    """Why rows without an answer are refused, or left out."""
    if proposal.task["unanswered"] == "refuse":
        return "every row has an answer within max_length"
    if proposal.lost:
        return (
            f"of {proposal.lost} of {proposal.measured} rows nothing to learn is within max_length"
        )
    return "a row without an answer, and one of which none is within max_length, is left out"


def _task(proposal: TextProposal) -> list[str]:
    reasons = {
        "form": MEANT.get(proposal.task.get("form", ""), ""),
        "max_length": said_of_lengths(proposal),
        "unanswered": said_of_unanswered(proposal),
    }
    return [
        f"{key} = {toml(value)}" + (f"  # {reason}" if (reason := reasons.get(key)) else "")
        for key, value in proposal.task.items()
    ]
