"""Releases on channels: publish to canaries, promote the same bytes, change a rollout, withdraw. (P-9.3)"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from tuf.api.metadata import TargetFile, Targets

from delivery.keys import KeyRing
from delivery.repository import Repository
from protocol.bitmap_form import encode_bitmap
from protocol.delivery import (
    CANARY,
    MOST_CURRENT,
    MOST_OFFERS,
    STABLE,
    Current,
    Facts,
    File,
    Files,
    Offer,
    Withdrawn,
    bitmap_name,
    current_name,
    decode,
    release_name,
    target_names,
)
from protocol.errors import DeliveryError

MOST_REVOKED = 100  # listed: devices with older ones have been offered others since


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A release's three files and what devices decide on beforehand. ``facts.seq`` is its number."""

    name: str
    facts: Facts
    files: Mapping[str, bytes]  # adapter, release, passport


def next_seq(repository: Repository, name: str) -> int:
    """The number of the next release under ``name``: one above every one ever published."""
    current = read_current(repository, CANARY, name)
    on_offer = [release.seq for release in current.releases]
    return max([0, *on_offer, *(withdrawn.seq for withdrawn in current.revoked)]) + 1


def read_current(repository: Repository, channel: str, name: str) -> Current:
    """What ``channel`` offers under ``name``; nothing yet is an empty offer. Raises DeliveryError."""
    if f"{channel}/{current_name(name)}" not in repository.roles[channel].signed.targets:
        return Current.model_validate(
            {"name": name, "channel": channel, "releases": [], "revoked": []}
        )
    data = repository.target(channel, current_name(name))
    return decode(Current, data, source=f"{channel}/{current_name(name)}")


def read_facts(repository: Repository, channel: str, offer: Offer) -> Facts:
    """``custom`` of an offered adapter. Raises DeliveryError."""
    path = f"{channel}/{offer.files.adapter.name}"
    custom = repository.roles[channel].signed.targets[path].custom
    return decode(Facts, json.dumps(custom).encode(), source=path)


def sent_bytes(repository: Repository, channel: str, name: str, offer: Offer) -> int:
    """What a device fetches of an offered adapter: its bitmap form, where there is one. (P-9.10)"""
    path = f"{channel}/{bitmap_name(name, offer.seq)}"
    form = repository.roles[channel].signed.targets.get(path)
    return offer.files.adapter.length if form is None else int(form.length)


def names(repository: Repository) -> list[str]:
    """Every name that a channel offers something under."""
    suffix = current_name("")
    return sorted(
        {
            path.partition("/")[2].removesuffix(suffix)
            for channel in (CANARY, STABLE)
            for path in repository.roles[channel].signed.targets
            if path.endswith(suffix)
        }
    )


def publish(
    repository: Repository,
    bundle: Bundle,
    keys: KeyRing,
    now: datetime,
    *,
    rollout_permille: int = 1000,
    evidence: Mapping[str, bytes] | None = None,
) -> Offer:
    """Offer a release to the canaries. Raises DeliveryError; then nothing has changed."""
    named = target_names(bundle.name, bundle.facts.seq)
    files = Files.model_validate(
        {kind: _file(named[kind], data).model_dump() for kind, data in bundle.files.items()}
    )
    offer = Offer(
        seq=bundle.facts.seq,
        rollout_permille=rollout_permille,
        device_min=bundle.facts.device_min,
        files=files,
    )
    current = read_current(repository, CANARY, bundle.name)
    published = {release.id for release in current.releases}
    published |= {withdrawn.release for withdrawn in current.revoked}
    if offer.id in published:
        raise DeliveryError(
            "release.known", "this very release was published before", "release another round"
        )
    content = {named[kind]: data for kind, data in bundle.files.items()}
    content |= _bitmap_form(bundle.name, offer, content)
    _commit(
        repository,
        _with(current, offer),
        {named["adapter"]: bundle.facts.model_dump(mode="json")},
        content,
        keys,
        now,
        evidence=evidence,
    )
    return offer


def promote(
    repository: Repository,
    name: str,
    seq: int,
    keys: KeyRing,
    now: datetime,
    *,
    rollout_permille: int,
    evidence: Mapping[str, bytes] | None = None,
) -> Offer:
    """Sign the canaries' bytes for `stable`, or change the share of devices there. Raises DeliveryError."""
    canary = find(repository, CANARY, name, seq)
    offer = canary.model_copy(update={"rollout_permille": rollout_permille})
    facts = read_facts(repository, CANARY, canary)
    stable = read_current(repository, STABLE, name)
    promoted = [release for release in stable.releases if release.seq == seq]
    if promoted and promoted[0].rollout_permille > rollout_permille:
        raise DeliveryError(
            "release.rollout",
            f"{release_name(name, seq)} is out for {promoted[0].rollout_permille} permille already",
            "a rollout only grows; revoke the release instead",
        )
    content = {
        file.name: repository.target(CANARY, file.name)
        for file in (canary.files.adapter, canary.files.release, canary.files.passport)
    }
    content |= _bitmap_form(name, offer, content)
    custom = {canary.files.adapter.name: facts.model_dump(mode="json")}
    _commit(repository, _with(stable, offer), custom, content, keys, now, evidence=evidence)
    return offer


def revoke(
    repository: Repository, name: str, seq: int, reason: str, keys: KeyRing, now: datetime
) -> list[str]:
    """Withdraw a release from every channel that offers it, or has; the channels. Raises DeliveryError.

    Devices that run it go back to the newest one that is still on offer to them.
    """
    try:
        Withdrawn(seq=seq, release="0" * 64, reason=reason)
    except ValidationError:
        raise DeliveryError(
            "release.reason", "the reason is no line of at most 300 characters", "say it shorter"
        ) from None
    done = []
    for channel in (STABLE, CANARY):
        current = read_current(repository, channel, name)
        gone = _offered_once(repository, channel, name, seq)
        if gone is None or gone in {withdrawn.release for withdrawn in current.revoked}:
            continue
        withdrawn = Withdrawn(seq=seq, release=gone, reason=reason)
        changed = current.model_copy(
            update={
                "releases": [release for release in current.releases if release.seq != seq],
                "revoked": [*current.revoked, withdrawn][-MOST_REVOKED:],
            }
        )
        _commit(repository, changed, {}, {}, keys, now)
        done.append(channel)
    if not done:
        raise _unknown(name, seq, "any channel")
    return done


def _offered_once(repository: Repository, channel: str, name: str, seq: int) -> str | None:
    """A release's id, also of one that has made room for newer ones: devices may run it still."""
    path = f"{channel}/{target_names(name, seq)['release']}"
    for content in repository.history(channel):
        if path in content.targets:
            return content.targets[path].hashes["sha256"]
    return None


def find(repository: Repository, channel: str, name: str, seq: int) -> Offer:
    """A release on offer. Raises DeliveryError `release.unknown`."""
    for offer in read_current(repository, channel, name).releases:
        if offer.seq == seq:
            return offer
    raise _unknown(name, seq, channel)


def _commit(
    repository: Repository,
    current: Current,
    custom: Mapping[str, Mapping[str, Any]],
    content: Mapping[str, bytes],
    keys: KeyRing,
    now: datetime,
    *,
    evidence: Mapping[str, bytes] | None = None,
) -> None:
    """One new version of a channel: its current.json, new files, nothing of what is not offered."""
    repository.check_alive(now)
    channel, current = current.channel, _fitting(current)
    targets = repository.copy(channel, Targets)
    files = {f"{channel}/{name}": data for name, data in content.items()}
    files[f"{channel}/{current_name(current.name)}"] = current.encode()
    for path, data in files.items():
        targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        listed = custom.get(path.partition("/")[2])
        if listed is not None:
            targets.targets[path].unrecognized_fields["custom"] = dict(listed)
    kept = {
        f"{channel}/{file}"
        for release in current.releases
        for file in (
            release.files.adapter.name,
            release.files.release.name,
            release.files.passport.name,
            bitmap_name(current.name, release.seq),
        )
    }
    of_name = re.compile(
        rf"{channel}/{re.escape(current.name)}-r[0-9]+\.(onnx_adapter(\.bitmap)?|release\.json|tlog-proof)"
    )
    for path in [p for p in targets.targets if of_name.fullmatch(p) and p not in kept]:
        del targets.targets[path]
    repository.commit({channel: targets}, files, keys, now, evidence=evidence)


def _bitmap_form(name: str, offer: Offer, content: Mapping[str, bytes]) -> dict[str, bytes]:
    """An adapter's bitmap form by its name, where it is shorter than the file. (P-9.10)"""
    adapter = content[offer.files.adapter.name]
    form = encode_bitmap(adapter)
    return {bitmap_name(name, offer.seq): form} if len(form) < len(adapter) else {}


def _with(current: Current, offer: Offer) -> Current:
    """``offer`` among the others, newest first; the oldest fall off the end."""
    others = [release for release in current.releases if release.seq != offer.seq]
    ordered = sorted([*others, offer], key=lambda release: -release.seq)
    return current.model_copy(update={"releases": ordered[:MOST_OFFERS]})


def _fitting(current: Current) -> Current:
    """As devices take it: of too much, the reasons of the oldest withdrawals are left out."""
    revoked = list(current.revoked)
    for place, withdrawn in enumerate(revoked):
        if len(current.encode()) <= MOST_CURRENT:
            break
        revoked[place] = withdrawn.model_copy(update={"reason": ""})
        current = current.model_copy(update={"revoked": list(revoked)})
    return current


def _file(name: str, data: bytes) -> File:
    return File(name=name, sha256=hashlib.sha256(data).hexdigest(), length=len(data))


def _unknown(name: str, seq: int, where: str) -> DeliveryError:
    return DeliveryError(
        "release.unknown",
        f"{release_name(name, seq)} is not on offer in {where}",
        "`fedge deploy status` lists what is",
    )
