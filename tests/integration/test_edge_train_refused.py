"""`fedge edge train`: what is refused, and what is killed, leaves the device as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.service import Service
from edge_runtime.settings import Device
from edge_runtime.store import PERSONAL, Store, held, read_state
from fedge.main import main
from fedge.personal import Request, adapt
from protocol.errors import ArtefactError, DataError, FedgeError
from protocol.peft_format import EDGE_FILE, RELEASE_FILE
from protocol.plan_sections import Local
from tests.delivery_world import World, in_use, now, refused, update
from tests.integration.edge_training import (
    BLOCKED,
    LOCAL,
    ROOT,
    answering,
    command,
    fedge,
    golden,
    trained,
    tree,
    wish,
    write_rows,
)
from tests.integration.test_device_crash import EVERY, dies, steps_of


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
        (("--text", ""), 3),
        (("--label", "x" * 300), 3),
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
