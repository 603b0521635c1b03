"""Attacks on a repository and on releases, each with the code of the refusal that it must meet."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from delivery import releases
from delivery.keys import make_keys, read_keys
from delivery.repository import described
from edge_runtime.adapter import read_tensors
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.delivery import CANARY, DEVICE_VERSION, STABLE, current_name, target_names
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from tests.delivery_world import NAME, World, days, new_log, now, passport

Attack = Callable[[World], None]


def metadata(world: World) -> Path:
    return world.repository.folder / "metadata"


def newest(world: World, role: str) -> Path:
    return metadata(world) / f"{world.repository.roles[role].signed.version}.{role}.json"


def changed_json(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def file_of(world: World, kind: str) -> Path:
    offer = releases.read_current(world.repository, CANARY, NAME).releases[0]
    file = offer.files.by_kind()[kind]
    return world.repository.folder / "targets" / CANARY / f"{file.sha256}.{file.name}"


def signed_current(world: World, data: bytes, channel: str = CANARY) -> None:
    """What a thief of a channel's keys could publish as its current.json."""
    targets = world.repository.copy(channel, Targets)
    path = f"{channel}/{current_name(NAME)}"
    targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    world.repository.commit({channel: targets}, {path: data}, world.keys, now())


def edited_current(world: World, change: Callable[[Any], None]) -> None:
    document = json.loads(world.repository.target(CANARY, current_name(NAME)))
    change(document)
    signed_current(world, json.dumps(document).encode())


# -- what the repository's keys do not allow ------------------------------------------------------


def frozen(world: World) -> None:
    world.repository.refresh(world.keys, now() - days(2))


def old_channel(world: World) -> None:
    """The channel's metadata has expired, the timestamp is fresh."""
    repository, long_ago = world.repository, now() - days(40)
    content = repository.copy(CANARY, Targets)
    repository.commit({CANARY: content}, {}, world.keys, long_ago)
    snapshot, timestamp = (
        repository.copy("snapshot", Snapshot),
        repository.copy("timestamp", Timestamp),
    )
    signed = {
        "snapshot": repository.sign([repository.root], "snapshot", snapshot, [world.keys], now())
    }
    timestamp.snapshot_meta = described(signed["snapshot"])
    signed["timestamp"] = repository.sign(
        [repository.root], "timestamp", timestamp, [world.keys], now()
    )
    repository.publish(signed)


def mixed(world: World) -> None:
    version = world.repository.roles[CANARY].signed.version
    shutil.copy(metadata(world) / f"{version - 1}.canary.json", newest(world, CANARY))


def one_signature_on_a_root(world: World) -> None:
    root = world.repository.copy("root", Root)
    root.version += 1
    signed: Metadata[Any] = Metadata(root)
    signed.sign(world.keys.only(["root-1"]).signers(root.roles["root"].keyids)[0])
    (metadata(world) / "2.root.json").write_bytes(signed.to_bytes())


def expired_root(world: World) -> None:
    root = world.repository.copy("root", Root)
    root.version += 1
    root.expires = now() - days(1)
    signed: Metadata[Any] = Metadata(root)
    for signer in world.keys.signers(root.roles["root"].keyids):
        signed.sign(signer, append=True)
    (metadata(world) / "2.root.json").write_bytes(signed.to_bytes())


def led_to(world: World, role: str) -> None:
    """Snapshot and timestamp describe a role's file as it lies there: only its signatures can tell."""
    repository = world.repository
    snapshot, timestamp = (
        repository.copy("snapshot", Snapshot),
        repository.copy("timestamp", Timestamp),
    )
    version = repository.roles[role].signed.version
    snapshot.meta[f"{role}.json"] = MetaFile.from_data(
        version, newest(world, role).read_bytes(), ["sha256"]
    )
    for name, content in (("snapshot", snapshot), ("timestamp", timestamp)):
        made = repository.sign([repository.root], name, content, [world.keys], now())
        repository.publish({name: made})
        timestamp.snapshot_meta = described(made)


def foreign_keys(world: World) -> None:
    make_keys(world.folder / "foreign", ["gate"])
    foreign = read_keys([world.folder / "foreign"])
    signed = Metadata.from_file(str(newest(world, CANARY)))
    old = next(iter(signed.signatures.values()))
    signer = foreign.signers([foreign.by_name["gate"].keyid])[0]
    old.signature = signer.sign(signed.signed_bytes).signature
    signed.to_file(str(newest(world, CANARY)))
    led_to(world, CANARY)


def unsigned(world: World) -> None:
    changed_json(newest(world, CANARY), lambda document: document["signatures"].clear())
    led_to(world, CANARY)


def altered_target(world: World) -> None:
    data = bytearray(file_of(world, "adapter").read_bytes())
    data[-9] ^= 1
    file_of(world, "adapter").write_bytes(data)


def truncated_target(world: World) -> None:
    path = file_of(world, "release")
    path.write_bytes(path.read_bytes()[:-5])


def endless_target(world: World) -> None:
    with file_of(world, "passport").open("ab") as file:
        file.write(b"x" * 100_000)


def endless_timestamp(world: World) -> None:
    (metadata(world) / "timestamp.json").write_bytes(b" " * 1_000_000)


def missing_file(world: World) -> None:
    file_of(world, "adapter").unlink()


def nothing_there(world: World) -> None:
    shutil.rmtree(world.repository.folder / "metadata")


# -- what a thief of the channel's keys cannot do either ------------------------------------------


def another_channels_current(world: World) -> None:
    edited_current(world, lambda document: document.update(channel=STABLE))


def another_name(world: World) -> None:
    edited_current(world, lambda document: document.update(name="other"))


def renamed(name: str) -> Attack:
    def attack(world: World) -> None:
        edited_current(
            world, lambda document: document["releases"][0]["files"]["adapter"].update(name=name)
        )

    return attack


def unknown_field(world: World) -> None:
    edited_current(world, lambda document: document.update(surprise=1))


def huge_current(world: World) -> None:
    signed_current(world, b" " * 70_000 + world.repository.target(CANARY, current_name(NAME)))


def other_digest(world: World) -> None:
    def change(document: Any) -> None:
        document["releases"][0]["files"]["adapter"]["sha256"] = "0" * 64

    edited_current(world, change)


def with_facts(**facts: Any) -> Attack:
    return lambda world: world.publish(**facts) and None


def with_files(change: Callable[[Path], None], which: str = "good") -> Attack:
    return lambda world: world.publish(which, change=change) and None


def other_file_under_its_name(folder: Path) -> None:
    tensors = read_tensors(folder / EDGE_FILE)
    tensors["classifier.bias"] = tensors["classifier.bias"] + np.float32(1)
    write_edge_adapter(tensors, folder / EDGE_FILE)


def unlogged(world: World) -> None:
    """A release that only a log of the thief's own has, under the honest log's name."""
    mine = new_log(world.folder / "thief", world.log.origin)
    world.publish(log=mine)


def of_another_log(world: World) -> None:
    world.publish(log=new_log(world.folder / "other", "fedge/other/1"))


def lying_origin(world: World) -> None:
    world.publish(log=new_log(world.folder / "other", "fedge/other/1"), log_origin=world.log.origin)


def of_another_base(world: World) -> None:
    """Facts that lie about the base: the adapter's own release.json, which is logged, tells."""

    def change(folder: Path) -> None:
        note = json.loads((folder / RELEASE_FILE).read_text())
        note["base_fingerprint"] = "f" * 64
        (folder / RELEASE_FILE).write_text(json.dumps(note))
        passport(world.log, folder, note["round"])

    world.publish(change=change, log_index=world.log.size + 3)


def without_slots(world: World) -> None:
    """An adapter whose tensors the base's graph has no place for, logged as it is."""

    def change(folder: Path) -> None:
        tensors = read_tensors(folder / EDGE_FILE) | {"bert.pooler.lora_A": np.zeros((2, 2), "f")}
        write_edge_adapter(tensors, folder / EDGE_FILE)
        note = json.loads((folder / RELEASE_FILE).read_text())
        note["files"][EDGE_FILE] = hashlib.sha256((folder / EDGE_FILE).read_bytes()).hexdigest()
        (folder / RELEASE_FILE).write_text(json.dumps(note))
        passport(world.log, folder, note["round"])

    world.publish(change=change, log_index=world.log.size + 3)


REFUSED = "repository.refused"
REPOSITORY: list[tuple[Attack, str]] = [
    (frozen, "repository.expired"),
    (old_channel, "repository.expired"),
    (expired_root, "repository.expired"),
    (mixed, REFUSED),
    (one_signature_on_a_root, REFUSED),
    (foreign_keys, REFUSED),
    (unsigned, REFUSED),
    (altered_target, REFUSED),
    (truncated_target, REFUSED),
    (endless_target, "download.endless"),
    (endless_timestamp, "download.endless"),
    (missing_file, "download.failed"),
    (nothing_there, "download.failed"),
    (another_channels_current, "release.channel"),
    (another_name, "release.channel"),
    (renamed("../../x"), "release.form"),
    (renamed("a%2fb"), "release.form"),
    (renamed("a\x00b"), "release.form"),
    (renamed("x" * 10_000), "release.form"),
    (renamed("home.zip"), "release.unknown"),
    (renamed(target_names(NAME, 2)["release"]), "release.files"),
    (unknown_field, "release.form"),
    (huge_current, "release.size"),
    (other_digest, "release.files"),
]
RELEASE: list[tuple[Attack, str]] = [
    (with_facts(base="f" * 64), "release.base"),
    (with_facts(graph="f" * 64), "release.graph"),
    (with_facts(device_min=DEVICE_VERSION + 1), "release.device"),
    (of_another_log, "release.log"),
    (with_facts(log_index=0), "release.passport"),
    (with_facts(round=7), "release.passport"),
    (lying_origin, "release.passport"),
    (unlogged, "release.passport"),
    (with_files(other_file_under_its_name), "release.passport"),
    (
        with_files(lambda folder: (folder / PASSPORT_FILE).write_text("") and None),
        "release.passport",
    ),
    (of_another_base, "probe.load"),
    (without_slots, "probe.load"),
]
