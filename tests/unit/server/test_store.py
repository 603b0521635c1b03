"""The run folder: whole or absent, damage is noticed, nothing is left lying about."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file, save

from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, FedgeError, MachineError
from protocol.manifest import Manifest
from protocol.methods import METHODS
from protocol.peft_format import RELEASE_FILE, from_peft, parse_release
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.step.checkpoint import decode_checkpoint, encode_checkpoint
from server.app import make_app
from server.store import RunStore
from simulations.clock import VirtualClock
from simulations.grid import InProcessGrid
from simulations.records import round_records

MakePlan = Callable[..., Plan]
KEYS = {
    *("round", "attempt", "parts", "expected", "used", "dropped", "quorum", "exchange", "secure"),
    *("weight", "metrics", "update_norm", "bytes_down_per_client", "bytes_up_per_client"),
    *("seconds", "started_at", "ended_at", "plan_digest", "base_fingerprint"),
    *("adapter_in", "adapter_out", "adapter_published"),
}


@pytest.mark.parametrize("rule", ["alternating", "mean"])
def test_a_published_round_is_complete_and_consistent(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path, manifest: Manifest, rule: str
) -> None:
    plan = make_plan(rule)
    outcome = run(populate(plan), tmp_path / "r")
    before, folder = "", tmp_path / "r" / "rounds"
    for number in range(4):
        record = json.loads((folder / f"{number:04d}" / "record.json").read_text())
        assert set(record) >= KEYS
        assert record["adapter_in"] == before
        before = record["adapter_out"]
        published = folder / f"{number:04d}" / "adapter"
        note = parse_release((published / RELEASE_FILE).read_text(), source="release")
        assert note.parity is None
        assert note.files == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in published.iterdir()
            if path.name != RELEASE_FILE
        }
        weights = published / "adapter_model.safetensors"
        assert weights.read_bytes() == save(load_file(weights), metadata={"format": "pt"})
        tensors = from_peft(load_file(weights), method=METHODS["lora"])
        layout = Recipe(plan=plan, manifest=manifest).layout
        assert vector_digest(layout.flatten(tensors)) == before == note.adapter_digest
        assert record["adapter_published"] == before
        config = json.loads((published / "adapter_config.json").read_text())
        assert config["r"] == plan.adapter.rank
        assert (record["update_norm"] > 0) == (number > 0)
    assert outcome.adapter_digest == before
    assert not list(folder.glob(".*"))


def test_around_a_core_a_plain_adapter_is_published_under_its_own_digest(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path, manifest: Manifest
) -> None:
    plan = make_plan("lora-sb")
    layout = Recipe(plan=plan, manifest=manifest).layout
    run(populate(plan), tmp_path / "r")
    store = RunStore(tmp_path / "r")
    for number in range(4):
        state, record = store.load(number)
        assert vector_digest(layout.flatten(state.adapter)) == record["adapter_out"]
        published = tmp_path / "r" / "rounds" / f"{number:04d}" / "adapter"
        note = parse_release((published / RELEASE_FILE).read_text(), source="release")
        tensors = from_peft(
            load_file(published / "adapter_model.safetensors"), method=METHODS["lora-sb"]
        )
        assert not [name for name in tensors if name.endswith("lora_R")]
        plain = layout.only({"lora_A", "lora_B", "head"})
        assert vector_digest(plain.flatten(tensors)) == note.adapter_digest
        assert note.adapter_digest == record["adapter_published"] != record["adapter_out"]
        for path in ("m.0.query", "m.1.query"):
            a, b, r = (state.adapter[f"{path}.lora_{which}"] for which in "ABR")
            np.testing.assert_array_equal(tensors[f"{path}.lora_A"], a)
            np.testing.assert_allclose(tensors[f"{path}.lora_B"], b @ r, rtol=1e-5, atol=1e-7)
    store.close()


def test_one_changed_byte_of_a_checkpoint_is_noticed(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    run(populate(make_plan()), folder)
    path = folder / "rounds" / "0003" / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 2] ^= 1  # within the first tensor
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match="bytes have changed"):
        run(populate(make_plan()), folder)


@pytest.mark.parametrize("shape", ["another name", "turned"])
def test_a_checkpoint_of_other_tensors_is_noticed(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path, shape: str
) -> None:
    """Its digest is of the flat vector, and covers neither names nor shapes."""
    folder = tmp_path / "r"
    run(populate(make_plan()), folder)
    path = folder / "rounds" / "0003" / "checkpoint.safetensors"
    state, note = decode_checkpoint(path.read_bytes(), source="c")
    (first, value), *others = sorted(state.adapter.items())
    renamed = (first + "x", value) if shape == "another name" else (first, value.reshape(-1, 1))
    changed = replace(state, adapter=dict([renamed, *others]))
    path.write_bytes(encode_checkpoint(changed, note))
    with pytest.raises(ArtefactError, match="round 3 is damaged") as refused:
        run(populate(make_plan()), folder)
    assert "restore the run folder" in refused.value.remedy


def test_a_gap_is_noticed(make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path) -> None:
    run(populate(make_plan()), tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "rounds" / "0002")
    with pytest.raises(ArtefactError, match="is missing"):
        run(populate(make_plan()), tmp_path / "r")


def test_leftovers_of_a_killed_coordinator_are_swept_and_the_open_round_is_not(
    tmp_path: Path,
) -> None:
    rounds = tmp_path / "r" / "rounds"
    for name in ("0001", ".0001.open", ".0002.open", ".0002.tmp"):
        (rounds / name).mkdir(parents=True)
    (rounds / ".0002.attempt1.json.tmp").write_text("{")
    RunStore(tmp_path / "r").close()
    assert sorted(path.name for path in rounds.iterdir()) == [".0002.open", "0001"]


def test_an_update_that_turned_out_bad_is_not_kept(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "r")
    store.open_attempt(1, {"attempt": 1})
    replies = store.replies(1)
    replies.put("ann/../x", b"abc")
    replies.put("bo", b"de")
    assert replies.get("ann/../x") == b"abc"
    replies.remove("ann/../x")
    assert replies.get("ann/../x") is None
    assert store.replies(1).get("bo") == b"de"
    store.open_attempt(1, {"attempt": 2})  # a new attempt starts empty
    assert store.replies(1).get("bo") is None
    store.close()


# -- the app ----------------------------------------------------------------------------------------


class App:
    """The ServerApp on files, as Flower calls it."""

    def __init__(self, folder: Path, plan: Plan, manifest: Manifest, population: Any) -> None:
        self.folder, self.population = folder, population
        (folder / "base").mkdir()
        (folder / "base" / "manifest.json").write_text(manifest.to_json())
        (folder / "plan.json").write_text(plan.model_dump_json())
        self.config = {
            "plan": str(folder / "plan.json"),
            "base": str(folder / "base"),
            "run": str(folder / "run"),
        }

    def start(self, **more: Any) -> None:
        clock = VirtualClock()
        population = self.population
        grid = InProcessGrid(population.app(), len(population.names), clock=clock, deadline_s=30.0)
        context = Context(1, 1, {}, RecordDict(), self.config | more)
        make_app(clock=clock)(grid, context)


@pytest.fixture
def started(make_plan: MakePlan, populate: Any, manifest: Manifest, tmp_path: Path) -> App:
    plan = make_plan()
    return App(tmp_path, plan, manifest, populate(plan))


def test_the_app_runs_and_only_resumes_when_told_to(started: App) -> None:
    started.start()
    assert (started.folder / "run" / "rounds" / "0003").is_dir()
    with pytest.raises(ArtefactError, match="holds a run already"):
        started.start()
    asked = len(started.population.asked)
    started.start(resume=True)
    assert len(started.population.asked) == asked  # the run is finished: nobody is asked


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"plan": ""}, MachineError),
        ({"plan": "absent.toml"}, FedgeError),
        ({"base": "absent"}, ArtefactError),
    ],
)
def test_the_app_refuses_what_is_not_there(started: App, config: Any, kind: Any) -> None:
    with pytest.raises(kind):
        started.start(**config)
    assert not (started.folder / "run").exists()


def test_a_copy_of_a_round_beside_it_is_none_of_the_run(tmp_path: Path) -> None:
    rounds = tmp_path / "run/rounds"
    for name in ("9999", "10000", "9999.copy", "10000 (1)"):
        (rounds / name).mkdir(parents=True)
        (rounds / name / "log.batch").write_text("{}")
        (rounds / name / "record.json").write_text('{"round": 1}')
    store = RunStore(tmp_path / "run")
    try:
        assert [path.parent.name for path in store.batches()] == ["9999", "10000"]
    finally:
        store.close()
    assert len(round_records(tmp_path / "run")) == 2
