"""From the publisher to the device and back: what is offered is taken, what is withdrawn is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tuf.ngclient import Updater

from delivery import releases
from delivery.keys import make_keys, read_keys
from delivery.repository import Repository
from delivery.rotation import rotate
from delivery.status import gather, read_reports
from edge_runtime import agent
from edge_runtime.fetching import Fetcher
from edge_runtime.store import read_state
from protocol.delivery import CANARY, STABLE, in_rollout
from protocol.errors import DeliveryError
from tests.delivery_world import NAME, World, days, in_use, now, refused, update


def test_a_release_reaches_a_canary_then_everybody(world: World) -> None:
    canary, kiosk = world.device("canary-1"), world.device("kiosk-1", channel=STABLE)
    offer = world.publish()
    assert update(canary).current == offer.id
    with refused("release.unknown"):
        update(kiosk)
    world.promote(1)
    assert update(kiosk).current == offer.id
    assert update(kiosk).outcome == "up to date"
    world.publish()
    assert update(canary).outcome.startswith("release 2 in use: 4 of 4 right")
    assert (in_use(canary), in_use(kiosk)) == (2, 1)
    state = read_state(canary.store)
    assert state.previous == offer.id


def test_a_withdrawn_release_is_left_and_the_one_before_comes_back(world: World) -> None:
    kiosk = world.device()
    world.publish()
    update(kiosk)
    world.publish()
    update(kiosk)
    world.revoke(2)
    assert update(kiosk).outcome == "up to date"  # it had it still
    assert in_use(kiosk) == 1
    world.revoke(1)
    state = update(kiosk)
    assert (state.current, state.installed) == (None, {})
    assert world.publish().seq == 3  # numbers are not used again
    update(kiosk)
    assert in_use(kiosk) == 3


def test_a_new_device_gets_what_is_on_offer_to_it(world: World) -> None:
    world.publish()
    narrow = world.publish(rollout=300)
    for number in range(12):
        device = world.device(f"d-{number}")
        update(device)
        assert in_use(device) == (2 if in_rollout(device.id, narrow.id, 300) else 1)


def test_a_channel_without_a_release_is_no_attack(world: World) -> None:
    world.publish()
    with pytest.raises(DeliveryError, match="nothing was offered yet to channel `stable`") as none:
        update(world.device(channel=STABLE))
    assert "evidence" not in none.value.remedy


def test_a_rollout_only_grows(world: World) -> None:
    offer = world.publish()
    outside = next(
        name for name in map("d-{}".format, range(99)) if not in_rollout(name, offer.id, 100)
    )
    kiosk = world.device(outside, channel=STABLE)
    world.promote(1, rollout=100)
    assert update(kiosk).outcome == "there is no release for this device"
    world.promote(1, rollout=1000)
    assert update(kiosk).current == offer.id
    with refused("release.rollout"):
        world.promote(1, rollout=50)


def test_a_bad_adapter_is_stopped_by_the_probe_and_named(world: World) -> None:
    """Garbage weights, signed and logged: they reach canaries only, and go back by themselves."""
    canary, kiosk = world.device("canary-1"), world.device("kiosk-1", channel=STABLE)
    good = world.publish()
    world.promote(1)
    update(canary)
    update(kiosk)
    bad = world.publish("bad")
    with pytest.raises(DeliveryError, match="the first wrong one is row 1: ") as failure:
        update(canary)
    assert failure.value.code == "probe.labels"
    update(kiosk)
    assert read_state(canary.store).current == read_state(kiosk.store).current == good.id
    assert update(canary).outcome == "up to date"  # it is not tried again
    reports, odd = read_reports(world.folder / "reports")
    told = gather(world.repository, reports, now())
    rows = {(row["release"], row["channel"]): row for row in told["releases"]}
    assert odd == []
    assert list(rows[f"{NAME}-r0002", CANARY]["failed"]) == ["canary-1"]
    assert "0 of 4" in rows[f"{NAME}-r0002", CANARY]["failed"]["canary-1"]
    assert rows[f"{NAME}-r0001", CANARY]["running"] == ["canary-1"]
    assert (f"{NAME}-r0002", STABLE) not in rows
    world.revoke(bad.seq)
    world.publish()
    update(canary)
    assert in_use(canary) == 3


def test_a_plain_tuf_client_reads_the_repository(world: World, tmp_path: Path) -> None:
    offer = world.publish()
    fetcher = Fetcher(str(world.repository.folder), deadline_s=60)
    root = (world.repository.folder / "root.json").read_bytes()
    client = Updater(
        str(tmp_path / "m"),
        fetcher.metadata_url,
        str(tmp_path),
        fetcher.targets_url,
        fetcher=fetcher,
        bootstrap=root,
    )
    target = client.get_targetinfo(f"{CANARY}/{offer.files.adapter.name}")
    assert target is not None
    assert target.custom["seq"] == 1
    data = Path(client.download_target(target)).read_bytes()
    assert len(data) == offer.files.adapter.length
    assert client.get_targetinfo(f"{CANARY}/a/b") is None


def test_a_download_that_broke_off_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    offer, kiosk = world.publish(), world.device()
    real, read = Fetcher.chunks, []

    def breaking(self: Fetcher, url: str, start: int = 0) -> Any:
        for chunk in real(self, url, start):
            if url.endswith(".onnx_adapter"):
                read.append((start, len(chunk)))
                if not start:
                    yield chunk[: len(chunk) // 2]
                    raise ConnectionResetError
            yield chunk

    monkeypatch.setattr(Fetcher, "chunks", breaking)
    with pytest.raises(DeliveryError):
        update(kiosk)
    part = kiosk.store / "staging" / offer.id / "adapter.onnx_adapter"
    half = part.stat().st_size
    assert 0 < half < offer.files.adapter.length
    assert update(kiosk).current == offer.id
    assert read[-1] == (half, offer.files.adapter.length - half)


def test_what_lies_half_loaded_and_is_wrong_is_fetched_anew(world: World) -> None:
    offer, kiosk = world.publish(), world.device()
    part = kiosk.store / "staging" / offer.id / "adapter.onnx_adapter"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    assert update(kiosk).current == offer.id


def test_only_downloading_leaves_the_switch_to_activate(world: World) -> None:
    kiosk = world.device()
    world.publish()
    state = agent.update(kiosk, now(), activate=False)
    assert (state.current, state.candidate is not None) == (None, True)
    assert agent.activate(kiosk, "", now()).current == state.candidate


def test_a_rollback_by_hand_lasts(world: World) -> None:
    kiosk = world.device()
    first = world.publish()
    update(kiosk)
    second = world.publish()
    update(kiosk)
    assert agent.roll_back(kiosk, agent.BY_HAND, now()).current == first.id
    assert update(kiosk).current == first.id
    report = json.loads((world.folder / "reports/kiosk-1.json").read_text())
    assert report["faults"] == [{"reason": agent.BY_HAND, "release": second.id, "seq": 2}]
    with refused("store.unknown"):
        agent.activate(kiosk, second.id, now())
    assert agent.update(kiosk, now(), retry=True).current == second.id


def test_a_device_follows_two_root_rotations_from_its_factory_root(world: World) -> None:
    kiosk = world.device()
    world.publish()
    keys = world.keys
    for number in (1, 2):
        folder = world.folder / f"new{number}"
        names = ["root-1", "root-2", "root-3", "snapshot", "timestamp", "gate"]
        make_keys(folder, [*names, "stable-1", "stable-2"])
        roles = ["root", "snapshot", "timestamp", CANARY, STABLE]
        new = read_keys([folder])
        rotate(world.repository, roles, keys, new, now())
        keys = keys.joined(new)
    world.keys = keys
    assert Repository(world.repository.folder).root.version == 3
    world.publish()
    update(kiosk)
    assert in_use(kiosk) == 2


def test_a_device_that_was_off_for_a_year_finds_its_way(world: World) -> None:
    """It holds metadata of keys that are gone, and passes a root that has expired meanwhile."""
    kiosk = world.device()
    world.publish()
    update(kiosk)
    roles = ["root", "targets", "snapshot", "timestamp", CANARY, STABLE]
    for number, ago in enumerate((500, 400, 0)):
        folder = world.folder / f"year{number}"
        make_keys(folder, sorted({path.stem for path in (world.folder / "keys").iterdir()}))
        new = read_keys([folder])
        rotate(world.repository, roles, world.keys, new, now() - days(ago))
        world.keys = new
    offer = world.publish()
    assert update(kiosk).current == offer.id


def test_refreshing_keeps_a_repository_alive(world: World) -> None:
    world.publish()
    kiosk = world.device()
    old = now() - days(3)
    world.repository.refresh(world.keys, old)
    with refused("repository.expired"):
        update(kiosk)
    assert world.repository.refresh(world.keys, now()) == []
    update(kiosk)
    online = world.keys.only(["snapshot", "timestamp"])
    assert world.repository.refresh(online, now() + days(50)) == ["targets", CANARY, STABLE]


def test_two_publishers_do_not_meet(world: World) -> None:
    with (
        world.repository.locked(),
        refused("repository.busy"),
        Repository(world.repository.folder).locked(),
    ):
        pass


def test_the_same_release_is_not_published_twice(world: World) -> None:
    bundle = world.bundle()
    releases.publish(world.repository, bundle, world.keys, now())
    with refused("release.known"):
        releases.publish(world.repository, bundle, world.keys, now())
