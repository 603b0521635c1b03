"""What becomes of releases on a device, whichever kind its base is: installed, swapped, refused, left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import agent
from edge_runtime.adapter import read_note
from edge_runtime.backends import Backend
from edge_runtime.backends.encoder import EncoderBackend
from edge_runtime.backends.writing import WritingBackend
from edge_runtime.decoder.http.followed import DeviceTexts
from edge_runtime.decoder.http.forms import ApiError, ChatCompletion, Completion, parse_asked
from edge_runtime.following import Follower
from edge_runtime.store import MOST_TRIES, Store, read_state, release_folder
from protocol.errors import (
    ArtefactError,
    DataError,
    FedgeError,
    MachineError,
)
from protocol.peft_format import EDGE_FILE
from tests.delivery_world import World, in_use, now, passport, refused, update
from tests.device_kinds import (
    TOKENS,
    DeviceKind,
    changed_note,
)

Kinds = dict[str, DeviceKind]


BROKEN = ["unreadable", "missing", "kind", "machine"]


@pytest.mark.parametrize(
    ("name", "key", "fault"),
    [
        *(("images", "image", fault) for fault in BROKEN),
        *(
            pytest.param("sounds", "audio", fault, marks=pytest.mark.slow)
            for fault in BROKEN
            if fault != "machine"
        ),
    ],
)
def test_a_fault_of_the_device_marks_no_release(
    kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, fault: str
) -> None:
    """Its rows, or a package that it lacks: every release would be failed for good."""
    world = kinds[name].world(tmp_path / "world")
    device, path = world.device(), world.folder / "probe.json"
    good, broken = path.read_text(), tmp_path / "secret.png"
    rows = {
        "unreadable": [{key: str(broken), "label": "light"}],
        "missing": [{key: "secret-gone.png", "label": "light"}],
        "kind": [{"text": "secret", "label": "light"}],
    }
    broken.write_bytes(b"secret")
    if fault in rows:
        path.write_text(json.dumps(json.loads(good) | {"rows": rows[fault], "least_correct": 1}))
    else:
        monkeypatch.setitem(sys.modules, "PIL", None)
    offered = world.publish()
    for _ in range(MOST_TRIES + 1):
        with pytest.raises(MachineError if fault == "machine" else DataError):
            update(device)
    state = read_state(device.store)
    assert (state.failed, state.tries, state.candidate) == ({}, 0, offered.id)
    assert device.report is not None
    assert "secret" not in device.report.read_text()
    path.write_text(good)
    monkeypatch.undo()
    assert update(device).current == offered.id


def test_a_lack_of_the_machine_while_a_release_is_tried_marks_none(
    kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do as many of them as a release has tries; a probe that ended the agent still counts."""
    world = kinds["encoder"].world(tmp_path / "world")
    device, offered = world.device(), world.publish()

    def lacking(*_: Any) -> Any:
        raise MachineError("no memory for a cache", "tests")

    monkeypatch.setattr(EncoderBackend, "load", lacking)
    for _ in range(MOST_TRIES + 1):
        with pytest.raises(MachineError):
            update(device)
    with Store(device.store) as store:
        assert (store.state.failed, store.state.tries) == ({}, 0)
        store.begin(offered.id)
    with pytest.raises(MachineError):
        update(device)
    assert read_state(device.store).tries == 1
    monkeypatch.undo()
    assert update(device).current == offered.id


def test_a_release_is_installed_swapped_refused_and_rolled_back(
    kind: DeviceKind, backend: Backend[Any], world: World
) -> None:
    device = world.device()
    world.publish()
    assert update(device).outcome.startswith("release 1 in use: ")
    follower: Follower[Any] = Follower(device, backend.load, clock=lambda: 0.0)
    first = follower.serving
    assert (first.seq, follower.swaps) == (1, 1)
    world.publish()
    update(device)
    follower.follow()
    second = follower.serving
    assert second.seq == 2
    assert second.adapter is not first.adapter
    world.publish("bad")
    with refused("probe.labels"):
        update(device)
    follower.follow()
    assert follower.serving is second
    assert [
        fault.seq for fault in agent.report(device, read_state(device.store), now()).faults
    ] == [3]
    agent.roll_back(device, "tests", now())
    follower.follow()
    assert follower.serving.seq == 1
    assert update(device).outcome == "up to date"  # neither is tried again
    world.revoke(1)
    update(device)
    follower.follow()
    assert follower.health()["status"] == "empty"
    with refused("serve.empty"):
        _ = follower.serving


def test_what_writes_serves_what_its_probe_saw(
    kind: DeviceKind, backend: Backend[Any], world: World
) -> None:
    if not isinstance(backend, WritingBackend):
        pytest.skip("it answers with labels: tests/integration/test_device_service.py")
    device = world.device()
    world.publish()
    update(device)
    service = DeviceTexts(device, backend, clock=lambda: 0.0, queue=1)
    row = next(row for row in kind.rows if "text" in row)
    form = {"model": "home", "temperature": 0, "max_tokens": TOKENS}
    asked = parse_asked(Completion, json.dumps(form | {"prompt": row["text"]}).encode())
    steps = [step for step in service.prepare(asked).steps if step is not None]
    assert "".join(step.text for step in steps).strip() == row["contains"].strip()
    chat = form | {"messages": [{"role": "user", "content": "hi"}]}
    asked = parse_asked(ChatCompletion, json.dumps(chat).encode())
    if kind.name == "decoder":
        assert service.prepare(asked).prompt_tokens
    else:
        with pytest.raises(ApiError, match="knows no chats"):
            service.prepare(asked)
    service.end()


def test_a_foreign_release_is_refused_before_and_after_the_download(
    kind: DeviceKind, world: World
) -> None:
    device = world.device()
    world.publish()
    update(device)
    for code, facts in (("release.base", "base"), ("release.graph", "graph")):
        world.publish(**{facts: "0" * 64})
        with refused(code):
            update(device)

    def foreign(folder: Path) -> None:  # its facts say otherwise
        changed_note(folder, base_fingerprint="0" * 64)
        passport(world.log, folder, read_note(folder).round)

    world.publish(change=foreign, log_index=world.log.size + 3)
    with refused("probe.load"):
        update(device)
    assert in_use(device) == 1


def test_a_rotten_file_is_left_and_fetched_again(
    kind: DeviceKind, backend: Backend[Any], world: World
) -> None:
    device = world.device()
    for _ in range(2):
        world.publish()
        update(device)
    state = read_state(device.store)
    assert state.current is not None
    path = release_folder(device.store, state.current) / EDGE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    fresh: Follower[Any] = Follower(device, backend.load, clock=lambda: 0.0)
    assert fresh.serving.seq == 1  # until the next update mends it
    assert "damaged" in fresh.trouble
    update(device)
    again: Follower[Any] = Follower(device, backend.load, clock=lambda: 0.0)
    assert (again.serving.seq, again.trouble) == (2, "")


def test_what_fails_while_it_answers_is_left(
    kind: DeviceKind, backend: Backend[Any], world: World
) -> None:
    device = world.device()
    for _ in range(2):
        world.publish()
        update(device)
    follower: Follower[Any] = Follower(device, backend.load, clock=lambda: 0.0)

    def failing(kind_of_error: type[FedgeError]) -> Any:
        yield "a step"
        raise kind_of_error("as a graph that does not run", "tests")

    harmless = [DataError, MachineError] * device.faults
    for fault in (*harmless, *[ArtefactError] * device.faults):
        assert follower.serving.seq == 2
        steps = follower.watched(follower.serving, failing(fault))
        assert next(steps) == "a step"
        with pytest.raises(fault):
            next(steps)
    assert follower.serving.seq == 1
    assert "failed answers within" in next(iter(read_state(device.store).failed.values())).reason
