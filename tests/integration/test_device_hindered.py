"""A device whose memory, disk or store fails it at the wrong moment: it answers on, and it heals."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import agent, store
from edge_runtime.following import RETRY_S
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.service import Service
from edge_runtime.settings import Device
from edge_runtime.store import METADATA, RELEASES, STAGING, Store, read_state, release_folder
from protocol.errors import DeliveryError
from protocol.peft_format import EDGE_FILE
from tests.delivery_world import World, in_use, now, refused, update

TEXTS = ["turn on the light"]


@pytest.fixture
def kiosk(world: World) -> Device:
    """Runs release 2; release 1 is the one before."""
    device = world.device()
    for _ in range(2):
        world.publish()
        update(device)
    return device


def both(device: Device) -> tuple[str, str]:
    state = read_state(device.store)
    assert state.current is not None
    assert state.previous is not None
    return state.current, state.previous


def rot(device: Device, release: str) -> None:
    path = release_folder(device.store, release) / EDGE_FILE
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def fail_often(service: Service, monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    real = EdgeRuntime.infer

    def failing(self: EdgeRuntime, texts: Any, adapter: Any = None, *more: Any) -> Any:
        if adapter is not None and adapter.folder.name == release:
            raise RuntimeError("as ONNX Runtime would")
        return real(self, texts, adapter, *more)

    monkeypatch.setattr(EdgeRuntime, "infer", failing)
    for _ in range(service.device.faults):
        with pytest.raises(DeliveryError, match=r"serve\.failed"):
            service.classify(TEXTS)


def test_following_goes_on_after_a_lack_of_memory(
    kiosk: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that ends would answer with a withdrawn release for ever."""
    clock = [0.0]
    service = Service(kiosk, clock=lambda: clock[0])
    current, previous = both(kiosk)
    real, lack = EdgeRuntime.admitted, [True]

    def scarce(self: EdgeRuntime, folder: Path, *more: Any, **named: Any) -> Any:
        if lack:
            raise MemoryError
        return real(self, folder, *more, **named)

    monkeypatch.setattr(EdgeRuntime, "admitted", scarce)
    with Store(kiosk.store) as held:
        held.activate(previous)
    service.follow()
    assert service.health()["release"] == current
    assert "MemoryError" in service.health()["trouble"]
    lack.clear()
    service.follow()
    assert service.health()["release"] == current  # not at every look
    clock[0] += RETRY_S
    service.follow()
    assert (service.health()["release"], service.health()["trouble"]) == (previous, "")


def test_a_withdrawn_release_is_not_served_when_the_one_before_is_damaged(kiosk: Device) -> None:
    service = Service(kiosk, clock=time.monotonic)
    current, previous = both(kiosk)
    rot(kiosk, previous)
    with Store(kiosk.store) as held:
        held.withdraw([current])
    service.follow()
    assert service.health()["status"] == "empty"
    with pytest.raises(DeliveryError, match=r"serve\.empty"):
        service.classify(TEXTS)


def test_a_failing_release_is_left_while_an_agent_holds_the_store(
    kiosk: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow server keeps an agent, and so the store's lock, for minutes."""
    service = Service(kiosk, clock=time.monotonic)
    current, previous = both(kiosk)
    with Store(kiosk.store):
        fail_often(service, monkeypatch, current)
        assert service.classify(TEXTS).release == previous
    assert read_state(kiosk.store).current == current  # not written down: it may have another try
    update(kiosk)
    service.follow()
    fail_often(service, monkeypatch, current)
    assert service.classify(TEXTS).release == previous
    assert list(read_state(kiosk.store).failed) == [current]


def test_a_failing_release_is_left_on_a_full_disk(
    kiosk: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(kiosk, clock=time.monotonic)
    current, previous = both(kiosk)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_whole", full)
    fail_often(service, monkeypatch, current)
    assert service.classify(TEXTS).release == previous
    assert "No space" in service.health()["trouble"]


def test_a_store_that_is_removed_stops_no_service(world: World, kiosk: Device) -> None:
    clock = [0.0]
    service = Service(kiosk, clock=lambda: clock[0])
    current, _ = both(kiosk)
    shutil.rmtree(kiosk.store)
    service.follow()
    assert service.classify(TEXTS).release == current
    assert "gone" in service.health()["trouble"]
    update(kiosk)
    service.follow()
    assert service.classify(TEXTS).release == current
    assert service.health()["trouble"] == ""


def test_a_release_that_rots_is_fetched_again(kiosk: Device) -> None:
    """Else a device would say `up to date` and have nothing to serve after its next start."""
    current, previous = both(kiosk)
    rot(kiosk, current)
    fresh = Service(kiosk, clock=time.monotonic)
    assert fresh.classify(TEXTS).release == previous  # better than none
    assert "damaged" in fresh.health()["trouble"]
    state = update(kiosk)
    assert (state.current, state.previous, state.candidate) == (current, previous, None)
    assert state.outcome == "up to date"
    fresh.follow()
    assert fresh.classify(TEXTS).release == current
    shutil.rmtree(release_folder(kiosk.store, current))
    assert update(kiosk).current == current
    assert Service(kiosk, clock=time.monotonic).health()["release"] == current


def test_a_release_that_kills_the_agent_is_not_tried_for_ever(
    world: World, kiosk: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in the probe, say: every update would end so, and take others with it."""
    bad = world.publish()
    monkeypatch.setattr(
        agent, "check_health", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    )
    for _ in range(store.MOST_TRIES):
        child = os.fork()
        if child == 0:
            try:
                update(kiosk)
            finally:
                os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with refused("probe.died"):
        update(kiosk)
    monkeypatch.undo()
    assert list(read_state(kiosk.store).failed) == [bad.id]
    assert update(kiosk).outcome == "up to date"
    assert in_use(kiosk) == 2
    assert agent.update(kiosk, now(), retry=True).current == bad.id


def test_probes_that_end_are_not_counted(world: World, kiosk: Device) -> None:
    """A power cut here and there is no reason to leave a release."""
    for _ in range(2 * store.MOST_TRIES):
        both_now = both(kiosk)
        agent.activate(kiosk, both_now[1], now())
    assert read_state(kiosk.store).tries == 0


def test_a_report_is_not_written_through_a_link(world: World, kiosk: Device) -> None:
    """Its folder may be one where others write."""
    victim = world.folder / "victim"
    victim.write_text("mine")
    assert kiosk.report is not None
    kiosk.report.with_name(f".{kiosk.report.name}.tmp").symlink_to(victim)
    update(kiosk)
    assert victim.read_text() == "mine"
    assert not kiosk.report.is_symlink()


def test_stray_files_stop_no_update(world: World, kiosk: Device) -> None:
    (kiosk.store / RELEASES / "stray").write_text("x")
    (kiosk.store / RELEASES / "link").symlink_to(world.folder)
    (kiosk.store / STAGING / "stray").write_text("x")
    (kiosk.store / STAGING / "link").symlink_to(world.folder)
    (kiosk.store / METADATA / "tmpdir").mkdir()
    world.publish()
    update(kiosk)
    assert in_use(kiosk) == 3
    assert list((kiosk.store / STAGING).iterdir()) == []
    assert (world.folder / "policy").exists()  # a link's target is not ours


def test_what_tuf_learnt_is_on_disk_before_the_device_believes_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must not bring back a state that could be replayed: a root before a theft."""
    device, synced = world.device(), set[str]()
    real = os.fsync

    def noting(descriptor: int) -> None:
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    world.publish()
    agent.update(device, now())
    metadata = device.store / METADATA
    kept = {str(path.resolve()) for path in metadata.rglob("*")}
    assert len(kept) >= 6
    assert kept | {str(metadata)} <= synced
