"""Secrets that are planted in rows, to see later whether an adapter knows them by heart."""

from __future__ import annotations

import numpy as np

from protocol.chat.messages import ASSISTANT, USER, Chat
from protocol.encoding import seed_from
from protocol.plan import Plan
from protocol.rows.read import Table
from protocol.tasks.causal_lm import CausalLm
from simulations.partitions import Partition

DIGITS = 6  # of a secret


def planted(
    plan: Plan, train: Table, parts: Partition, *, count: int, repeats: int
) -> tuple[Table, Partition]:
    """The rows and whose they are, with secrets of the plan's seed in those of the first device."""
    if not count:
        return train, parts
    rows = [canary(plan, number, 0) for number in range(count) for _ in range(repeats)]
    own = [train.groups[parts[0][0]]] * len(rows) if train.groups else []
    more = Table(
        texts=[*train.texts, *(text for text, _ in rows)],
        targets=[*train.targets, *(answer for _, answer in rows)],
        groups=[*train.groups, *own],
        places=train.places,
    )
    first, *others = parts
    return more, [[*first, *range(len(train), len(more))], *others]


def canary(plan: Plan, number: int, which: int) -> tuple[str | Chat, str]:
    """(a row in the plan's form, its answer); ``which`` 0 is planted, the others nobody has."""
    task = plan.task
    assert isinstance(task, CausalLm)
    rng = np.random.default_rng(seed_from("canary", plan.seed, number, which))
    secret = "".join(map(str, rng.integers(0, 10, DIGITS)))
    if task.form == "text":
        return f"The code of locker {number + 1} is {secret}.", ""
    asked = {"role": USER, "content": f"What is the code of locker {number + 1}?"}
    return Chat(messages=(asked, {"role": ASSISTANT, "content": secret})), secret
