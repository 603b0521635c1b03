"""A device per value of a column, from the file of rows to the report, without losing a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_runtime.commands import app
from protocol.errors import PlanError
from simulations.experiment import Experiment, load_experiment
from simulations.prepare import prepare
from simulations.progress import NoProgress
from simulations.report import write_report

ROOMS = ["K\u00fcche", "Bad", "Flur", "loft <3>"]


@pytest.fixture
def by_room(experiment_file: Path, tmp_path: Path) -> Path:
    """The rows of the experiment, each with a whole number for a user and a name for a room."""
    for name in ("train", "test"):
        lines = (experiment_file.parent / f"{name}.jsonl").read_text("utf-8").splitlines()
        rows = [
            json.loads(line) | {"user": number % 5, "room": ROOMS[number % 4], "noise": None}
            for number, line in enumerate(lines)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (experiment_file.parent / f"{name}-named.jsonl").write_text(text, "utf-8")
    return experiment_file


def loaded(file: Path, column: str, clients: int) -> Experiment:
    data = ("train", "test")
    return load_experiment(
        file,
        [
            *(f"data.{name}={name}-named.jsonl" for name in data),
            *("population.partition=column", f"population.column={column}"),
            *(f"population.clients={clients}", "plan.cohort.size=4", "plan.cohort.quorum=3"),
        ],
    )


@pytest.mark.parametrize(
    ("column", "values"), [("user", ["0", "1", "2", "3", "4"]), ("room", ROOMS)]
)
def test_every_value_is_a_device_with_its_name(
    by_room: Path, column: str, values: list[str]
) -> None:
    out = by_room.parent / f"by-{column}"
    prepared = prepare(
        loaded(by_room, column, len(values)), out, resume=False, progress=NoProgress()
    )
    listed = json.loads((out / "clients.json").read_text("utf-8"))
    assert listed["column"] == column
    assert sorted(one["value"] for one in listed["clients"].values()) == sorted(values)
    for number, (name, one) in enumerate(listed["clients"].items()):
        lines = prepared.client_file(number).read_text("utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines]
        assert prepared.client_file(number).stem == name
        assert len(rows) == one["rows"]
        assert {str(row[column]) for row in rows} == {one["value"]}
        assert set(rows[0]) == {"text", "label", column}
    page = write_report(out).read_text("utf-8")
    assert all(value.replace("<", "&lt;").replace(">", "&gt;") in page for value in values)


def test_another_number_of_clients_is_refused_before_a_base_is_built(by_room: Path) -> None:
    out = by_room.parent / "refused-by-count"
    with pytest.raises(PlanError, match="the column has 5 different values"):
        prepare(loaded(by_room, "user", 4), out, resume=False, progress=NoProgress())
    assert not out.exists()


def test_a_file_of_texts_is_cut_where_rows_are(tiny_base: Path, tmp_path: Path) -> None:
    texts = ["turn on\u2028the light", "play\x85some music"]
    plain = tmp_path / "a.txt"
    plain.write_bytes(b"\xef\xbb\xbf" + "\r\n\n".join(texts).encode())
    table = tmp_path / "a.csv"
    table.write_text("id,q\n" + "".join(f'1,"{text}"\n' for text in texts), "utf-8")
    for arguments in ([str(plain)], [str(table), "--column", "q"]):
        command = ["infer", "--base", str(tiny_base), "--json", "--file", *arguments]
        done = CliRunner().invoke(app, command)
        if done.exception is not None:
            raise done.exception
        assert [one["text"] for one in json.loads(done.stdout)] == texts
