"""A TUF repository in a folder that any static server can serve. (P-9.1, P-9.2)

    metadata/   N.root.json, N.targets.json, N.canary.json, N.stable.json, N.snapshot.json, timestamp.json
    targets/    <channel>/<sha256>.<name>
    evidence/   what the gate found, one signed statement per decision
    root.json   the first root: what a device's image carries

What a reader can reach is written before what leads to it, ``timestamp.json`` last: a publisher that is
killed leaves the old state or the new one. Old versions stay for devices in mid-update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import SerializationError
from tuf.api.serialization.json import JSONSerializer

from delivery.keys import REMEDY as BRING_KEYS
from delivery.keys import ROLES, KeyRing
from protocol.delivery import CHANNELS, MOST_METADATA
from protocol.errors import DeliveryError
from storage.locks import locked
from storage.whole import write_whole

METADATA, TARGETS, EVIDENCE, FIRST_ROOT = "metadata", "targets", "evidence", "root.json"
REMEDY = "restore the repository from a copy; do not publish from this one"
COMPACT = JSONSerializer(compact=True)
S = TypeVar("S", bound=Signed)


class Repository:
    """The newest signed state of a repository. ``roles`` are its metadata by role; treat as read-only."""

    def __init__(self, folder: Path) -> None:
        """Open and verify. Raises DeliveryError `repository.unreadable` or `repository.damaged`."""
        self.folder = folder
        self.roles: dict[str, Metadata[Any]] = {}
        self._load()

    def _load(self) -> None:
        try:
            versions = [int(p.name.split(".")[0]) for p in self._metadata.glob("*.root.json")]
            self.roles["root"] = self._read("root", max(versions))
            self._check("root")
            for role in ("timestamp", "snapshot", "targets", *CHANNELS):
                self.roles[role] = self._read(role, self._version(role))
                self._check(role)
        except (RepositoryError, SerializationError, KeyError) as error:
            raise DeliveryError(
                "repository.damaged",
                f"{self.folder}: {type(error).__name__}: {str(error)[:200]}",
                REMEDY,
            ) from None
        except (OSError, ValueError):
            raise DeliveryError(
                "repository.unreadable",
                f"{self.folder} is not a repository, or not a whole one",
                "name the folder that `fedge deploy init` wrote",
            ) from None

    @property
    def root(self) -> Root:
        """The newest root."""
        return cast("Root", self.roles["root"].signed)

    def copy(self, role: str, kind: type[S]) -> S:
        """A role's content, to be changed and committed."""
        content = Metadata.from_bytes(self.roles[role].to_bytes()).signed
        assert isinstance(content, kind)
        return content

    def target(self, channel: str, name: str) -> bytes:
        """The bytes of a target, verified. Raises DeliveryError."""
        try:
            listed: TargetFile = self.roles[channel].signed.targets[f"{channel}/{name}"]
            data = self._target_path(listed).read_bytes()
            listed.verify_length_and_hashes(data)
        except (KeyError, OSError, RepositoryError) as error:
            raise DeliveryError(
                "repository.damaged", f"{channel}/{name}: {type(error).__name__}", REMEDY
            ) from None
        return data

    def history(self, channel: str) -> Iterator[Targets]:
        """What a channel has offered, from the newest version on; as it lies there, not verified."""
        found = self._metadata.glob(f"*.{channel}.json")
        versions = sorted((int(p.name.partition(".")[0]) for p in found), reverse=True)
        for version in versions:
            with suppress(OSError, RepositoryError):
                yield self._read(channel, version).signed

    def delegation(self, channel: str) -> DelegatedRole:
        """Whose signatures a channel needs."""
        return cast("DelegatedRole", self.roles["targets"].signed.get_delegated_role(channel))

    def public_keys(self, channel: str) -> list[bytes]:
        """The raw Ed25519 keys of a channel."""
        targets = self.roles["targets"].signed
        listed = self.delegation(channel).keyids
        return [bytes.fromhex(targets.get_key(key_id).keyval["public"]) for key_id in listed]

    def check_alive(self, now: datetime) -> None:
        """Devices would take what a channel signs now. Raises DeliveryError `repository.expired`."""
        remedies = {
            "root": "`fedge deploy rotate root`",
            "targets": "`fedge deploy refresh` with the keys of `targets`",
        }
        for role, remedy in remedies.items():
            if self.roles[role].signed.is_expired(now):
                raise DeliveryError(
                    "repository.expired",
                    f"`{role}` has expired: no device takes what is signed below it",
                    remedy,
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep another publisher out, and go on from what the last one wrote.

        Raises DeliveryError `repository.busy`, and what opening raises.
        """
        with locked(self.folder / ".lock", seconds=0) as free:
            if not free:
                raise DeliveryError(
                    "repository.busy", f"{self.folder}: somebody else publishes", "wait for them"
                )
            self._load()
            yield

    def commit(
        self,
        changed: Mapping[str, Targets],
        files: Mapping[str, bytes],
        keys: KeyRing,
        now: datetime,
        *,
        evidence: Mapping[str, bytes] | None = None,
    ) -> None:
        """Publish new versions of the roles in ``changed``, with the target ``files`` by their paths.

        Everything is signed and checked against its threshold before anything is written. Raises
        DeliveryError `keys.missing` when too few keys are at hand; then nothing has changed.
        """
        judge = changed.get("targets") or self.roles["targets"].signed
        signed: dict[str, Metadata[Any]] = {
            role: self.sign([judge if role in CHANNELS else self.root], role, content, [keys], now)
            for role, content in changed.items()
        }
        snapshot = self.copy("snapshot", Snapshot)
        for role, metadata in signed.items():
            snapshot.meta[f"{role}.json"] = described(metadata)
        signed["snapshot"] = self.sign([self.root], "snapshot", snapshot, [keys], now)
        timestamp = self.copy("timestamp", Timestamp)
        timestamp.snapshot_meta = described(signed["snapshot"])
        signed["timestamp"] = self.sign([self.root], "timestamp", timestamp, [keys], now)
        for name, data in (evidence or {}).items():
            _write(self.folder / EVIDENCE / name, data)
        for content in changed.values():
            for path in (path for path in content.targets if path in files):
                _write(self._target_path(content.targets[path]), files[path])
        self.publish(signed)

    def publish(self, signed: Mapping[str, Metadata[Any]]) -> None:
        """Write signed roles, in their order; the last one should lead to the others."""
        for role, metadata in signed.items():
            version = None if role == "timestamp" else metadata.signed.version
            _write(self._path(role, version), metadata.to_bytes(COMPACT))
            self.roles[role] = metadata

    def refresh(self, keys: KeyRing, now: datetime) -> list[str]:
        """Sign the timestamp again, and what has lived half its life; the roles that lack keys for it."""
        changed, short = {}, []
        for role in ("targets", *CHANNELS):
            if _remaining(self.roles[role].signed, now) * 2 < timedelta(days=ROLES[role].days):
                if self._can_sign(role, keys):
                    changed[role] = self.copy(role, Targets)
                else:
                    short.append(role)
        due = _remaining(self.roles["snapshot"].signed, now) * 2 < timedelta(
            days=ROLES["snapshot"].days
        )
        if changed or due:
            self.commit(changed, {}, keys, now)
        else:
            content = self.copy("timestamp", Timestamp)
            self.publish({"timestamp": self.sign([self.root], "timestamp", content, [keys], now)})
        if _remaining(self.roles["root"].signed, now) * 2 < timedelta(days=ROLES["root"].days):
            short.append("root")
        return short

    # -- files ------------------------------------------------------------------------------------

    @property
    def _metadata(self) -> Path:
        return self.folder / METADATA

    def _path(self, role: str, version: int | None = None) -> Path:
        return self._metadata / (f"{role}.json" if version is None else f"{version}.{role}.json")

    def _read(self, role: str, version: int | None) -> Metadata[Any]:
        return Metadata.from_bytes(self._path(role, version).read_bytes())

    def _version(self, role: str) -> int | None:
        if role == "timestamp":
            return None
        if role == "snapshot":
            return int(self.roles["timestamp"].signed.snapshot_meta.version)
        return int(self.roles["snapshot"].signed.meta[f"{role}.json"].version)

    def _target_path(self, target: TargetFile) -> Path:
        folder, _, name = target.path.rpartition("/")
        return self.folder / TARGETS / folder / f"{target.hashes['sha256']}.{name}"

    # -- signing ----------------------------------------------------------------------------------

    def _judge(self, role: str) -> Root | Targets:
        judge = "targets" if role in CHANNELS else "root"
        return cast("Root | Targets", self.roles[judge].signed)

    def _check(self, role: str) -> None:
        metadata = self.roles[role]
        self._judge(role).verify_delegate(role, metadata.signed_bytes, metadata.signatures)

    def _can_sign(self, role: str, keys: KeyRing) -> bool:
        needed = self._judge(role).get_delegated_role(role)
        return len(keys.signers(needed.keyids)) >= needed.threshold

    def sign(
        self,
        judges: Sequence[Root | Targets],
        role: str,
        content: Signed,
        rings: Sequence[KeyRing],
        now: datetime,
    ) -> Metadata[Any]:
        """``content``, one version up, accepted by every judge. Raises DeliveryError `keys.missing`."""
        content.version = self.roles[role].signed.version + 1
        content.expires = now + timedelta(days=ROLES[role].days)
        metadata: Metadata[Any] = Metadata(cast("Any", content))
        wanted = {key for judge in judges for key in judge.get_delegated_role(role).keyids}
        for signer in {
            s.public_key.keyid: s for ring in rings for s in ring.signers(wanted)
        }.values():
            try:
                metadata.sign(signer, append=True)
            except SerializationError:
                raise DeliveryError(
                    "release.form",
                    f"{role}: TUF's canonical JSON has no real numbers",
                    "give thousandths as integers",
                ) from None
        for judge in judges:
            check_threshold(judge, role, metadata)
        most = MOST_METADATA.get(role, MOST_METADATA["targets"])
        if len(metadata.to_bytes(COMPACT)) > most:
            raise DeliveryError(
                "repository.size",
                f"{role} would have more than the {most} bytes that devices take",
                "withdraw releases that nobody runs, or use a repository of its own for some names",
            )
        return metadata


def create_repository(folder: Path, keys: KeyRing, now: datetime) -> Repository:
    """A new repository, signed with ``keys`` of the names in ROLES. Raises DeliveryError."""
    if folder.exists() and any(folder.iterdir()):
        raise DeliveryError("repository.exists", f"{folder} is not empty", "name another folder")
    root = Root(expires=_after(now, "root"), consistent_snapshot=True)
    for role in ("root", "targets", "snapshot", "timestamp"):
        root.roles[role] = Role([], ROLES[role].threshold)
        for key in keys.public(ROLES[role].names):
            root.add_key(key, role)
    targets = Targets(expires=_after(now, "targets"), delegations=_delegations(keys))
    snapshot = Snapshot(expires=_after(now, "snapshot"))
    timestamp = Timestamp(expires=_after(now, "timestamp"))
    content: dict[str, Signed] = {
        "root": root,
        "targets": targets,
        **{channel: Targets(expires=_after(now, channel)) for channel in CHANNELS},
        "snapshot": snapshot,
        "timestamp": timestamp,
    }
    (folder / METADATA).mkdir(parents=True, exist_ok=True)
    (folder / TARGETS).mkdir(exist_ok=True)
    for role, one in content.items():
        judge = targets if role in CHANNELS else root
        metadata: Metadata[Any] = Metadata(cast("Any", one))
        for signer in keys.signers(judge.get_delegated_role(role).keyids):
            metadata.sign(signer, append=True)
        check_threshold(judge, role, metadata)
        name = "timestamp.json" if role == "timestamp" else f"1.{role}.json"
        write_whole(folder / METADATA / name, metadata.to_bytes(COMPACT))
        if role == "root":
            write_whole(folder / FIRST_ROOT, metadata.to_bytes(COMPACT))
        elif role == "snapshot":
            timestamp.snapshot_meta = described(metadata)
        elif role != "timestamp":
            snapshot.meta[f"{role}.json"] = described(metadata)
    return Repository(folder)


def _delegations(keys: KeyRing) -> Delegations:
    public = {c: keys.public(ROLES[c].names) for c in CHANNELS}
    return Delegations(
        keys={key.keyid: key for channel in CHANNELS for key in public[channel]},
        roles={
            channel: DelegatedRole(
                name=channel,
                keyids=[key.keyid for key in public[channel]],
                threshold=ROLES[channel].threshold,
                terminating=True,
                paths=[f"{channel}/*"],
            )
            for channel in CHANNELS
        },
    )


def described(metadata: Metadata[Any]) -> MetaFile:
    """A role's file by version, length and SHA-256.

    By its version alone, one stolen key and a mirror would do: of a channel, to sign another file of this
    version; of the snapshot, to bring back what was withdrawn.
    """
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(COMPACT), ["sha256"])


def check_threshold(judge: Root | Targets, role: str, metadata: Metadata[Any]) -> None:
    """Enough of the role's keys have signed. Raises DeliveryError `keys.missing`."""
    needed = judge.get_delegated_role(role).threshold
    with suppress(RepositoryError):
        judge.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        return
    raise DeliveryError(
        "keys.missing",
        f"`{role}` needs {needed} signatures, the keys given make {len(metadata.signatures)}",
        BRING_KEYS,
    )


def _after(now: datetime, role: str) -> datetime:
    return now + timedelta(days=ROLES[role].days)


def _remaining(signed: Signed, now: datetime) -> timedelta:
    return signed.expires - now


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)
