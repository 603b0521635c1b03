"""Attacks on delivery: each is refused for its own reason, and the device goes on answering."""

from __future__ import annotations

import json
import shutil
import time

import pytest
from tuf.api.metadata import Snapshot, TargetFile, Targets, Timestamp

from delivery import releases
from delivery.keys import make_keys, read_keys
from delivery.repository import Repository, described
from delivery.rotation import rotate
from edge_runtime.service import Service
from edge_runtime.settings import Device
from edge_runtime.store import Store, read_state, release_folder
from protocol.delivery import CANARY, STABLE, current_name
from protocol.errors import DeliveryError, ProofError
from protocol.peft_format import EDGE_FILE
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.policy import simple_policy
from tests.delivery_attacks import (
    REFUSED,
    RELEASE,
    REPOSITORY,
    Attack,
    changed_json,
    led_to,
    metadata,
    newest,
)
from tests.delivery_world import NAME, World, days, in_use, now, refused, update


def goes_on(device: Device, seq: int = 1) -> None:
    assert in_use(device) == seq
    service = Service(device, clock=time.monotonic)
    assert service.classify(["turn on the light"]).seq == seq


def timestamp_version(device: Device) -> int:
    path = device.store / "metadata" / "timestamp.json"
    return int(json.loads(path.read_text())["signed"]["version"])


@pytest.mark.parametrize(("attack", "code"), REPOSITORY)
def test_a_false_repository_is_refused(
    world: World, kiosk: Device, attack: Attack, code: str
) -> None:
    world.publish()
    before = timestamp_version(kiosk)
    attack(world)
    with refused(code):
        update(kiosk)
    goes_on(kiosk)
    assert timestamp_version(kiosk) >= before


@pytest.mark.parametrize(("attack", "code"), RELEASE)
def test_a_false_release_under_valid_signatures_is_refused(
    world: World, kiosk: Device, attack: Attack, code: str
) -> None:
    attack(world)
    with refused(code):
        update(kiosk)
    goes_on(kiosk)
    if code in ("release.base", "release.graph", "release.device", "release.log"):
        assert list((kiosk.store / "staging").iterdir()) == []  # refused before any download


@pytest.mark.parametrize("files", [["timestamp.json"], ["timestamp.json", "{}.snapshot.json"]])
def test_what_was_current_once_is_not_taken_again(
    world: World, kiosk: Device, files: list[str]
) -> None:
    old = shutil.copytree(metadata(world), world.folder / "old")
    snapshot = world.repository.roles["snapshot"].signed.version
    world.publish()
    update(kiosk)
    for name in files:
        shutil.copy(old / name.format(snapshot), metadata(world) / name.format(snapshot))
    with refused(REFUSED):
        update(kiosk)
    goes_on(kiosk, 2)


def test_a_canarys_key_signs_nothing_for_stable(world: World, kiosk: Device) -> None:
    """The key of the canaries cannot list targets of `stable`, nor sign it alone."""
    stable = world.device("kiosk-2", channel=STABLE)
    world.promote(1)
    update(stable)
    targets = world.repository.copy(CANARY, Targets)
    path = f"{STABLE}/{current_name('stolen')}"
    targets.targets[path] = TargetFile.from_data(path, b"{}", ["sha256"])
    world.repository.commit({CANARY: targets}, {}, world.keys, now())
    with refused("release.unknown"):
        update(stable.model_copy(update={"name": "stolen"}))
    world.publish()
    alone = world.keys.only(["gate", "snapshot", "timestamp"])
    with refused("keys.missing"):
        releases.promote(world.repository, NAME, 2, alone, now(), rollout_permille=1000)
    world.promote(2)
    changed_json(newest(world, STABLE), lambda document: document["signatures"].__delitem__(0))
    for other in json.loads(newest(world, STABLE).read_text())["signatures"][1:]:
        changed_json(
            newest(world, STABLE), lambda document, o=other: document["signatures"].remove(o)
        )
    led_to(world, STABLE)
    with refused(REFUSED):
        update(stable)
    goes_on(stable)


def test_stolen_online_keys_push_versions_up_until_they_are_replaced(
    world: World, kiosk: Device
) -> None:
    repository = world.repository
    honest = shutil.copytree(repository.folder, world.folder / "honest")
    snapshot, timestamp = (
        repository.copy("snapshot", Snapshot),
        repository.copy("timestamp", Timestamp),
    )
    for role, content in (("snapshot", snapshot), ("timestamp", timestamp)):
        repository.roles[role].signed.version = 10**9
        if role == "timestamp":
            timestamp.snapshot_meta = described(repository.roles["snapshot"])
        made = repository.sign([repository.root], role, content, [world.keys], now())
        repository.publish({role: made})
    update(kiosk)
    shutil.rmtree(repository.folder)
    shutil.copytree(honest, repository.folder)
    world.repository = Repository(repository.folder)
    world.publish()
    with refused(REFUSED):
        update(kiosk)
    goes_on(kiosk)
    make_keys(world.folder / "new", ["snapshot", "timestamp"])
    new = read_keys([world.folder / "new"])
    rotate(world.repository, ["snapshot", "timestamp"], world.keys, new, now())
    update(kiosk)
    goes_on(kiosk, 2)


def test_a_release_needs_the_witnesses_of_the_devices_policy(world: World, kiosk: Device) -> None:
    key = VerifierKey(name="w", type=KeyType.COSIGNATURE, public=world.log.verifier.public[::-1])
    (world.folder / "policy").write_text(simple_policy(world.log.verifier, [key], 1).render())
    world.publish()
    with refused("release.passport"):
        update(kiosk)
    goes_on(kiosk)


def test_an_adapter_larger_than_the_device_takes(world: World, kiosk: Device) -> None:
    world.publish()
    with refused("release.size"):
        update(kiosk.model_copy(update={"most_bytes": 100}))
    goes_on(kiosk)


def test_a_clock_that_is_a_year_behind(world: World, kiosk: Device) -> None:
    """An expired repository would look fresh to it."""
    world.publish()
    with refused("clock.behind"):
        update(kiosk, now() - days(365))
    goes_on(kiosk)
    update(kiosk, now() - days(0.5))
    goes_on(kiosk, 2)


def test_two_agents_do_not_meet(world: World, kiosk: Device) -> None:
    world.publish()
    with Store(kiosk.store), refused("store.busy"):
        update(kiosk)
    goes_on(kiosk)


def test_a_devices_own_release_is_checked_when_it_is_loaded(world: World, kiosk: Device) -> None:
    """Storage that rots, or is written to by others: the old one serves on; a restart serves nothing."""
    service = Service(kiosk, clock=time.monotonic)
    folder = release_folder(kiosk.store, read_state(kiosk.store).current or "")
    data = bytearray((folder / EDGE_FILE).read_bytes())
    data[-9] ^= 1
    (folder / EDGE_FILE).write_bytes(data)
    service.follow()
    assert service.classify(["light"]).seq == 1
    fresh = Service(kiosk, clock=time.monotonic)
    assert fresh.health()["status"] == "empty"
    with pytest.raises(DeliveryError, match=r"serve\.empty"):
        fresh.classify(["light"])
    assert read_state(kiosk.store).current is not None


def test_a_wrong_policy_is_no_policy(world: World, kiosk: Device) -> None:
    (world.folder / "policy").write_text("log nonsense\n")
    world.publish()
    with pytest.raises((ProofError, DeliveryError)):
        update(kiosk)
    goes_on(kiosk)
