"""What a publisher does wrong is refused or survived: two at once, odd keys, long reasons, expired parents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from delivery import releases
from delivery.keys import make_keys, read_keys
from delivery.repository import Repository
from delivery.rotation import rotate
from delivery.status import read_reports
from edge_runtime.store import read_state
from fedge.main import cli
from protocol.delivery import CANARY, MOST_CURRENT, MOST_OFFERS, STABLE
from tests.delivery_world import NAME, World, days, in_use, now, refused, update


def test_who_opened_before_another_published_goes_on_from_there(world: World) -> None:
    """A timer's `refresh` beside a `publish`: neither takes back what the other signed."""
    late = Repository(world.repository.folder)
    first = world.publish()
    with late.locked():
        late.refresh(world.keys, now())
    kiosk = world.device()
    assert update(kiosk).current == first.id
    version = Repository(world.repository.folder).roles["timestamp"].signed.version
    assert version == world.repository.roles["timestamp"].signed.version + 1
    late = Repository(world.repository.folder)
    world.repository = Repository(world.repository.folder)
    world.publish()
    with late.locked():
        assert releases.next_seq(late, NAME) == 3


@pytest.mark.parametrize("name", ["a", "z"])
def test_an_old_and_a_new_key_of_one_name_do_not_hide_each_other(world: World, name: str) -> None:
    """`gate` signs for two channels; after `rotate canary` it is two keys."""
    world.publish()
    new, keys = world.folder / name, world.folder / "keys"
    make_keys(new, ["gate"])
    rotate(world.repository, [CANARY], world.keys, read_keys([new]), now())
    shutil.move(keys / "stable-2.key", world.folder / "away")
    for folders in ([keys, new], [new, keys]):
        world.keys = read_keys(folders)
        world.promote(world.publish().seq)
    kiosk = world.device(channel=STABLE)
    update(kiosk)
    assert in_use(kiosk) == 3


def test_new_keys_are_not_made_where_they_would_be_served(world: World) -> None:
    repo = world.repository.folder
    arguments = ["rotate", "timestamp", "--repo", repo, "--keys", world.folder / "keys"]
    for inside in (repo / "new", repo / "x" / ".." / "new"):
        command = ["deploy", *map(str, [*arguments, "--new-keys", inside])]
        with refused("keys.folder"):
            cli.main(args=command, prog_name="fedge", standalone_mode=False)
    assert not list(repo.rglob("*.key"))


@pytest.mark.parametrize("reason", ["two\nlines", "x" * 301, "\udcff"])
def test_a_reason_that_is_no_line_is_refused(world: World, reason: str) -> None:
    world.publish()
    with refused("release.reason"):
        releases.revoke(world.repository, NAME, 1, reason, world.keys, now())
    assert releases.find(world.repository, CANARY, NAME, 1).seq == 1


def test_long_reasons_do_not_make_a_channel_unreadable(world: World) -> None:
    """100 of them are more than a device reads; what counts is what is withdrawn."""
    kiosk = world.device()
    ids = []
    for seq in range(1, 41):
        ids.append(world.publish().id)
        releases.revoke(world.repository, NAME, seq, "\u6162" * 300, world.keys, now())
    last = world.publish()
    assert update(kiosk).current == last.id
    assert set(read_state(kiosk.store).withdrawn) == set(ids)
    current = releases.read_current(world.repository, CANARY, NAME)
    assert len(current.encode()) <= MOST_CURRENT
    assert (current.revoked[0].reason, len(current.revoked[-1].reason)) == ("", 300)


def test_a_release_that_is_not_offered_any_more_can_be_withdrawn(world: World) -> None:
    """Devices that could not take a newer one run it still."""
    kiosk = world.device()
    old = world.publish()
    world.promote(old.seq)
    update(kiosk)
    for _ in range(MOST_OFFERS):
        world.publish("bad")
    with refused("release.unknown"):
        releases.find(world.repository, CANARY, NAME, 1)
    with refused("probe.labels"):
        update(kiosk)
    assert read_state(kiosk.store).current == old.id
    world.revoke(1)
    with refused("probe.labels"):
        update(kiosk)
    assert read_state(kiosk.store).current is None
    with refused("release.unknown"):
        world.revoke(1)
    with refused("release.unknown"):
        world.revoke(99)


def test_nothing_is_signed_below_a_role_that_has_expired(world: World) -> None:
    """It would be `on offer`, and no device would take it."""
    world.publish()
    for later, role in ((days(100), "targets"), (days(400), "root")):
        with pytest.raises(Exception, match=f"`{role}` has expired"):
            releases.revoke(world.repository, NAME, 1, "late", world.keys, now() + later)
    online = world.keys.only(["snapshot", "timestamp", "gate"])
    assert "targets" in world.repository.refresh(online, now() + days(100))
    world.repository.refresh(world.keys, now() + days(100))
    releases.revoke(world.repository, NAME, 1, "late", world.keys, now() + days(101))


def test_metadata_larger_than_devices_take_is_not_published(world: World) -> None:
    kiosk = world.device()
    offer = world.publish()
    with refused("repository.size"):
        world.publish(plan="x" * 1_100_000)
    assert update(kiosk).current == offer.id


def test_a_folder_of_reports_that_is_not_there_is_no_good_news(tmp_path: Path) -> None:
    with refused("reports.missing"):
        read_reports(tmp_path / "reprots")
