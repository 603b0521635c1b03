"""The run's transparency log: one writer, tiles on disk, one signed checkpoint. (P-8)

Leaves become part of the log by one rename of a *batch*: a file with the leaves and the checkpoint that
covers them. A round's batch lies in the round's folder, so that round and leaves appear at once; other
leaves come in ``log/log.batch``. Afterwards the batch is written into the tiles and removed; a
coordinator that was killed in between does that when it comes back.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import protocol
import server
import storage
from protocol.encoding import base64_bytes, base64_text
from protocol.errors import ArtefactError, ProofError
from protocol.merkle import leaf_hash
from protocol.plan import Plan
from protocol.transparency.leaf_codec import encode_statement
from protocol.transparency.leaves import Leaf
from protocol.transparency.lists import list_path
from protocol.transparency.note import (
    Checkpoint,
    KeyType,
    VerifierKey,
    parse_checkpoint,
    parse_key,
    sign_note,
    verify_note,
)
from protocol.transparency.policy import simple_policy
from protocol.transparency.receipts import Receipt, sign_receipt
from protocol.transparency.tiles import (
    entry_tiles,
    pack_entries,
    parse_entries,
    tiles_grown,
    tiles_needed,
)
from protocol.transparency.tree import Tree
from server.entries import REMEDY, Entries
from server.leaves import Leaves
from storage.regular import read_regular, read_regular_text, sha256_of
from storage.whole import PRIVATE, sync, write_whole

if TYPE_CHECKING:
    from server.store import RunStore

LOG, BATCH, KEY, CHECKPOINT, SECRET = "log", "log.batch", "key", "checkpoint", "log.key"
POLICY = "policy"  # C2SP tlog-policy: what auditors and devices pin


class Published(Leaves):
    """The log in ``folder`` as its checkpoint covers it."""

    def __init__(self, folder: Path, verifier: VerifierKey) -> None:
        """Read it; empty where there is no checkpoint yet. Raises ArtefactError for a log that is damaged."""
        super().__init__(verifier.name, partial(_list_of, folder.parent))
        self.folder, self.verifier = folder, verifier
        self._entries, self._tree = Entries(folder), Tree()
        self.note = ""
        self._load()

    @property
    def tree(self) -> Tree:
        """The tree over the leaves; not to be changed."""
        return self._tree

    @property
    def size(self) -> int:
        """Leaves."""
        return len(self._entries)

    def entry(self, index: int) -> bytes:
        """A leaf's bytes. Raises ProofError where its file is gone, or is not the one that was written."""
        data = self._entries[index]
        if leaf_hash(data) != self._tree.leaf(index):
            raise ProofError(f"leaf {index} on disk is not the one that was logged", REMEDY)
        return data

    def _add(self, data: bytes) -> None:
        self._note(data, self.size)
        self._entries.append(data)
        self._tree.append(leaf_hash(data))

    def _load(self) -> None:
        if not (self.folder / CHECKPOINT).exists():
            return
        try:
            self.note = (self.folder / CHECKPOINT).read_text("utf-8")
            checkpoint = self._verified(self.note)
            for name, count in tiles_needed(checkpoint.size):
                for data in self._bundle(name, count):
                    self._add(data)
                self._entries.release(self.size)
        except (OSError, UnicodeDecodeError, ProofError) as error:
            cause = error.cause if isinstance(error, ProofError) else type(error).__name__
            raise ArtefactError(f"{self.folder}: {cause}", REMEDY) from None
        if (self.size, self._tree.root()) != (checkpoint.size, checkpoint.root):
            raise ArtefactError(f"{self.folder}: the tiles are not those it signed", REMEDY)

    def _bundle(self, name: str, count: int) -> list[bytes]:
        """The first ``count`` entries of a bundle; of a partial one that is gone the full one has them."""
        path = self.folder / name
        grown = not path.exists() and (full := name.partition(".p/")[0]) != name
        entries = parse_entries((self.folder / full if grown else path).read_bytes())
        if len(entries) < count or (len(entries) > count and not grown):
            raise ProofError(f"{name} has {len(entries)} entries", REMEDY)
        return entries[:count]

    def _verified(self, note: str) -> Checkpoint:
        return parse_checkpoint(verify_note(note, [self.verifier]).text, origin=self.origin)


def _list_of(run: Path, digest: str) -> bytes:
    """A list of a leaf. Raises ProofError when it cannot be read."""
    try:
        return read_regular(run / list_path(digest))
    except OSError as error:
        cause = f"{list_path(digest)} cannot be read ({type(error).__name__})"
        raise ProofError(cause, REMEDY) from None


class RunLog(Published):
    """The log in ``folder/log``; whoever opens it holds the run folder's lock."""

    def __init__(
        self, folder: Path, key: Ed25519PrivateKey, origin: str, batches: Iterable[Path] = ()
    ) -> None:
        """Open the log, made if needed; take in ``batches`` that a killed writer left.

        Raises ArtefactError for a log that is damaged or that another key has signed.
        """
        self._key = key
        public = key.public_key().public_bytes_raw()
        verifier = VerifierKey(name=origin, type=KeyType.ED25519, public=public)
        (folder / LOG).mkdir(exist_ok=True)
        super().__init__(folder / LOG, verifier)
        self._dirty = False
        self.cosigned_size = 0  # of the last checkpoint that came back from witnesses
        if not (self.folder / KEY).exists():
            write_whole(self.folder / KEY, f"{self.verifier.encode()}\n".encode())
        for path in (*batches, self.folder / BATCH):
            if path.exists():
                self._take(path)

    # -- writing ----------------------------------------------------------------------------------

    def write(self, leaf: Leaf, subjects: Mapping[str, str]) -> bytes:
        """A statement signed by the log's key."""
        return encode_statement(leaf, subjects, self._key)

    def keep_list(self, data: bytes) -> str:
        """Put a list that a leaf has no room for where it is published; its SHA-256. (P-8.19)"""
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder.parent / list_path(digest)
        if not path.parent.is_dir():
            path.parent.mkdir()
            sync(self.folder)  # a leaf outlives a failure of power: so must the folder of its lists
        write_whole(path, data)
        return digest

    def receipt(self, receipt: Receipt) -> str:
        """A receipt signed by the log's key. (P-8.9)"""
        return sign_receipt(receipt, self._key)

    def prepare(self, leaves: Sequence[bytes]) -> bytes:
        """A batch of ``leaves``: what :meth:`take` takes in once it lies where it becomes visible.

        One batch at a time: prepared is signed, and the log never signs two trees of one size.
        """
        if self._dirty:
            raise RuntimeError("a batch was prepared and not taken in")
        self._dirty = True
        start = self.size
        for data in leaves:
            self._add(data)
        text = Checkpoint(origin=self.origin, size=self.size, root=self._tree.root()).text
        self.note = f"{text}\n{sign_note(text, self.origin, self._key)}"
        body = {
            "start": start,
            "entries": [base64_text(data) for data in leaves],
            "checkpoint": self.note,
        }
        return (json.dumps(body, indent=1) + "\n").encode()

    def take(self, path: Path) -> None:
        """Write the prepared batch at ``path``, which is visible by now, into the tiles; remove it."""
        start = int(json.loads(path.read_bytes())["start"])
        self._write_tiles(start)
        write_whole(self.folder / CHECKPOINT, self.note.encode())
        path.unlink()
        sync(path.parent)
        self._forget_partial(start)
        self._entries.release(self.size)
        self._dirty = False

    def append(self, leaves: Sequence[bytes]) -> int:
        """Leaves that belong to no round; the index of the first."""
        start, path = self.size, self.folder / BATCH
        write_whole(path, self.prepare(leaves))
        self.take(path)
        return start

    def cosigned(self, note: str) -> None:
        """Keep the checkpoint with witnesses' lines added."""
        self.note, self.cosigned_size = note, self.size
        write_whole(self.folder / CHECKPOINT, note.encode())

    def _write_tiles(self, start: int) -> None:
        for name, first, stop in entry_tiles(start, self.size):
            self._put(name, pack_entries(self._entries.between(first, stop)))
        for name, data in tiles_grown(self._tree, start):
            self._put(name, data)

    def _forget_partial(self, start: int) -> None:
        """Partial tiles whose full one the log has got since it had ``start`` leaves. (P-8.4)"""
        names = [name for name, *_ in entry_tiles(start, self.size)]
        names += [name for name, _ in tiles_grown(self._tree, start)]
        for name in names:
            if ".p/" not in name:
                shutil.rmtree(self.folder / f"{name}.p", ignore_errors=True)

    def _put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    # -- recovery ---------------------------------------------------------------------------------

    def _take(self, path: Path) -> None:
        """Take in a batch that a killed writer left, whole or partly in the tiles."""
        try:
            body = json.loads(path.read_bytes())
            entries = [base64_bytes(data) for data in body["entries"]]
            start, note = int(body["start"]), str(body["checkpoint"])
            checkpoint = self._verified(note)
            kept = self.size - start
            if (
                not 0 <= kept <= len(entries)
                or self._entries.between(start, self.size) != entries[:kept]
            ):
                raise ProofError("it does not follow the log", REMEDY)
        except (OSError, ValueError, KeyError, TypeError, ProofError) as error:
            cause = error.cause if isinstance(error, ProofError) else type(error).__name__
            raise ArtefactError(f"{path}: {cause}", REMEDY) from None
        for data in entries[kept:]:
            self._add(data)
        if (self.size, self._tree.root()) != (checkpoint.size, checkpoint.root):
            raise ArtefactError(f"{path}: its checkpoint is of other leaves", REMEDY)
        self.note = note
        self.take(path)


def read_published(run: Path) -> Published:
    """A run's log as its checkpoint covers it now, also while a coordinator writes it.

    Tiles come before their checkpoint and stay. Raises ArtefactError for a log that is damaged or empty.
    """
    folder = run / LOG
    try:
        verifier = parse_key(read_regular_text(folder / KEY).removesuffix("\n"))
    except (OSError, UnicodeDecodeError, ProofError):
        raise ArtefactError(f"{folder / KEY} cannot be read", "name a run folder") from None
    log = Published(folder, verifier)
    if not log.size:
        raise ArtefactError(f"{folder} has no leaf yet", "wait until round 0 is published")
    return log


def open_log(store: RunStore, plan: Plan, key: Ed25519PrivateKey | None = None) -> RunLog:
    """The run's log, made if needed, with what a killed coordinator left taken in."""
    if store.last_round() is not None and not (store.folder / LOG).is_dir():
        raise ArtefactError(
            f"{store.folder} was begun by a version without a log", "start another run folder"
        )
    if key is None:
        path = store.folder / SECRET
        if not path.exists() and (store.folder / LOG / CHECKPOINT).exists():
            raise ArtefactError(f"{path}, the log's key, is missing", "restore it, or name it")
        key = read_log_key(path)
    origin = f"fedge/{plan.name}/{store.run_id.hex()}"
    if plan.witnessed:
        named = parse_key(plan.audit.log)
        if named.public != key.public_key().public_bytes_raw():
            raise ArtefactError(
                "the log's key is not the one that `audit.log` of the plan names",
                "set `log-key` to the file with that key",
            )
        origin = named.name
    log = RunLog(store.folder, key, origin, store.batches())
    if not (log.folder / POLICY).exists():
        witnesses = [parse_key(text) for text in plan.audit.witnesses]
        policy = simple_policy(log.verifier, witnesses, plan.audit.witness_quorum)
        write_whole(log.folder / POLICY, policy.render().encode())
    return log


def read_log_key(path: Path) -> Ed25519PrivateKey:
    """The log's secret key, made at the first call; only its owner can read it."""
    try:
        if not path.exists():
            secret = Ed25519PrivateKey.generate().private_bytes_raw()
            write_whole(path, f"{secret.hex()}\n".encode(), mode=PRIVATE)
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path}: not the log's key ({type(error).__name__})", "restore it, or its permissions"
        ) from None


@cache
def code_digest() -> str:
    """SHA-256 over the source files of ``protocol``, ``server`` and ``storage``: which code ran a round."""
    state = hashlib.sha256()
    for package in (protocol, server, storage):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            name = f"{root.name}/{path.relative_to(root).as_posix()}"
            state.update(f"{name} {sha256_of(path)}\n".encode())
    return state.hexdigest()
