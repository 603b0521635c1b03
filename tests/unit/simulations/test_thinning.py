"""A page of a run of any length has a bounded number of marks and rows, and the lines keep their peaks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.page import render
from simulations.plots import Line, bar_chart, line_chart
from simulations.report_audit import audit
from simulations.thinning import MOST_BARS, MOST_POINTS, MOST_ROWS, MOST_SQUARES, shown, thinned

MARK = re.compile(r"<(?:rect|circle|line|polyline|text|g)\b")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.integers(4, 50))
def test_thinned_lines_keep_ends_and_peaks(heights: list[float], most: int) -> None:
    points = [(float(x), y) for x, y in enumerate(heights)]
    kept = thinned(points, most=most)
    assert len(kept) <= most
    assert kept == sorted(set(kept))
    assert {*kept} <= {*points}
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    for extreme in (min, max):
        assert extreme(y for _, y in kept) == extreme(heights)


@given(st.integers(0, 5000), st.integers(2, 500))
def test_shown_rows_and_those_left_out_are_all(count: int, most: int) -> None:
    rows = list(range(count))
    first, left, last = shown(rows, most)
    assert len(first) + len(last) <= most
    assert [*first, *last] == [*rows[: len(first)], *rows[count - len(last) :]]
    assert len(first) + left + len(last) == count


@pytest.mark.parametrize("rounds", [1, 12, MOST_BARS, 1000, 20_000])
def test_marks_of_a_chart_are_bounded(rounds: int) -> None:
    xs = [float(number) for number in range(1, rounds + 1)]
    series = [(name, "c1", [float(number % 7 + 1) for number in range(rounds)]) for name in "abc"]
    bars = bar_chart("title", xs, series)
    assert len(MARK.findall(bars)) <= 3 * MOST_BARS + 60
    assert ("the mean of" in bars) == (rounds > MOST_BARS)
    line = line_chart("t", [Line(name="a", points=tuple((x, x % 5) for x in xs), css="c1")])
    assert len(MARK.findall(line)) <= 180
    (path,) = re.findall(r'points="([^"]*)"', line)
    assert len(path.split()) <= MOST_POINTS


def test_bars_of_several_rounds_are_their_means() -> None:
    rounds = 4 * MOST_BARS
    heights = [float(number % 4) for number in range(rounds)]
    bars = bar_chart("t", [float(n) for n in range(rounds)], [("a", "c1", heights)])
    assert (
        len(set(re.findall(r'class="bar c1"[^>]* height="([0-9.]+)"', bars))) <= 2
    )  # and the legend's


@pytest.mark.parametrize("rounds", [5, 1000])
def test_the_worst_verdict_of_several_rounds_is_the_one_that_shows(rounds: int) -> None:
    outcomes = [
        {
            "round": number,
            "verdict": "failed" if number == rounds - 2 else "ok",
            "clients": 3,
            "verified": [],
            "unverified": [],
            "faults": [],
        }
        for number in range(rounds)
    ]
    report = {
        "rounds": outcomes,
        "verdict": "failed",
        **{key: [] for key in ("unverified", "assumed", "faults", "audits", "complaints")},
        **dict.fromkeys(("base", "plan", "origin", "root"), "x"),
        "size": 1,
    }
    found = audit(report, {"name": "p"}, [], None, None)
    assert found is not None
    assert len(found["squares"]) <= MOST_SQUARES
    assert [square["css"] for square in found["squares"]].count("r0") == 1


def test_a_table_of_thousands_of_rows_says_how_many_it_leaves_out() -> None:
    rows = [[number, "x"] for number in range(3 * MOST_ROWS)]
    page = render("clients.html", column=None, head=["a", "b"], rows=rows, served="")
    assert page.count("<tr>") == MOST_ROWS + 2
    assert f"{2 * MOST_ROWS:,} rows between these are in the run" in page
