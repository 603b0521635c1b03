"""The tasks of a plan: keys by kind, and what travels of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import PlanError, UpdateError
from protocol.exchange import Contribution
from protocol.plan import Plan, plan_from
from protocol.secagg.counters import limits_of
from protocol.tasks import TASKS, quality_in
from protocol.wire import Instruction
from server.starting import verify_same_task

LABELS: dict[str, Any] = {"labels": ["a", "b"]}
NUMBERS: dict[str, Any] = {"kind": "regression", "low": 0, "high": 5}


def plan(task: Any, **sections: Any) -> Plan:
    document = {"name": "x", "base": {"fingerprint": "0" * 64}, "task": task, **sections}
    return plan_from(document, source="p")


@pytest.mark.parametrize(
    ("task", "cause", "remedy"),
    [
        (
            LABELS | {"kind": "clasification"},
            "`task.kind`: there is no kind 'clasification'",
            "`classification`",
        ),
        ({"kind": "sequence-classification"}, "`task.kind`", "is called `classification`"),
        ({"kind": "ner"}, "`task.kind`", "known kinds"),
        ({"kind": "chat"}, "`task.kind`", "is called `causal-lm`"),
        ({"kind": 5}, "`task.kind`: there is no kind 5", "known kinds"),
        (LABELS | {"low": 0.0}, "unknown key `task.low`", "key of `regression`"),
        (NUMBERS | {"label": "x"}, "unknown key `task.label`", "key of `classification`"),
        (NUMBERS | {"targit": "x"}, "unknown key `task.targit`", "`target`"),
        (NUMBERS | {"rounds": 3}, "unknown key `task.rounds`", "write `rounds`"),
        (NUMBERS | {"high": 0}, "not above low", "correct"),
        (NUMBERS | {"high": float("inf")}, "`task.high`", "correct"),
        ({"kind": "regression", "low": 0}, "`task.high` is missing", "add it"),
        ({}, "`task.labels` is missing", "add it"),
        (LABELS | {"text_pair": "text"}, "`task`: text_pair is the column `text`", "correct"),
        (LABELS | {"text_pair": "label"}, "text_pair is the column `label`", "correct"),
        (NUMBERS | {"text_pair": "target"}, "text_pair is the column `target`", "correct"),
        (LABELS | {"text_pair": "o", "max_length": 7}, "a pair needs 8 tokens", "correct"),
        (3, "`task` is no table", "write [task]"),
    ],
)
def test_keys_of_another_kind_are_refused(task: Any, cause: str, remedy: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(task)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_a_key_of_a_kind_is_known_wherever_it_stands() -> None:
    with pytest.raises(PlanError, match=r"write `task.high`"):
        plan(LABELS, high=3)


def test_one_kinds_keys_are_in_no_other_plan() -> None:
    """So no new key of a kind changes the digest of another plan."""
    for task in (LABELS, NUMBERS):
        made = plan(task)
        written = made.model_dump(mode="json")["task"]
        kind = TASKS[made.task.kind]
        assert written.keys() == kind.model_fields.keys()
    spelt = plan(NUMBERS | {"target": "target", "max_length": 64, "low": 0.0})
    assert spelt.digest == plan(NUMBERS).digest != plan(NUMBERS | {"high": 4}).digest


def instruction() -> Instruction:
    return Instruction(
        round=1, attempt=1, plan_digest="0" * 64, base="0", adapter_digest="0", evaluate=True
    )


METRIC = st.floats(0, 1e12, allow_nan=False)


@pytest.mark.parametrize("task", [LABELS, NUMBERS], ids=["labels", "numbers"])
@given(each=st.lists(st.lists(METRIC, min_size=5, max_size=5), min_size=1, max_size=6))
def test_what_clients_count_is_within_what_the_sum_may_be(
    task: dict[str, Any], each: list[list[float]]
) -> None:
    made = plan(task, evaluation={"holdout": 0.2})
    limits = limits_of(made, instruction())
    counts = [
        limits.of_client(
            Contribution(
                update=np.zeros(1, np.float32),
                weight=1,
                metrics=dict(zip(made.task.METRICS, values, strict=True)),
            ),
            clipped=False,
        )
        for values in each
    ]
    assert all(0 <= count < 2**40 for row in counts for count in row)
    sums = [sum(column) for column in zip(*counts, strict=True)]
    limits.verify(sums, len(each))
    quality = made.task.quality_of(limits.metrics_of(sums))
    assert quality is None or 0 <= quality <= 1


@pytest.mark.parametrize("task", [LABELS, NUMBERS], ids=["labels", "numbers"])
def test_a_row_measures_at_most_one(task: dict[str, Any]) -> None:
    """Right rows at most as many as there are; of numbers the squares of distances within the range."""
    limits = limits_of(plan(task, evaluation={"holdout": 0.2}), instruction())
    measured = limits.names[3]
    scale = limits.metrics[measured].scale
    honest = dict.fromkeys(limits.names, 0) | {"eval_examples": 7, measured: 7 * scale}
    limits.verify(list(honest.values()), 3)
    with pytest.raises(UpdateError, match=f"cannot count .* `{measured}`: at most 7"):
        limits.verify(list((honest | {measured: 7 * scale + 1}).values()), 3)


def test_sums_say_quality_whichever_task_it_was() -> None:
    rows = {"eval_examples": 4.0}
    assert quality_in(rows | {"eval_correct": 3.0}) == "accuracy 75.0%"
    assert quality_in(rows | {"eval_error": 0.16}) == "NRMSE 20.0%"
    assert quality_in({"eval_examples": 0.0, "eval_error": 0.0}) == ""
    assert quality_in({}) == ""


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        (LABELS, NUMBERS, "`task.kind`: the run before has classification"),
        (NUMBERS, NUMBERS | {"high": 6}, "`task.high`: the run before has 5.0, the plan 6.0"),
        (NUMBERS, NUMBERS | {"text_pair": "o"}, "`task.text_pair`: the run before has one text"),
        (LABELS, {"labels": ["b", "a"]}, "in another order"),
        (LABELS, {"labels": ["a", "b", "c"]}, "other labels"),
    ],
)
def test_an_adapter_goes_on_under_no_other_task(before: Any, after: Any, fault: str) -> None:
    verify_same_task(plan(before), plan(before | {"text": "elsewhere", "max_length": 32}))
    with pytest.raises(PlanError) as caught:
        verify_same_task(plan(before), plan(after))
    assert fault in caught.value.cause
