"""Cells of a sweep: which there are, what each is called, and how the table is sorted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import PlanError
from simulations.plots import dot_chart
from simulations.sweep import Axis, axis_of, cells, combinations, outcome_of, table
from simulations.sweep_page import sweep_page

EXPERIMENT = """
name = "x"
base.source = "s"
data.generator = "home-commands"
plan.name = "x"
"""
RANKS, RATES = axis_of("plan.adapter.rank=2,4,8"), axis_of("plan.local.learning_rate=1e-4..1e-2")
RULES = axis_of("plan.rule.name=mean,first")


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("plan.rounds=1, 2", Axis(key="plan.rounds", values=("1", "2"))),
        (
            'plan.adapter.targets=[["query"], ["query", "value"]]',
            Axis(key="plan.adapter.targets", values=('["query"]', '["query", "value"]')),
        ),
        ("a.b=0.5..2", Axis(key="a.b", span=(0.5, 2.0))),
        ("a.b=1e-4 .. .5", Axis(key="a.b", span=(1e-4, 0.5))),
        (
            'data.train=["../a.csv", "../b.csv"]',
            Axis(key="data.train", values=('"../a.csv"', '"../b.csv"')),
        ),
        ("data.train=../a.csv,../b.csv", Axis(key="data.train", values=("../a.csv", "../b.csv"))),
        ("data.train=../a.csv", Axis(key="data.train", values=("../a.csv",))),
        ("a=true,1", Axis(key="a", values=("true", "1"))),
    ],
)
def test_an_axis_is_a_list_or_a_span(text: str, axis: Axis) -> None:
    assert axis_of(text) == axis


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not of the form"),
        ("a", "not of the form"),
        ("a=", "not of the form"),
        ("=1", "not of the form"),
        ("a=1,,2", "a value is empty"),
        ("a=1,1", "`1` stands there twice"),
        ("a=1e-3,2,0.001", "`1e-3` is `0.001`"),
        ("a=1,1.0", "`1` is `1.0`"),
        ('a=query,"query"', '`query` is `"query"`'),
        ("a=[[1, 2], [1.0, 2]]", r"`\[1, 2\]` is `\[1.0, 2\]`"),
        ("a=[]", "empty list"),
        ("a=2..1", "the smaller first"),
        ("a=0..1", "the smaller first"),
        ("a=-1..1", "the smaller first"),
        ("a=1..inf", "the smaller first"),
        ("a=[1", "not valid TOML"),
        ("a=[inf]", "not finite"),
        ("a=[1979-05-27, 1]", "`1979-05-27` is a date"),
        ("a=[[07:32:00]]", "`07:32:00` is a date or a time"),
        ("a=1979-05-27", "`1979-05-27` is a date"),
        ("a=[{b = 1}]", "is a table"),
    ],
)
def test_what_is_none_is_refused_by_option_and_value(text: str, fault: str) -> None:
    with pytest.raises(PlanError, match=rf"--over {re.escape(text)}: .*{fault}"):
        axis_of(text)


def test_a_grid_is_all_of_it_and_a_span_asks_for_a_number() -> None:
    every = combinations([RANKS, RULES], random=0, seed=0)
    assert len(every) == 6
    assert every[0] == {"plan.adapter.rank": "2", "plan.rule.name": "mean"}
    with pytest.raises(PlanError, match="--random"):
        combinations([RATES], random=0, seed=0)
    with pytest.raises(PlanError, match="twice"):
        combinations([RANKS, RANKS], random=0, seed=0)
    wide = [Axis(key=key, values=tuple(map(str, range(101)))) for key in "ab"]
    with pytest.raises(PlanError, match="cells"):
        combinations(wide, random=0, seed=0)


@given(count=st.integers(1, 20), seed=st.integers(0, 9))
def test_drawn_cells_are_different_within_bounds_and_begin_alike(count: int, seed: int) -> None:
    chosen = combinations([RATES, RULES], random=count, seed=seed)
    assert len({tuple(each.items()) for each in chosen}) == len(chosen) == count
    assert all(1e-4 <= float(each[RATES.key]) <= 1e-2 for each in chosen)
    assert combinations([RATES, RULES], random=count + 3, seed=seed)[:count] == chosen


def test_of_a_small_grid_no_more_are_drawn_than_there_are() -> None:
    assert len(combinations([RANKS], random=50, seed=0)) == 3


def test_a_cell_has_its_settings_folders_of_its_own_and_illegal_ones_their_reason(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(EXPERIMENT)
    chosen = combinations(
        [axis_of("plan.adapter.rank=2,9999"), axis_of("plan.adapter.method=lora,head")],
        random=0,
        seed=0,
    )
    swept = cells(file, ["plan.rounds=3"], chosen, [0, 4], tmp_path / "out")
    assert [bool(cell.reason) for cell in swept] == [False, True, True, True]
    assert "adapter.rank" in swept[1].reason
    plans = {seed: experiment.plan for seed, (experiment, _) in swept[0].runs.items()}
    assert plans[4]["seed"] == 4
    assert plans[4]["rounds"] == 3
    assert plans[4]["adapter"] == {"rank": 2, "method": "lora"}
    names = {folder.name for _, folder in swept[0].runs.values()}
    assert len(names) == 2
    wider = cells(file, ["plan.rounds=3"], chosen[:1], [0, 4, 7], tmp_path / "out")
    assert names < {folder.name for _, folder in wider[0].runs.values()}
    other = cells(file, ["plan.rounds=4"], chosen[:1], [0, 4], tmp_path / "out")
    assert names.isdisjoint(folder.name for _, folder in other[0].runs.values())


def folders(file: Path, *overrides: str) -> set[str]:
    """Names of the run folders of one small sweep of ``file``."""
    ranks = combinations([RANKS], random=0, seed=0)
    swept = cells(file, list(overrides), ranks, [0, 1], file.parent / "out")
    assert not any(cell.reason for cell in swept)
    return {folder.name for cell in swept for _, folder in cell.runs.values()}


@settings(max_examples=20)
@given(
    key=st.sampled_from(["rounds", "local.epochs", "local.batch_size", "cohort.attempts"]),
    value=st.integers(11, 90),
)
def test_a_changed_experiment_is_another_run(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: int
) -> None:
    file = tmp_path_factory.mktemp("swept") / "x.toml"
    file.write_text(EXPERIMENT)
    before = folders(file)
    assert len(before) == 6
    file.write_text("# A comment changes nothing.\n" + EXPERIMENT)
    assert folders(file) == before
    file.write_text(f"{EXPERIMENT}plan.{key} = {value}\n")
    assert before.isdisjoint(folders(file))
    file.write_text(EXPERIMENT)
    assert folders(file, f"plan.{key}={value}").isdisjoint(before)


@pytest.mark.parametrize("changed", ["train.csv", "test.csv", "base/model.safetensors"])
def test_so_is_one_whose_rows_or_base_have_another_content(
    tmp_path: Path, tiny_source: Path, changed: str
) -> None:
    file = tmp_path / "x.toml"
    shutil.copytree(tiny_source, tmp_path / "base")
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    file.write_text(
        'name = "x"\nbase.source = "base"\ndata.train = "train.csv"\ndata.test = "test.csv"\n'
        'plan.name = "x"\n'
    )
    before = folders(file)
    place = tmp_path / changed
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    assert before.isdisjoint(folders(file))
    place.unlink()
    assert len(folders(file)) == 6  # its run says what is missing


def test_a_run_that_was_refused_keeps_figures_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(EXPERIMENT)
    swept = cells(file, [], combinations([RANKS], random=0, seed=0), [0, 1], tmp_path / "out")
    (_, released), (_, refused) = swept[1].runs.values()
    for folder, why in ((released, None), (refused, "differ by 1")):
        folder.mkdir(parents=True)
        summary = {"accuracy_federated": 0.5, "report": "r", "refused": why}
        (folder / "summary.json").write_text(json.dumps(summary))
    rows = table(swept)
    assert rows[0]["reason"] == "differ by 1"
    assert rows[0]["seeds"] == [0, 1]
    assert "differ by 1" in sweep_page("x", rows)
    (refused / "summary.json").write_text(json.dumps(summary | {"report": None}))
    assert outcome_of(refused) is None  # killed while it wrote its report
    assert table(swept)[0]["seeds"] == [0]


def test_the_best_come_first_and_what_was_not_run_last(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(EXPERIMENT)
    swept = cells(file, [], combinations([RANKS], random=0, seed=0), [0, 1], tmp_path / "out")
    for cell, accuracies in zip(swept, [(0.5, 0.7), (0.9,), ()], strict=True):
        folders = [folder for _, folder in cell.runs.values()]
        for folder, accuracy in zip(folders, accuracies, strict=False):
            folder.mkdir(parents=True)
            summary = {"accuracy_federated": accuracy, "seconds": 3.0, "report": "r"}
            (folder / "summary.json").write_text(json.dumps(summary))
    rows = table(swept)
    assert [row["settings"]["plan.adapter.rank"] for row in rows] == ["4", "2", "8"]
    assert rows[1]["figures"]["accuracy"] == {
        "mean": pytest.approx(0.6),
        "spread": pytest.approx(0.02**0.5),
        "values": [0.5, 0.7],
    }
    assert rows[2]["figures"] == {}
    page = sweep_page("x", rows)
    assert "60.00 ± 14.14 %" in page
    assert "<svg" in page
    assert "adapter.rank=2" in page


def test_a_dot_lies_where_its_value_is() -> None:
    svg = dot_chart("t", [("low", 1.0, 0.0), ("middle", 2.0, 0.5), ("high", 3.0, 0.0)])
    places = [float(part.split('"')[0]) for part in svg.split('cx="')[1:]]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert places[0] < places[1]
    assert svg.count('class="line c1"') == 1
    assert dot_chart("t", []) == ""
