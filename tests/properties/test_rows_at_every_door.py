"""One file of rows, one verdict: at a simulation, a site, a release and a device's probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.data import load_rows
from delivery.release_commands import held_out_rows
from edge_runtime.probe import read_probe
from operations.folders import Invitation
from operations.site import Site, SiteSettings
from protocol.errors import DataError, FedgeError
from protocol.plan import Plan, parse_plan
from protocol.rows.read import read_texts
from simulations.data import experiment_rows
from simulations.experiment import load_experiment
from tests.plan_texts import commented_plan
from tests.properties.odd_rows import LABELS, OddFile, Pair, odd_files

FILES = odd_files()
LISTED = json.dumps(LABELS, ensure_ascii=False)
Door = Callable[[Path], list[Pair]]


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.toml"
    text = commented_plan("0" * 64).replace('labels = ["no", "yes"]', f"labels = {LISTED}")
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="module")
def doors(plan_file: Path) -> dict[str, Door]:
    plan = parse_plan(plan_file.read_text("utf-8"), source="plan")
    return {
        "simulate": lambda path: simulate(path, f"[plan.task]\nlabels = {LISTED}\n"),
        "simulate, labels found": lambda path: simulate(path, "[plan]\n"),
        "client start": lambda path: client_start(path, plan_file, plan),
        "release": lambda path: named(path, plan, held_out_rows(path, plan)),
        "probe": probe,
    }


def simulate(path: Path, task: str) -> list[Pair]:
    source = path.with_name("experiment.toml")
    source.write_text(
        'name = "e"\n[base]\nsource = "m"\n[data]\n'
        + f"train = {json.dumps(path.name)}\ntest = {json.dumps(path.name)}\n"
        + task,
        "utf-8",
    )
    train, test = experiment_rows(load_experiment(source))
    assert train == test
    return list(zip(train.texts, train.targets, strict=True))


def client_start(path: Path, plan_file: Path, plan: Plan) -> list[Pair]:
    work = {"data": str(path), "plan": str(plan_file), "base": "0" * 64}
    site = Site(
        folder=path.parent,
        settings=SiteSettings.model_validate({"name": "ward", "port": 9100, "work": work}),
        invitation=Invitation(name="c", address="h:1", authority="", operator="0" * 64),
    )
    site.verify_fits()
    return named(path, plan, load_rows(path, plan.task))


def named(path: Path, plan: Plan, rows: object) -> list[Pair]:
    texts, labels = rows.texts, rows.targets  # type: ignore[attr-defined]
    return [(text, plan.task.labels[at]) for text, at in zip(texts, labels, strict=True)]


def probe(path: Path) -> list[Pair]:
    source = path.with_name("probe.json")
    limits = {"least_correct": 1, "most_latency_ms": 1, "most_memory_mb": 1}
    source.write_text(json.dumps({"rows": {"file": path.name}, **limits}), "utf-8")
    return [(row.text, row.label) for row in read_probe(source).rows]


def verdict(door: Door, path: Path) -> list[Pair] | str:
    try:
        return door(path)
    except DataError as error:
        return error.cause.removeprefix(f"{path}: ")


def test_there_are_enough_of_them() -> None:
    kinds = [file.name.lower().rpartition(".")[2] for file in FILES]
    assert len(FILES) >= 200
    assert min(kinds.count(kind) for kind in ("jsonl", "csv", "parquet")) >= 50
    assert len({file.name for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_door_says_the_same_and_the_right(
    file: OddFile, doors: dict[str, Door], tmp_path: Path
) -> None:
    path = tmp_path / file.name
    path.write_bytes(file.data)
    found = {name: verdict(door, path) for name, door in doors.items()}
    if "the label " in file.fault:
        # These know no list of labels: any that a plan may have will do.
        found.pop("probe")
        found.pop("simulate, labels found")
    if file.rows is not None:
        assert {name: rows == file.rows for name, rows in found.items()} == dict.fromkeys(
            found, True
        )
        assert read_texts(path, "text") == [text for text, _ in file.rows]
    else:
        assert len(set(map(str, found.values()))) == 1, found
        cause = found["simulate"]
        assert isinstance(cause, str)
        assert file.fault in cause
        assert cause.isprintable()


def test_the_probe_points_out_labels_that_look_alike(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,Ja\nb,ja\n", "utf-8")
    with pytest.raises(FedgeError, match="'Ja' and 'ja' differ only by case"):
        probe(path)
