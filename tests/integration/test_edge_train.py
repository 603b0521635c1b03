"""`fedge edge train`: a device adapts what it runs to rows of its own, and nothing leaves it."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.verify import read_manifest
from edge_runtime import agent
from edge_runtime.adapter import read_tensors
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.service import Service
from edge_runtime.settings import Device
from edge_runtime.store import PERSONAL, Store, held, read_state
from protocol.delivery import DeviceReport, decode
from protocol.errors import DataError
from protocol.peft_format import EDGE_FILE, RELEASE_FILE
from tests.delivery_world import World, in_use, now, passport, refused, update
from tests.integration.edge_training import (
    LOCAL,
    RULE,
    answering,
    fedge,
    golden,
    lenient,
    trained,
    tree,
    write_rows,
)
from tests.integration.test_edge_serve import asked, serving


def test_a_user_adapts_a_device_that_goes_on_serving(
    world: World, home: Device, tmp_path: Path
) -> None:
    settings, rows = world.folder / "kiosk-1.toml", write_rows(tmp_path / "mine.jsonl")
    release = read_state(home.store).current
    with serving(settings, "--port", 0, "--json") as (line, _):
        url = json.loads(line)["url"]
        before = asked(url)
        assert (before["release"], before["seq"], "personal" in before) == (release, 1, False)
        options = ("--data", rows, "--rate", 0.02, "--epochs", 60)
        done = fedge("edge", "train", settings, *options, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["release"], told["rows"], told["held_out"]) == (1, 32, 8)
        assert told["quality"] == "accuracy"
        assert told["before"] < told["after"] >= 0.75
        assert told["loss"] < 1
        after = waited(url, told["personal"])
        assert (after["seq"], after["personal"]) == (1, True)
        assert after["answers"] != before["answers"]
        shown = fedge("edge", "status", settings).stdout.replace("\n", " ")
        day = f"{now():%Y-%m-%d}"
        assert f"personal, from release 1: trained here on 32 rows, {day}; accuracy " in shown
        assert "current: release 1" in shown
        done = fedge("edge", "rollback", settings)
        assert done.returncode == 0, done.stderr
        assert waited(url, release) == before
    assert not list((home.store / PERSONAL).iterdir())


def waited(url: str, release: str | None) -> dict[str, Any]:
    """What is answered once ``release`` answers."""
    while (answer := asked(url))["release"] != release:
        time.sleep(0.05)
    return answer


def publish_slots(world: World, tensors: dict[str, Any], **answers: Any) -> None:
    """A release of the forms given, whatever method they are of, that ``answers`` otherwise."""

    def change(folder: Path) -> None:
        write_edge_adapter(tensors, folder / EDGE_FILE)
        note = json.loads((folder / RELEASE_FILE).read_text())
        note["files"] = {EDGE_FILE: hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()}
        (folder / RELEASE_FILE).write_text(json.dumps(note | answers))
        passport(world.log, folder, note["round"])

    world.publish(change=change, log_index=world.log.size + 3)


def slots_of(base: Path, kinds: tuple[str, ...], labels: int = 3) -> dict[str, Any]:
    """Random values for the slots whose names end so."""
    rng = np.random.default_rng(0)
    sizes = {"labels": labels, "prompt": 5}
    tensors = {}
    for slot in read_manifest(base).graph.slots:
        if slot.name.endswith(kinds):
            shape = tuple(n if isinstance(n, int) else sizes.get(n, 2) for n in slot.shape)
            noise = rng.normal(0, 0.05, shape).astype(np.float32)
            tensors[slot.name] = noise + (1 if slot.name.endswith(".scale") else 0)
    return tensors


HEAD = ("classifier.weight", "classifier.bias")
FORMS = {
    "low rank": (*HEAD, ".lora_A", ".lora_B"),
    "low rank on one linear": (*HEAD, "0.attention.self.query.lora_A", "0.attention.self.query.lora_B"),
    "prompt": (*HEAD, "soft_prompt"),
    "head": HEAD,
    "shifts": (*HEAD, ".shift"),
    "norms": (*HEAD, "LayerNorm.scale", "LayerNorm.shift"),
    "everything": ("",),
}  # fmt: skip


@pytest.mark.parametrize("kinds", FORMS.values(), ids=FORMS)
def test_whatever_forms_a_release_has_are_trained(
    world: World, tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    lenient(world)
    start, device = slots_of(world.base, kinds), world.device()
    publish_slots(world, start)
    update(device)
    one = trained(device, write_rows(tmp_path / "rows.jsonl"))
    assert one.before < one.after
    folder, _ = held(device.store, read_state(device.store), one.id)
    after = read_tensors(folder / EDGE_FILE)
    assert {name: x.shape for name, x in after.items()} == {n: x.shape for n, x in start.items()}
    assert all((after[name] != start[name]).any() for name in start)


def test_a_release_that_answers_with_numbers(world: World, tmp_path: Path) -> None:
    path, rows = world.folder / "probe.json", tmp_path / "rows.jsonl"
    probe = json.loads(path.read_text()) | {"rows": [{"text": "the", "value": 2.0}], "within": 9.0}
    path.write_text(json.dumps(probe | {"least_correct": 1}))
    device, start = world.device(), slots_of(world.base, FORMS["low rank"], labels=1)
    publish_slots(world, start, task="regression", labels=[], range=[0.0, 4.0], calibration=None)
    update(device)
    write_rows(rows, label="grade")
    values = {"light": 0.5, "music": 2.0, "timer": 3.5}
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines = [line | {"grade": values[line["grade"]]} for line in lines]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    personal = trained(device, rows, column="grade")
    assert personal.quality == "nrmse"
    assert personal.after < 0.7 * personal.before
    service = Service(device, clock=time.monotonic)
    found = [answer.answer for answer in service.classify(list(RULE)).predictions]
    assert found == sorted(found)
    # So high that every answer lies at an end of the range, whatever the last bits of a step.
    worse = LOCAL.model_copy(update={"learning_rate": 1e3, "head_learning_rate": 1e3})
    with refused("personal.worse", "personal.diverged"):
        trained(device, rows, column="grade", local=worse)


def test_a_release_that_answers_pairs(world: World, home: Device, tmp_path: Path) -> None:
    """What is learnt stands in the second text; single texts are no rows of such a release."""
    rows = write_rows(tmp_path / "rows.jsonl", text="text_pair")
    lines = [json.loads(line) | {"text": "please"} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="single texts"):
        trained(home, rows, pair="text_pair")
    pairs = [{"text": "the", "text_pair": "a", "label": label} for label in RULE.values()]
    golden(world, pairs, least=1)
    publish_slots(world, slots_of(world.base, FORMS["low rank"]), pairs=True)
    update(home)
    personal = trained(home, rows)
    assert personal.before < personal.after
    with pytest.raises(DataError, match="text_pair"):
        trained(home, write_rows(tmp_path / "single.jsonl"))


def test_the_same_rows_give_the_same_adapter_from_the_release(home: Device, tmp_path: Path) -> None:
    """Training does not go on from what was trained here: what it is made of stays a release and rows."""
    rows = write_rows(tmp_path / "rows.jsonl")
    first = trained(home, rows)
    damaged = home.store / PERSONAL / first.id / EDGE_FILE
    damaged.write_bytes(b"rotten")
    second = trained(home, rows)
    assert first.model_dump(exclude={"time"}) == second.model_dump(exclude={"time"})
    assert Service(home, clock=time.monotonic).classify(["rain"]).release == first.id
    other = trained(home, write_rows(tmp_path / "more.jsonl", 60))
    assert [path.name for path in (home.store / PERSONAL).iterdir()] == [other.id]


def test_nothing_of_the_rows_is_kept_and_the_adapter_is_its_owners(
    world: World, home: Device, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    secret = "window morning please"
    write_rows(rows)
    rows.write_text(rows.read_text() + json.dumps({"text": secret, "label": "light"}) + "\n")
    done = fedge("edge", "train", world.folder / "kiosk-1.toml", "--data", rows, "--holdout", 0)
    assert done.returncode == 0, done.stderr
    assert "no row was held out" in done.stdout
    texts = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
    one = read_state(home.store).personal
    assert one is not None
    assert (one.rows, one.held_out) == (41, 0)
    assert home.report is not None
    report = home.report.read_bytes()
    written = [*tree(home.store).values(), report, (done.stdout + done.stderr).encode()]
    assert not [text for text in texts for data in written if text.encode() in data]
    told = decode(DeviceReport, report, source="report")
    assert told.personal
    assert told.current is not None
    assert told.current.release == one.origin
    assert one.id.encode() not in report
    modes = {
        stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (home.store / PERSONAL).rglob("*")
    }
    assert modes == {0}
    note = json.loads((home.store / PERSONAL / one.id / RELEASE_FILE).read_text())
    assert (note["exchange"], note["parity"], note["metrics"]) == ("personal", None, {})
    trusting = fedge(
        "edge", "infer", "--base", world.base, "--adapter", home.store / PERSONAL / one.id,
        "--trust", world.folder / "policy", "rain",
    )  # fmt: skip
    assert trusting.returncode == 11
    assert "has no passport" in trusting.stderr


def test_a_newer_release_answers_and_the_personal_one_waits_for_its_own(
    world: World, home: Device, tmp_path: Path
) -> None:
    one = trained(home, write_rows(tmp_path / "rows.jsonl"))
    offer = world.publish()
    state = update(home)
    assert "the personal adapter from release 1 answers no more, kept" in state.outcome
    assert (answering(home), state.personal) == (offer.id, one)
    told = agent.status(home)
    assert (told["personal"]["release"], told["personal"]["in_use"]) == (1, False)
    agent.roll_back(home, "tests", now())
    assert answering(home) == one.id
    agent.roll_back(home, "tests", now())
    assert (answering(home), in_use(home)) == (one.origin, 1)
    again = trained(home, write_rows(tmp_path / "rows.jsonl"))
    assert again.id == one.id
    for number in (3, 4):
        world.publish()
        state = update(home)
        assert (state.personal is None) == (number == 4)
    assert "removed with that release" in state.outcome
    assert not list((home.store / PERSONAL).iterdir())


def test_what_is_made_of_a_withdrawn_release_is_left_too(
    world: World, home: Device, tmp_path: Path
) -> None:
    world.publish()
    update(home)
    one = trained(home, write_rows(tmp_path / "rows.jsonl"))
    service = Service(home, clock=time.monotonic)
    assert service.health()["personal"]
    world.revoke(2)
    update(home)
    service.follow()
    assert (in_use(home), service.health()["seq"], service.health()["personal"]) == (1, 1, False)
    assert read_state(home.store).personal is None
    assert not (home.store / PERSONAL / one.id).exists()


def test_a_personal_adapter_that_fails_is_left_for_its_release(
    home: Device, tmp_path: Path, monkeypatch: Any
) -> None:
    one = trained(home, write_rows(tmp_path / "rows.jsonl"))
    service = Service(home, clock=lambda: 0.0)
    real = service.runtime.infer

    def failing(texts: Any, adapter: Any, *more: Any) -> Any:
        if adapter.note.exchange == "personal":
            raise RuntimeError
        return real(texts, adapter, *more)

    monkeypatch.setattr(service.runtime, "infer", failing)
    for _ in range(home.faults):
        with refused("serve.failed"):
            service.classify(["rain"])
    assert service.classify(["rain"]).release == one.origin
    assert read_state(home.store).failed == {}  # the release did nothing wrong


def test_a_device_that_may_not_goes_on_with_its_release(home: Device, tmp_path: Path) -> None:
    """Also where an adapter was trained before its settings said so."""
    personal = trained(home, write_rows(tmp_path / "rows.jsonl"))
    forbidden = home.model_copy(update={"personal": False})
    answer = Service(forbidden, clock=time.monotonic).classify(["rain"])
    assert (answer.release, answer.personal) == (personal.origin, False)
    assert not agent.status(forbidden)["personal"]["in_use"]


def test_files_that_went_leave_the_release(home: Device, tmp_path: Path) -> None:
    one = trained(home, write_rows(tmp_path / "rows.jsonl"))
    service = Service(home, clock=time.monotonic)
    for path in (home.store / PERSONAL / one.id).iterdir():
        path.unlink()
    (home.store / PERSONAL / one.id).rmdir()
    assert service.classify(["rain"]).personal  # until it is started again
    fresh = Service(home, clock=time.monotonic)
    assert (fresh.classify(["rain"]).release, fresh.trouble[-20:]) == (
        one.origin,
        fresh.trouble[-20:],
    )
    assert "missing" in fresh.trouble
    with Store(home.store) as store:
        assert store.state.personal is None
