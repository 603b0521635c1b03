"""``kill -9`` between any two steps of an update leaves a device that answers, and that updates again."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from delivery import releases
from delivery.repository import Repository
from edge_runtime import agent
from edge_runtime.backends import open_device
from edge_runtime.settings import Device
from edge_runtime.store import Store, read_state, release_folder
from protocol.errors import FedgeError
from tests.delivery_world import World, in_use, now, update
from tests.device_kinds import DeviceKind, decoder_kind

STEPS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "link", "symlink", "remove")
Act = Callable[[], object]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> DeviceKind:
    return decoder_kind(tmp_path_factory.mktemp("texts"))


def counting(kill_at: int | None, counted: list[str]) -> pytest.MonkeyPatch:
    """Notes every step that changes a disk; dies before the one with the number ``kill_at``."""
    patch = pytest.MonkeyPatch()

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            if len(counted) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            counted.append(name)
            return real(*args, **named)

        return step

    for name in STEPS:
        patch.setattr(os, name, wrap(name, getattr(os, name)))
    return patch


def steps_of(act: Act) -> int:
    counted: list[str] = []
    patch = counting(None, counted)
    try:
        act()
    finally:
        patch.undo()
    return len(counted)


def dies(act: Act, kill_at: int) -> bool:
    child = os.fork()
    if child == 0:
        counting(kill_at, [])
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def answers(device: Device) -> int:
    """What the device serves now, loaded and checked as its service would; no lock is needed."""
    state = read_state(device.store)
    assert state.current is not None
    open_device(device).load(release_folder(device.store, state.current))
    return state.installed[state.current].seq


EVERY = pytest.mark.parametrize(
    "stride", [4, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"]
)


def crash_everywhere(
    world: World, act: Act, device: Device, seqs: set[int], end: int, stride: int
) -> None:
    start = world.folder / "start"
    shutil.copytree(device.store, start, symlinks=True)

    def again() -> None:
        shutil.rmtree(device.store)
        shutil.copytree(start, device.store, symlinks=True)

    count = steps_of(act)
    assert count > 15
    for kill_at in range(0, count, stride):
        again()
        assert dies(act, kill_at), kill_at
        assert answers(device) in seqs, kill_at
        update(device)
        assert answers(device) == end, kill_at
        with Store(device.store) as store:
            left = {path.name for path in (device.store / "releases").iterdir()}
            assert left == set(store.state.installed), kill_at
            assert not list((device.store / "staging").iterdir()), kill_at


@EVERY
def test_a_kill_between_steps_of_an_update(world: World, stride: int) -> None:
    device = world.device()
    world.publish()
    update(device)
    world.publish()
    crash_everywhere(world, lambda: update(device), device, {1, 2}, end=2, stride=stride)


@EVERY
def test_a_kill_between_steps_of_an_update_of_texts(
    texts: DeviceKind, tmp_path: Path, stride: int
) -> None:
    world = texts.world(tmp_path / "world")
    device = world.device()
    world.publish()
    update(device)
    world.publish()
    crash_everywhere(world, lambda: update(device), device, {1, 2}, end=2, stride=stride)


@EVERY
def test_a_kill_between_steps_of_a_rollback(world: World, stride: int) -> None:
    device = world.device()
    for _ in range(2):
        world.publish()
        update(device)
    count = steps_of(lambda: agent.roll_back(device, "tests", now()))
    assert in_use(device) == 1
    for kill_at in range(0, count, stride):
        agent.update(device, now(), retry=True)
        assert in_use(device) == 2
        assert dies(lambda: agent.roll_back(device, "tests", now()), kill_at), kill_at
        assert answers(device) in {1, 2}


@EVERY
def test_a_kill_while_a_withdrawn_release_is_left(world: World, stride: int) -> None:
    """After a successful refresh nothing that is withdrawn is served."""
    device = world.device()
    for _ in range(2):
        world.publish()
        update(device)
    world.revoke(2)
    crash_everywhere(world, lambda: update(device), device, {1, 2}, end=1, stride=stride)


def test_a_full_disk_leaves_what_is_in_use(world: World) -> None:
    device = world.device()
    world.publish()
    update(device)
    world.publish()
    file = releases.read_current(world.repository, "canary", "home").releases[0].files.adapter
    for limit in (0, 100, 1000, 3000, file.length - 1):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                update(device)
            except FedgeError:
                os._exit(7)
            finally:
                os._exit(8)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, limit
        assert answers(device) == 1
    update(device)
    assert answers(device) == 2


@EVERY
def test_a_publisher_that_is_killed_leaves_the_old_state_or_the_new_one(
    world: World, stride: int
) -> None:
    world.publish()
    start = shutil.copytree(world.repository.folder, world.folder / "start")
    bundle = world.bundle()
    folder = world.repository.folder

    def act() -> None:
        releases.publish(Repository(folder), bundle, world.keys, now())

    count = steps_of(act)
    assert count > 10
    for kill_at in range(0, count, stride):
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
        assert dies(act, kill_at), kill_at
        fresh = world.device(f"d-{kill_at}")
        seq = downloaded(fresh)
        assert seq in {1, 2}, kill_at
        if seq == 1:
            act()  # publishing again mends whatever lies there
            assert downloaded(fresh) == 2, kill_at


def downloaded(device: Device) -> int:
    state = agent.update(device, now(), activate=False)
    assert state.candidate is not None
    return state.installed[state.candidate].seq


def test_state_and_folders_survive_being_copied(world: World, tmp_path: Path) -> None:
    """A device's store is plain files: a backup of it serves."""
    device = world.device()
    world.publish()
    update(device)
    copy = tmp_path / "copy"
    shutil.copytree(device.store, copy, symlinks=True)
    assert answers(device.model_copy(update={"store": copy})) == 1
