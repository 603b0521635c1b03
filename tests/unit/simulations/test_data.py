"""The rows of an experiment: read as a site reads them, divided, and put on devices by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import DataError, PlanError
from protocol.rows.read import Table
from protocol.tasks.classification import Classification
from simulations.clients import list_clients, named
from simulations.data import divided, experiment_rows
from simulations.experiment import Experiment, load_experiment
from simulations.partitions import by_column
from simulations.prepare import prepare
from simulations.progress import NoProgress
from simulations.report_quality import by_client


def experiment(
    folder: Path, rows: list[dict[str, object]], *overrides: str, test: list[object] | None = None
) -> Experiment:
    for name, content in (("train", rows), ("test", rows if test is None else test)):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    (folder / "e.toml").write_text(
        'name = "e"\n[base]\nsource = "model"\n[data]\ntrain = "train.jsonl"\ntest = "test.jsonl"\n'
        "[population]\nclients = 3\n[plan.cohort]\nsize = 3\nquorum = 3\n",
        "utf-8",
    )
    return load_experiment(folder / "e.toml", list(overrides))


def row(text: str, label: object, **beside: object) -> dict[str, object]:
    return {"text": text, "label": label, **beside}


TWO = [row("a", "x"), row("b", "y")]


def test_labels_are_those_of_the_plan_or_those_of_the_rows(tmp_path: Path) -> None:
    train, test = experiment_rows(experiment(tmp_path, TWO))
    assert (train.targets, test.texts) == (["x", "y"], ["a", "b"])
    listed = 'plan.task.labels=["x", "z"]'
    with pytest.raises(DataError, match="line 2: the label 'y' is not in the plan"):
        experiment_rows(experiment(tmp_path, TWO, listed))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Card", "card"),
        ("card ", "card"),
        ("my card", "my  card"),
        ("caf\u00e9", "cafe\u0301"),
        ("card\u200b", "card"),
        ("STRASSE", "stra\u00dfe"),
        ("my\u00a0card", "my card"),
        ("\uff21", "A"),
    ],
)
@pytest.mark.parametrize("at", ["train", "both"])
def test_found_labels_that_look_alike_are_pointed_out(
    tmp_path: Path, one: str, other: str, at: str
) -> None:
    rows, test = [row("a", one), row("b", "y")], [row("c", other)]
    if at == "train":
        rows, test = rows + test, TWO
    source = experiment(tmp_path, rows, test=test)
    with pytest.raises(DataError, match="differ only by") as caught:
        prepare(source, tmp_path / "run", resume=False, progress=NoProgress())
    assert "plan.task.labels" in caught.value.remedy
    assert caught.value.cause.isprintable()
    assert not (tmp_path / "run").exists()
    labels = json.dumps(sorted({one, other, "y", "x"}), ensure_ascii=False)
    listed = experiment(tmp_path, rows, f"plan.task.labels={labels}", test=test)
    assert one in experiment_rows(listed)[0].targets


def test_ids_are_values_of_a_column_whatever_their_type(tmp_path: Path) -> None:
    by = ("population.partition=column", "population.column=user")
    rows = [row(str(n), "xy"[n % 2], user=[7, True, 2.5, "7b"][n % 4]) for n in range(8)]
    train, test = experiment_rows(experiment(tmp_path, rows, *by))
    assert train.groups[:4] == ["7", "true", "2.5", "7b"]
    assert test.groups == []
    for odd, kind in ((None, "null"), ([1], "list"), ({"a": 1}, "JSON object")):
        with pytest.raises(DataError, match=f"line 9: column `user` holds a {kind}"):
            experiment_rows(experiment(tmp_path, [*rows, row("a", "x", user=odd)], *by))


def test_every_value_of_the_column_is_one_device() -> None:
    with pytest.raises(PlanError, match="has 3 different values") as caught:
        by_column(["a", "b", "c", "a"], 2)
    assert "population.clients = 3" in caught.value.remedy
    assert by_column(["b", "a", "c", "a"], 3) == [[1, 3], [0], [2]]


def test_who_is_which_value_is_on_file_and_in_the_report() -> None:
    rows = Table(
        texts=list("abcd"), targets=list("xyxx"), groups=["hall", "<loft>", "hall", "hall"]
    )
    listed = list_clients(rows, by_column(rows.groups, 2), "room")
    assert listed == {
        "column": "room",
        "clients": {
            "client-0000": {"value": "hall", "rows": 3, "labels": 1, "label_rows": {"x": 3}},
            "client-0001": {"value": "<loft>", "rows": 1, "labels": 1, "label_rows": {"y": 1}},
        },
    }
    page = by_client(listed["clients"], listed["column"], Classification.QUALITY)
    assert "hall" in page
    assert "&lt;loft&gt;" in page
    assert "<loft>" not in page
    assert named("client-0001", listed) == "client-0001 (<loft>)"
    without = list_clients(rows, [[0, 1], [2, 3]], "")
    first = {"value": None, "rows": 2, "labels": 2, "label_rows": {"x": 1, "y": 1}}
    assert without["clients"]["client-0000"] == first
    assert named("client-0000", without) == named("client-0000", None) == "client-0000"


def test_a_part_of_every_label_is_kept_for_the_test() -> None:
    labels = ["x"] * 50 + ["y"] * 10 + ["z"]
    rows = Table(texts=[str(n) for n in range(61)], targets=labels)
    train, test = divided(rows, labels, 0.2, seed=1)
    assert {label: test.targets.count(label) for label in "xyz"} == {"x": 10, "y": 2, "z": 0}
    assert sorted(train.texts + test.texts) == sorted(rows.texts)
    assert divided(rows, labels, 0.2, seed=1) == (train, test)
    with pytest.raises(DataError, match="no label has enough rows"):
        divided(Table(texts=["a", "b"], targets=["x", "y"]), ["x", "y"], 0.2, seed=1)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    rows = [{"texts": "a", "label": "x", "room": 3}]
    with pytest.raises(DataError, match="line 1: the column `text` is missing") as caught:
        experiment_rows(experiment(tmp_path, rows))
    assert "did you mean `texts`?" in caught.value.remedy
    assert "columns here: 'texts', 'label', 'room'" in caught.value.remedy
