"""What the masked counters of a round say, and when an operator hears of it."""

from __future__ import annotations

from typing import Any

import pytest

from server.counted import counted, warnings_of


def record(failures: float, clipped: float, summands: int = 10) -> dict[str, Any]:
    return {"weight": summands} | counted({"failures": failures, "clipped": clipped}, summands)


def test_shares_are_of_those_that_trained() -> None:
    assert record(2.0, 4.0) == {"weight": 10, "failures": 2, "clipped_share": 0.5}
    assert record(10.0, 0.0)["clipped_share"] == 0.0
    assert counted({}, 10) == {"failures": None, "clipped_share": None}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (record(0, 5), []),
        (record(0, 6), ["60% of the updates were cut"]),
        (record(1, 0), ["1 of 10 clients failed"]),
        (record(1, 9), ["1 of 10 clients failed", "100% of the updates were cut"]),
        ({"weight": 10, "failures": None, "clipped_share": None}, []),
    ],
)
def test_an_operator_hears_of_failures_and_of_a_clip_that_cuts_most(
    made: dict[str, Any], said: list[str]
) -> None:
    lines = list(warnings_of(made))
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))
