"""New keys for a role: after a theft, a loss, or by the calendar. (P-9.2)

What is below the root is signed by old and new keys first, so that it holds under either root, and then
the new root appears. New keys for snapshot and timestamp together also undo version numbers that a thief
has pushed ahead: devices drop what the old keys have signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from delivery.keys import ROLES, KeyRing
from delivery.repository import Repository, check_threshold, described
from protocol.delivery import CHANNELS
from protocol.errors import DeliveryError


def rotate(
    repository: Repository, roles: Sequence[str], old: KeyRing, new: KeyRing, now: datetime
) -> None:
    """Replace all keys of ``roles`` by those of the same names in ``new``. Raises DeliveryError."""
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        raise DeliveryError(
            "keys.role",
            f"there is no role {unknown[0] if unknown else ''}",
            f"one of {', '.join(ROLES)}",
        )
    channels = [role for role in roles if role in CHANNELS]
    if channels:
        _rotate_channels(repository, channels, old, new, now)
    top = [role for role in roles if role not in CHANNELS]
    if top:
        _rotate_top(repository, top, old, new, now)


def check_roles(roles: Sequence[str]) -> None:
    """All are roles of a repository. Raises DeliveryError `keys.role`."""
    for role in roles:
        if role not in ROLES:
            raise DeliveryError(
                "keys.role", f"there is no role {role}", f"one of {', '.join(ROLES)}"
            )


def _rotate_channels(
    repository: Repository, channels: Sequence[str], old: KeyRing, new: KeyRing, now: datetime
) -> None:
    """One commit: readers see delegation and channel change together."""
    targets = repository.copy("targets", Targets)
    changed = {"targets": targets}
    for channel in channels:
        for key_id in list(targets.get_delegated_role(channel).keyids):
            targets.revoke_key(key_id, channel)
        for key in new.public(ROLES[channel].names):
            targets.add_key(key, channel)
        changed[channel] = repository.copy(channel, Targets)
    repository.commit(changed, {}, old.joined(new), now)


def _rotate_top(
    repository: Repository, roles: Sequence[str], old: KeyRing, new: KeyRing, now: datetime
) -> None:
    before, root = repository.root, repository.copy("root", Root)
    for role in roles:
        for key_id in list(root.roles[role].keyids):
            root.revoke_key(key_id, role)
        for key in new.public(ROLES[role].names):
            root.add_key(key, role)
    root.version += 1
    root.expires = now + timedelta(days=ROLES["root"].days)
    rooted: Metadata[Any] = Metadata(root)
    both, rings = [before, root], [old, new]
    wanted = [key for judge in both for key in judge.roles["root"].keyids]
    for signer in old.joined(new).signers(wanted):
        rooted.sign(signer, append=True)
    for judge in both:
        check_threshold(judge, "root", rooted)
    signed: dict[str, Metadata[Any]] = {}
    snapshot, timestamp = (
        repository.copy("snapshot", Snapshot),
        repository.copy("timestamp", Timestamp),
    )
    if "targets" in roles:
        content = repository.copy("targets", Targets)
        signed["targets"] = repository.sign(both, "targets", content, rings, now)
        snapshot.meta["targets.json"] = described(signed["targets"])
    signed["snapshot"] = repository.sign(both, "snapshot", snapshot, rings, now)
    timestamp.snapshot_meta = described(signed["snapshot"])
    signed["timestamp"] = repository.sign(both, "timestamp", timestamp, rings, now)
    repository.publish(signed | {"root": rooted})
