"""A proposed experiment names the right columns, labels and devices, and can be run as it stands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from protocol.errors import DataError
from simulations.data import experiment_rows
from simulations.experiment import load_experiment
from simulations.partitions import by_column
from simulations.proposal import Proposal, propose, render

LABELS = ["billing", "caf\u00e9", "results"]
Row = dict[str, object]


def rows(**names: str) -> list[Row]:
    """Sixty rows: a text, a label, a user of six, a row's own number."""
    name = {"text": "text", "label": "label", "user": "user", "id": "id"} | names
    return [
        {
            name["id"]: number,
            name["user"]: number % 6,
            name["label"]: LABELS[number % 3],
            name["text"]: f"a longer sentence, number {number}",
        }
        for number in range(60)
    ]


def written(path: Path, content: list[Row]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            out = csv.DictWriter(file, list(content[0]))
            out.writeheader()
            out.writerows(content)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "names",
    [
        {},
        {"text": "utterance", "label": "intent", "user": "device"},
        {"text": "Body", "label": "Category", "user": "Customer ID"},
        {"text": "w", "label": "z", "user": "user_id"},
    ],
)
def test_columns_labels_and_devices_are_proposed_and_can_be_run(
    tmp_path: Path, kind: str, names: dict[str, str]
) -> None:
    name = {"text": "text", "label": "label", "user": "user"} | names
    path = written(tmp_path / f"my data.{kind}", rows(**names))
    found = propose(path)
    assert found == Proposal(
        text=name["text"],
        label=name["label"],
        column=name["user"],
        rows=60,
        labels=LABELS,
        clients=6,
        others={},
    )
    out = tmp_path / "elsewhere" / "e.toml"
    out.parent.mkdir()
    out.write_text(render(found, path, None, out), "utf-8")
    experiment = load_experiment(out)
    train, test = experiment_rows(experiment)
    assert (len(train), len(test)) == (48, 12)
    assert len(by_column(train.groups, experiment.population.clients)) == 6


def test_without_a_column_that_says_whose_a_row_is(tmp_path: Path) -> None:
    content = [{k: v for k, v in row.items() if k != "user"} | {"hour": 1} for row in rows()]
    path = written(tmp_path / "a.jsonl", content)
    test = written(tmp_path / "b.jsonl", [{"text": "x", "label": "new"}, *content])
    found = propose(path, test)
    assert (found.column, found.clients, found.others) == ("", 3, {})
    assert found.labels == ["billing", "caf\u00e9", "new", "results"]
    out = tmp_path / "e.toml"
    out.write_text(render(found, path, test, out), "utf-8")
    assert load_experiment(out).population.partition == "dirichlet"
    assert experiment_rows(load_experiment(out))[1].targets[0] == "new"


def test_keys_that_only_some_rows_have_are_no_columns(tmp_path: Path) -> None:
    content = rows()
    content[5] = content[5] | {"note": "odd"}
    assert propose(written(tmp_path / "a.jsonl", content)).text == "text"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"text": "a", "label": 1}, {"text": "b", "label": 2}], "`label` holds a number"),
        ([{"n": 1, "m": 2}], "no column holds texts"),
        ([{"text": "a", "x": "b"}, {"text": "c", "x": "d"}], "no column looks like labels"),
        ([{"text": "a", "label": "X"}, {"text": "b", "label": "x"}], "differ only by case"),
        ([{"text": "a", "label": "x"}], "a single label"),
    ],
)
def test_rows_that_cannot_be_learnt_from(tmp_path: Path, content: list[Row], says: str) -> None:
    with pytest.raises(DataError, match=says):
        propose(written(tmp_path / "a.jsonl", content))
