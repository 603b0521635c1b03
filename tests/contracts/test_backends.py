"""What a device promises of a base, whichever kind it is: one contract for all of them. (docs/adr/0061)"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import agent
from edge_runtime.adapter import read_note, read_tensors
from edge_runtime.backends import OPENERS, Backend, open_backend, writes_text
from edge_runtime.backends.encoder import EncoderBackend
from edge_runtime.backends.writing import WritingBackend
from edge_runtime.base import read_any_manifest
from edge_runtime.decoder.http.followed import DeviceTexts
from edge_runtime.decoder.http.forms import ApiError, ChatCompletion, Completion, parse_asked
from edge_runtime.following import Follower
from edge_runtime.passport import read_policy
from edge_runtime.probe import TRIES, Probe, check_health
from edge_runtime.store import MOST_TRIES, Store, read_state, release_folder
from protocol.errors import (
    ArtefactError,
    DataError,
    DeliveryError,
    FedgeError,
    MachineError,
    ProofError,
)
from protocol.manifests import graphs_digest
from protocol.peft_format import EDGE_FILE
from tests.delivery_world import World, in_use, now, passport, refused, update
from tests.device_kinds import (
    KINDS,
    TOKENS,
    DeviceKind,
    changed_note,
    decoder_kind,
    images_kind,
    overwritten,
    seq2seq_kind,
)

Kinds = dict[str, DeviceKind]


@pytest.fixture(scope="module")
def kinds(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_base: Path,
    released: dict[str, Path],
    delivery_rows: list[dict[str, str]],
    tiny_images: Path,
    write_adapter: Callable[..., Path],
) -> Kinds:
    adapters = {"good": released["a"], "bad": released["b"]}
    encoder = DeviceKind(name="encoder", base=tiny_base, adapters=adapters, rows=delivery_rows)
    decoder = decoder_kind(tmp_path_factory.mktemp("decoder"))
    return {
        "encoder": encoder,
        "images": images_kind(tmp_path_factory.mktemp("images"), tiny_images, write_adapter),
        "decoder": decoder,
        "seq2seq": seq2seq_kind(tmp_path_factory.mktemp("seq2seq")),
    }


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, kinds: Kinds) -> DeviceKind:
    return kinds[request.param]


@pytest.fixture(scope="module")
def backend(kind: DeviceKind) -> Backend[Any]:
    return open_backend(kind.base, threads=1)


@pytest.fixture
def world(kind: DeviceKind, tmp_path: Path) -> World:
    return kind.world(tmp_path / "world")


@pytest.fixture
def copied(kind: DeviceKind, tmp_path: Path) -> Path:
    return shutil.copytree(kind.adapters["good"], tmp_path / "copied")


def test_every_kind_of_base_has_a_backend(kinds: Kinds) -> None:
    assert {type(read_any_manifest(kind.base)) for kind in kinds.values()} == set(OPENERS)


def test_a_base_opens_as_what_its_manifest_says(kind: DeviceKind, backend: Backend[Any]) -> None:
    assert writes_text(kind.base) == (kind.name not in ("encoder", "images"))
    items = {"encoder": "text", "images": "image"}
    assert items.get(kind.name, "token") == backend.ITEM


def test_facts_name_every_graph(kind: DeviceKind) -> None:
    manifest = read_any_manifest(kind.base)
    digests = {graphs_digest(manifest)}
    for graph in manifest.graphs():
        entry = manifest.files[graph.file].model_copy(update={"sha256": "0" * 64})
        files = manifest.files | {graph.file: entry}
        digests.add(graphs_digest(manifest.model_copy(update={"files": files})))
    assert len(digests) == 1 + len(manifest.graphs())
    if len(manifest.graphs()) == 1:
        assert graphs_digest(manifest) == manifest.files[manifest.graph.file].sha256


def test_rows_tell_releases_apart_and_the_same_each_time(
    kind: DeviceKind, backend: Backend[Any]
) -> None:
    probe = kind.probe()
    for _ in range(2):
        health = check_health(kind.adapters["good"], backend, probe)
        assert (health.correct, health.rows) == (len(kind.rows), len(kind.rows))
        assert health.latency_ms > 0
        with pytest.raises(DeliveryError, match=rf"probe\.labels: 0 of {len(kind.rows)}") as caught:
            check_health(kind.adapters["bad"], backend, probe)
    for row in kind.rows:  # a report goes out: none of the device's own texts is in it
        if "contains" in row:
            assert row["contains"] not in caught.value.cause
    assert check_health(kind.adapters["good"], backend, kind.probe(least_correct=1)).correct


def test_a_busy_moment_fails_no_release(kind: DeviceKind, backend: Backend[Any]) -> None:
    class Ticking:
        """By which the first ``slow`` answers take an hour each, the others no time."""

        def __init__(self, slow: int) -> None:
            self.slow, self.asked, self.now = slow, 0, 0.0

        def __call__(self) -> float:
            if self.asked % 2 and self.asked // 2 < self.slow:
                self.now += 3600
            self.asked += 1
            return self.now

    rows = len(kind.rows)
    check_health(kind.adapters["good"], backend, kind.probe(), Ticking(rows * (TRIES - 1)))
    with pytest.raises(DeliveryError, match=rf"probe\.latency: .* ms a {backend.ITEM},"):
        check_health(kind.adapters["good"], backend, kind.probe(), Ticking(rows * TRIES))


def test_rows_of_another_kind_are_refused(kind: DeviceKind, backend: Backend[Any]) -> None:
    sorts = kind.name in ("encoder", "images")
    other = {"contains": "x"} if sorts else {"label": "x"}
    limits = {"least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 500}
    probe = Probe.model_validate({"rows": [{"text": "rain", **other}], **limits})
    reason = "the base writes no text" if sorts else "labels, and the base writes text"
    with pytest.raises(DataError, match=reason):
        check_health(kind.adapters["good"], backend, probe)
    if kind.name == "encoder":
        values = [{"text": "rain", "value": 1.0}]
        probe = Probe.model_validate({"rows": values, "within": 1.0, **limits})
        with pytest.raises(DeliveryError, match=r"probe\.labels: the release answers with"):
            check_health(kind.adapters["good"], backend, probe)


def test_a_row_that_a_base_cannot_read_is_named_by_its_number(
    kind: DeviceKind, backend: Backend[Any]
) -> None:
    if kind.name in ("encoder", "images"):
        pytest.skip("what is too long is cut")
    limits = {"least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 500}
    rows = [kind.rows[0], {"text": "secret " * 60, "contains": "x"}]
    probe = Probe.model_validate({"rows": rows, **limits})
    with pytest.raises(DataError, match=r"probe: row 2: the text has \d+ tokens") as caught:
        check_health(kind.adapters["good"], backend, probe)
    assert "secret" not in caught.value.cause


def test_an_image_that_cannot_be_read_is_named_by_its_number(kinds: Kinds, tmp_path: Path) -> None:
    """Nothing of it is told; nor does a text become a path."""
    kind = kinds["images"]
    broken = tmp_path / "secret.png"
    broken.write_bytes(b"secret")
    backend = open_backend(kind.base, threads=1)
    limits = {"least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 500}
    for row, reason in (
        ({"image": str(broken)}, "image 2: its image is no PNG or JPEG"),
        ({"image": str(tmp_path / "secret-gone.png")}, "image 2: its image cannot be read"),
        ({"text": str(kind.rows[0]["image"])}, "answers images, and texts were given"),
    ):
        first = kind.rows[:1] if "image" in row else []
        rows = [*first, {**row, "label": "light"}]
        probe = Probe.model_validate({"rows": rows, **limits})
        with pytest.raises(DataError, match=reason) as caught:
            check_health(kind.adapters["good"], backend, probe)
        assert "secret" not in str(caught.value)


BROKEN = ["unreadable", "missing", "kind", "machine"]


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_of_the_device_marks_no_release(
    kinds: Kinds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its rows, or a package that it lacks: every release would be failed for good."""
    world = kinds["images"].world(tmp_path / "world")
    device, path = world.device(), world.folder / "probe.json"
    good, broken = path.read_text(), tmp_path / "secret.png"
    rows = {
        "unreadable": [{"image": str(broken), "label": "light"}],
        "missing": [{"image": "secret-gone.png", "label": "light"}],
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


def test_what_does_not_fit_is_not_loaded(
    kind: DeviceKind, backend: Backend[Any], kinds: Kinds, copied: Path
) -> None:
    assert backend.load(copied) is not None
    for other in set(KINDS) - {kind.name}:
        with pytest.raises(ArtefactError):
            backend.load(kinds[other].adapters["good"])
    changed_note(copied, base_fingerprint="0" * 64)
    with pytest.raises(ArtefactError, match="belongs to base"):
        backend.load(copied)


def test_who_trusts_a_log_loads_what_is_in_it(
    backend: Backend[Any], world: World, copied: Path
) -> None:
    policy = read_policy(world.folder / "policy")
    with pytest.raises(ProofError):
        backend.load(copied, policy)
    passport(world.log, copied, read_note(copied).round)
    assert backend.load(copied, policy) is not None


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "empty"])
def test_damaged_files_are_not_loaded(backend: Backend[Any], copied: Path, damage: str) -> None:
    path = copied / EDGE_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"changed": bytes(data), "cut": data[:-9], "empty": b""}[damage])
    with pytest.raises(ArtefactError):
        backend.load(copied)


def test_answers_that_are_not_finite_are_none(
    kind: DeviceKind, backend: Backend[Any], copied: Path
) -> None:
    """Finite weights whose product is not: only running them shows."""
    tensors = read_tensors(copied / EDGE_FILE)
    overwritten(copied, {name: np.full_like(value, 3e38) for name, value in tensors.items()})
    with pytest.raises(DeliveryError, match=r"probe\.load"):
        check_health(copied, backend, kind.probe())


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
