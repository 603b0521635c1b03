"""One stolen key and a mirror: what a thief can make of files that the other keys have not signed."""

from __future__ import annotations

from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from delivery import releases
from delivery.repository import COMPACT, Repository, described
from edge_runtime.store import read_state
from protocol.delivery import CANARY, STABLE, current_name
from tests.delivery_world import NAME, World, days, now, refused, update


def put(world: World, role: str, content: Any, key: str) -> None:
    """Sign ``content`` with one key, and serve it in the place of the role's newest file."""
    signer = world.keys.signers([world.keys.by_name[key].keyid])[0]
    made: Metadata[Any] = Metadata(content)
    made.sign(signer)
    path = world.repository.folder / "metadata" / f"{content.version}.{role}.json"
    path.write_bytes(made.to_bytes(COMPACT))


def test_the_gates_key_alone_changes_no_version_of_a_channel(world: World) -> None:
    world.publish()
    kiosk = world.device()
    targets = world.repository.copy(CANARY, Targets)
    path = f"{CANARY}/{current_name(NAME)}"
    current = releases.read_current(world.repository, CANARY, NAME)
    stolen = current.model_copy(update={"releases": []}).encode()
    targets.targets[path] = TargetFile.from_data(path, stolen, ["sha256"])
    put(world, CANARY, targets, "gate")
    file = targets.targets[path]
    name = f"{file.hashes['sha256']}.{current_name(NAME)}"
    (world.repository.folder / "targets" / CANARY / name).write_bytes(stolen)
    with refused("repository.refused", "download.endless"):
        update(kiosk)


def test_the_snapshots_key_alone_brings_no_withdrawn_release_back(world: World) -> None:
    world.publish()
    before = world.repository.copy("snapshot", Snapshot).meta[f"{CANARY}.json"]
    world.revoke(1)
    snapshot = world.repository.copy("snapshot", Snapshot)
    snapshot.meta[f"{CANARY}.json"] = before
    put(world, "snapshot", snapshot, "snapshot")
    with refused("repository.refused", "download.endless"):
        update(world.device())


def test_stolen_online_keys_freeze_until_the_channel_expires(world: World) -> None:
    """As the threat model says: 30 days, unless the keys are replaced."""
    kiosk = world.device()
    offer = world.publish()
    for ago in (29, 31):
        repository = Repository(world.repository.folder)
        repository.commit(
            {CANARY: repository.copy(CANARY, Targets)}, {}, world.keys, now() - days(ago)
        )
        repository.refresh(world.keys.only(["snapshot", "timestamp"]), now())
        if ago == 29:
            assert update(kiosk).current == offer.id
        else:
            with refused("repository.expired"):
                update(kiosk)
    assert read_state(kiosk.store).current == offer.id


def test_every_file_below_the_root_is_described_by_its_digest(world: World) -> None:
    """Also after a rotation of any role, and a refresh."""
    from delivery.keys import make_keys, read_keys
    from delivery.rotation import rotate

    world.publish()
    for number, roles in enumerate((["targets"], ["root", "timestamp"], ["snapshot"], [STABLE])):
        folder = world.folder / f"new{number}"
        make_keys(folder, [path.stem for path in (world.folder / "keys").iterdir()])
        new = read_keys([folder])
        rotate(world.repository, roles, world.keys, new, now())
        world.keys = world.keys.joined(new)
        world.repository.refresh(world.keys, now() + days(50))
    repository = Repository(world.repository.folder)
    timestamp, snapshot = (
        repository.copy("timestamp", Timestamp),
        repository.copy("snapshot", Snapshot),
    )
    found: dict[str, MetaFile] = snapshot.meta | {"snapshot.json": timestamp.snapshot_meta}
    assert found == {
        f"{role}.json": described(repository.roles[role])
        for role in repository.roles
        if role not in ("root", "timestamp")
    }
