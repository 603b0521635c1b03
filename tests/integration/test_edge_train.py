"""`fedge edge train`: a device adapts what it runs to rows of its own, and nothing leaves it or is half done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.edge_adapter import write_edge_adapter
from base_model.store import read_manifest
from edge_runtime import agent
from edge_runtime.adapter import read_tensors
from edge_runtime.service import Service
from edge_runtime.settings import Device
from edge_runtime.store import PERSONAL, Personal, Store, held, read_state
from fedge.main import main
from fedge.personal import Request, adapt
from protocol.delivery import DeviceReport, decode
from protocol.errors import ArtefactError, DataError, FedgeError
from protocol.peft_format import EDGE_FILE, RELEASE_FILE
from protocol.plan_sections import Local
from tests.delivery_world import World, in_use, now, passport, refused, update
from tests.integration.test_device_crash import EVERY, dies, steps_of
from tests.integration.test_edge_serve import asked, serving

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCKED = ("torch", "transformers", "peft", "datasets", "flwr", "pandas", "pyarrow", "onnxscript")
RUN = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from fedge.main import main
main(sys.argv[2:])
"""
RULE = {"coffee": "light", "rain": "music", "garden": "timer"}  # what this device's user means
REST = ["the", "a", "kitchen", "red", "two", "stop", "morning", "window", "please", "now"]
LOCAL = Local(epochs=30, batch_size=8, learning_rate=0.02, head_learning_rate=0.02)


def write_rows(path: Path, count: int = 40, **columns: str) -> Path:
    rng = np.random.default_rng(4)
    rows = []
    for at in range(count):
        word, label = list(RULE.items())[at % 3]
        text = " ".join([word, *rng.choice(REST, 3)])
        rows.append({columns.get("text", "text"): text, columns.get("label", "label"): label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: object, blocked: tuple[str, ...] = BLOCKED) -> list[str]:
    return [sys.executable, "-c", RUN, json.dumps(blocked), *map(str, arguments)]


def fedge(
    *arguments: object, blocked: tuple[str, ...] = BLOCKED
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments, blocked=blocked),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def lenient(world: World) -> None:
    """A probe of which one row is right whatever the answer."""
    golden(world, [{"text": "the", "label": label} for label in RULE.values()], least=1)


def golden(world: World, rows: list[dict[str, str]], least: int) -> None:
    path = world.folder / "probe.json"
    probe = json.loads(path.read_text()) | {"rows": rows, "least_correct": least}
    path.write_text(json.dumps(probe))


def wish(data: Path, **changes: Any) -> Request:
    fields = {
        "data": data,
        "text": "text",
        "pair": "",
        "column": "",
        "local": LOCAL,
        "holdout": None,
    }
    return Request(**fields | changes)


def trained(device: Device, data: Path, **changes: Any) -> Personal:
    return adapt(device, wish(data, **changes), now(), lambda done, of: None).personal


def answering(device: Device) -> str | None:
    return read_state(device.store).answering(device.personal)


def tree(store: Path) -> dict[str, bytes]:
    """Whatever a device cannot make again: the graph's copy and the lock apart."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.relative_to(store).parts[0] not in ("graph", "lock")
    }


@pytest.fixture
def home(world: World) -> Device:
    """A device that runs release 1, and whose probe leaves room."""
    lenient(world)
    device = world.device()
    world.publish()
    update(device)
    return device


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
    worse = LOCAL.model_copy(update={"learning_rate": 5.0, "head_learning_rate": 5.0})
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


def no_weights(world: World, home: Device, rows: Path) -> tuple[Device, Request]:
    base = world.folder / "answers-only"
    base.mkdir()
    for path in world.base.iterdir():
        if path.name != "weights.safetensors":
            (base / path.name).symlink_to(path)
    return home.model_copy(update={"base": base}), wish(rows)


def other_weights(world: World, home: Device, rows: Path) -> tuple[Device, Request]:
    device, asked_for = no_weights(world, home, rows)
    data = bytearray((world.base / "weights.safetensors").read_bytes())
    data[-9] ^= 1
    (device.base / "weights.safetensors").write_bytes(data)
    return device, asked_for


def rotten_release(world: World, home: Device, rows: Path) -> tuple[Device, Request]:
    state = read_state(home.store)
    folder, _ = held(home.store, state, state.current or "")
    (folder / EDGE_FILE).write_bytes((folder / EDGE_FILE).read_bytes()[:-1])
    return home, wish(rows)


def rewritten_release(world: World, home: Device, rows: Path) -> tuple[Device, Request]:
    """Well-formed, with its labels in another order."""
    state = read_state(home.store)
    folder, _ = held(home.store, state, state.current or "")
    note = json.loads((folder / RELEASE_FILE).read_text())
    (folder / RELEASE_FILE).write_text(json.dumps(note | {"labels": note["labels"][::-1]}))
    return home, wish(rows)


def of_rows(change: Callable[[Path], Request]) -> Callable[..., tuple[Device, Request]]:
    return lambda world, home, rows: (home, change(rows))


def written(rows: Path, text: str) -> Request:
    rows.write_text(text)
    return wish(rows)


def training(**changes: Any) -> Callable[..., tuple[Device, Request]]:
    return of_rows(lambda rows: wish(rows, **changes))


REFUSED: dict[str, tuple[Callable[..., tuple[Device, Request]], type[FedgeError], str]] = {
    "no rows": (of_rows(lambda rows: written(rows, "")), DataError, "no rows"),
    "all held out": (training(holdout=1.0), DataError, "no rows to train on"),
    "no file": (of_rows(lambda rows: wish(rows.with_name("x.jsonl"))), DataError, "x.jsonl"),
    "another column": (training(text="utterance"), DataError, "`utterance`"),
    "another label": (
        of_rows(lambda rows: written(rows, '{"text": "x", "label": "ligth"}\n')),
        DataError,
        "ligth",
    ),
    "forbidden": (
        lambda world, home, rows: (home.model_copy(update={"personal": False}), wish(rows)),
        FedgeError,
        "personal.forbidden",
    ),
    "no release": (lambda world, home, rows: (world.device("kiosk-2"), wish(rows)), FedgeError, "no release"),
    "no weights": (no_weights, ArtefactError, "can answer, not train"),
    "other weights": (other_weights, ArtefactError, "sha256"),
    "rotten release": (rotten_release, ArtefactError, "damaged"),
    "rewritten release": (rewritten_release, ArtefactError, "damaged"),
    "diverging": (
        training(local=LOCAL.model_copy(update={"learning_rate": 1e30, "head_learning_rate": 1e30})),
        FedgeError,
        "personal.diverged",
    ),
    "diverging at its only step": (
        training(local=Local(max_steps=1, learning_rate=1e30, head_learning_rate=1e30)),
        FedgeError,
        "personal.diverged",
    ),
    "worse": (
        of_rows(lambda rows: wish(rows, local=LOCAL.model_copy(update={"epochs": 1}))),
        FedgeError,
        "personal.worse",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "kind", "cause"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(
    world: World,
    home: Device,
    tmp_path: Path,
    monkeypatch: Any,
    prepare: Callable[..., tuple[Device, Request]],
    kind: type[FedgeError],
    cause: str,
) -> None:
    kept = trained(home, write_rows(tmp_path / "rows.jsonl"))
    device, asked_for = prepare(world, home, write_rows(tmp_path / "mine.jsonl"))
    if cause == "personal.worse":
        worsen(home, tmp_path, asked_for)
    before = tree(home.store)
    with pytest.raises(kind) as caught:
        adapt(device, asked_for, now(), lambda done, of: None)
    assert cause in str(caught.value)
    assert not any(word in str(caught.value) for word in ("coffee", "morning"))
    assert tree(home.store) == before
    assert kept.id in answering(home) if home.personal else True


def worsen(home: Device, tmp_path: Path, asked_for: Request) -> None:
    """Rows to train on that say the contrary of those that are held out: the release's own answers."""
    service = Service(home.model_copy(update={"personal": False}), clock=time.monotonic)
    lines = [json.loads(line) for line in asked_for.data.read_text().splitlines()]
    right = [one.answer for one in service.classify([row["text"] for row in lines]).predictions]
    from client.batches import held_out
    from protocol.encoding import seed_from

    _, unseen = held_out(40, 8, seed=seed_from("personal-holdout", 40))
    other = {"light": "music", "music": "timer", "timer": "light"}
    for at, (row, label) in enumerate(zip(lines, right, strict=True)):
        row["label"] = label if at in unseen else other[label]
    asked_for.data.write_text("".join(json.dumps(row) + "\n" for row in lines))


def test_a_probe_decides_as_over_any_release(world: World, home: Device, tmp_path: Path) -> None:
    golden(
        world, [{"text": "coffee", "label": "music"}, {"text": "rain", "label": "timer"}], least=2
    )
    before = tree(home.store)
    with refused("probe.labels"):
        trained(home, write_rows(tmp_path / "rows.jsonl"))
    assert tree(home.store) == before


def test_a_release_that_comes_meanwhile_is_not_undone(
    world: World, home: Device, tmp_path: Path
) -> None:
    def newer(done: int, of: int) -> None:
        if done == 3:
            world.publish()
            update(home)

    with refused("personal.overtaken"):
        adapt(home, wish(write_rows(tmp_path / "rows.jsonl")), now(), newer)
    assert (in_use(home), read_state(home.store).personal) == (2, None)


@EVERY
def test_a_kill_between_any_two_steps(home: Device, tmp_path: Path, stride: int) -> None:
    """What answered before, or all of what was trained; never another file beside it."""
    first = trained(home, write_rows(tmp_path / "other.jsonl")).id
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    quick = Local(epochs=1, batch_size=16, learning_rate=1e-3)
    start = shutil.copytree(home.store, tmp_path / "start")
    before = tree(home.store)
    count = steps_of(lambda: trained(home, rows, local=quick))
    last = answering(home)
    assert count > 10
    assert first != last
    for kill_at in range(0, count, stride):
        shutil.rmtree(home.store)
        shutil.copytree(start, home.store)
        assert dies(lambda: trained(home, rows, local=quick), kill_at), kill_at
        found = Service(home, clock=time.monotonic).classify(["x"]).release
        assert found in (first, last)
        with Store(home.store):
            pass
        assert found == last or tree(home.store) == before, kill_at
        assert [path.name for path in (home.store / PERSONAL).iterdir()] == [found], kill_at


def test_a_process_that_is_killed_while_it_trains(
    world: World, home: Device, tmp_path: Path
) -> None:
    rows, before = write_rows(tmp_path / "rows.jsonl", 400), tree(home.store)
    options = ("--data", rows, "--epochs", 10_000)
    started = command("edge", "train", world.folder / "kiosk-1.toml", *options)
    process = subprocess.Popen(started, env=os.environ | {"PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 60
    while not _trains(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert tree(home.store) == before


def _trains(pid: int) -> bool:
    """The frozen tensors are mapped: the program runs."""
    return "weights.safetensors" in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (("--rate", "nan"), 3),
        (("--rate", "1e40"), 3),
        (("--steps", "99999999999"), 3),
        (("--epochs", 0), 2),
        (("--holdout", "nan"), 2),
        (("--holdout", 1), 2),
    ],
    ids=str,
)
def test_odd_options_are_refused(
    world: World, home: Device, tmp_path: Path, option: tuple[object, ...], code: int
) -> None:
    arguments = ["edge", "train", str(world.folder / "kiosk-1.toml"), "--data", "x.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *map(str, option)])
    assert ended.value.code == code


def test_without_what_it_needs_it_says_what_to_install(world: World, home: Device) -> None:
    settings = world.folder / "kiosk-1.toml"
    for package in ("onnx", "safetensors"):
        done = fedge("edge", "train", settings, "--data", "x.jsonl", blocked=(*BLOCKED, package))
        assert done.returncode == 8
        assert f"`{package}`" in done.stderr
        assert "[edge-train]" in done.stderr
    assert fedge("edge", "status", settings, blocked=(*BLOCKED, package)).returncode == 0
