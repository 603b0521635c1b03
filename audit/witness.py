"""A witness with a memory: per log one file with the latest checkpoint that it cosigned. (P-8.14)

The folder is all that keeps a witness from cosigning two histories. So it is begun once, knows whose it
is, belongs to one process at a time, and a file in it is replaced whole and on disk before the cosignature
is given away. A witness whose folder is lost must be given up with its key, not begun again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock
from typing import assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ArtefactError, MachineError, ProofError
from protocol.transparency.note import (
    VerifierKey,
    lines_naming,
    parse_checkpoint,
    parse_key,
    verify_note,
)
from protocol.transparency.proofs import REMEDY as EVIDENCE
from protocol.transparency.tiles import MOST_LEAVES, WIDTH, tile_path
from protocol.transparency.tree import Tree
from protocol.transparency.witness import (
    BAD,
    UNPROCESSABLE,
    AddCheckpoint,
    Cosigned,
    Refused,
    Witnessed,
    consider,
    keys_of,
    parse_add_checkpoint,
    witness_key,
)
from storage.locks import take
from storage.whole import write_whole

KEY, LOCK = "witness", ".lock"
LOST = (
    "restore the folder; if it is lost, begin again with a new key and tell who relies on this one"
)


class Witness:
    """The witness whose state ``folder`` holds; whoever opens it holds the folder's lock."""

    def __init__(
        self,
        folder: Path,
        key: Ed25519PrivateKey,
        logs: Sequence[VerifierKey],
        clock: Callable[[], int],
    ) -> None:
        """Open a folder that :func:`begin` made. ``logs`` are pinned keys, ``clock`` gives seconds.

        Raises ArtefactError for a folder that is not this key's, or that another process holds.
        """
        self._folder, self._secret, self._logs, self._clock = folder, key, tuple(logs), clock
        self._turn = RLock()
        try:
            self.key = parse_key((folder / KEY).read_text("utf-8").strip())
        except (OSError, UnicodeDecodeError, ProofError) as error:
            raise ArtefactError(
                f"{folder} is no witness's folder ({type(error).__name__})",
                f"`--new NAME` begins one; {LOST}",
            ) from None
        if self.key != witness_key(self.key.name, key):
            raise ArtefactError(f"{folder} is of another witness's key", "name its own key file")
        try:
            lock = take(folder / LOCK)
        except OSError as error:
            raise ArtefactError(
                f"{folder} cannot be locked: {error.strerror}", "check the folder"
            ) from None
        if lock is None:
            raise ArtefactError(
                f"{folder} is in use by another process", "one witness, one process: stop the other"
            )
        self._lock = lock

    def close(self) -> None:
        """Give the folder up."""
        self._lock.release()

    def latest(self, origin: str) -> Witnessed:
        """What was cosigned of a log. Raises ArtefactError for a damaged file, never starts over."""
        path = self._path(origin)
        try:
            signed = verify_note(path.read_text("utf-8"), [self.key])
            checkpoint = parse_checkpoint(signed.text, origin=origin)
        except FileNotFoundError:
            return Witnessed()
        except (OSError, UnicodeDecodeError, ProofError) as error:
            raise ArtefactError(f"{path} is damaged ({type(error).__name__})", LOST) from None
        return Witnessed(size=checkpoint.size, root=checkpoint.root)

    def add(self, body: bytes) -> Cosigned | Refused:
        """Answer a request of C2SP's ``add-checkpoint``; a cosignature is on disk when this returns.

        Raises ArtefactError for damaged state, MachineError when it cannot be kept.
        """
        try:
            request = parse_add_checkpoint(body)
        except ProofError as error:
            return Refused(status=BAD, why=error.cause)
        return self._decided(request)

    def follow(self, read: Callable[[str], bytes]) -> tuple[str, bool]:
        """Look at a published log: its cosigned checkpoint, and whether the log has changed.

        ``read`` gives a file of the log by name and raises ArtefactError for one that is not there.
        The tree is rebuilt from all leaf hashes. Raises ProofError for a log that this witness does not
        cosign.
        """
        try:
            request = AddCheckpoint(old=0, path=(), note=read("checkpoint").decode())
        except UnicodeDecodeError:
            raise ProofError("the log's checkpoint is no text", EVIDENCE) from None
        claimed = request.claimed
        trusted = keys_of(claimed.origin, self._logs)
        if not trusted:
            raise ProofError(f"no key is known for {claimed.origin[:80]!r}", "pin its key: --log")
        verify_note(request.note, trusted)
        with self._turn:
            before = self.latest(claimed.origin)
            now = Witnessed(size=claimed.size, root=claimed.root)
            path: tuple[bytes, ...] = ()
            if before.size < now.size:
                tree = Tree(_leaf_hashes(read, now.size))
                if tree.root() != now.root:
                    raise ProofError("the log's tiles are not those of its checkpoint", EVIDENCE)
                path = tuple(tree.consistency(before.size))
            decision = self._decided(AddCheckpoint(old=before.size, path=path, note=request.note))
            if isinstance(decision, Refused):
                if decision.status == UNPROCESSABLE:
                    self._keep_evidence(claimed.origin, request.note)
                raise ProofError(f"{claimed.origin}: {decision.why}", EVIDENCE)
            return self._path(claimed.origin).read_text("utf-8"), before != now

    def _decided(self, request: AddCheckpoint) -> Cosigned | Refused:
        origin = request.claimed.origin
        # Looking at the latest checkpoint and replacing it are one step: otherwise two requests could
        # roll it back.
        with self._turn:
            latest, name = self.latest(origin), self.key.name
            decision = consider(request, latest, self._logs, name, self._secret, time=self._clock())
            match decision:
                case Cosigned(line=line):
                    self._put(self._path(origin), self._note(request.note, origin, line))
                case Refused(forked=forked):
                    if forked:
                        self._keep_evidence(origin, request.note)
                case _:
                    assert_never(decision)
            return decision

    def _note(self, note: str, origin: str, line: str) -> str:
        """The text with the log's signatures and ours: others could make it too long to be read back."""
        keys = keys_of(origin, self._logs)
        lines = [next(iter(lines_naming(note, key)), "") for key in keys]
        text = note.rpartition("\n\n")[0]
        return f"{text}\n\n{''.join(lines)}{line}"

    def _keep_evidence(self, origin: str, note: str) -> None:
        """Keep the first checkpoint that contradicts ours; its signer cannot deny it."""
        path = self._path(origin).with_suffix(".fork")
        if not path.exists():
            self._put(path, note)

    def _path(self, origin: str) -> Path:
        return self._folder / f"{hashlib.sha256(origin.encode()).hexdigest()}.checkpoint"

    def _put(self, path: Path, text: str) -> None:
        try:
            write_whole(path, text.encode())
        except OSError as error:
            raise MachineError(
                f"{path} cannot be written: {error.strerror}",
                "nothing was cosigned; make room for it",
            ) from None


def begin(folder: Path, name: str, key: Ed25519PrivateKey) -> VerifierKey:
    """Make the empty folder of a new witness; its verifier key. Raises ArtefactError if it is in use."""
    verifier = witness_key(name, key)
    parse_key(verifier.encode())  # refuses a name that no note can bear
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ArtefactError(
                f"{folder} is not empty", "a witness is begun once; leave out --new"
            )
        write_whole(folder / KEY, f"{verifier.encode()}\n".encode())
    except OSError as error:
        raise ArtefactError(
            f"{folder} cannot be written: {error.strerror}", "name another folder"
        ) from None
    return verifier


def _leaf_hashes(read: Callable[[str], bytes], size: int) -> list[bytes]:
    """The hashes of the first ``size`` leaves, from the tiles of level 0."""
    if size > MOST_LEAVES:
        raise ProofError(f"a log of {size} leaves, at most {MOST_LEAVES} are read", EVIDENCE)
    hashes: list[bytes] = []
    while len(hashes) < size:
        index, width = len(hashes) // WIDTH, min(WIDTH, size - len(hashes))
        try:
            data = read(tile_path(0, index, width))
        except ArtefactError:
            if width == WIDTH:
                raise
            data = read(tile_path(0, index))[: 32 * width]  # the log has grown meanwhile
        if len(data) != 32 * width:
            raise ProofError(f"{tile_path(0, index, width)} has {len(data)} bytes", EVIDENCE)
        hashes += [data[at : at + 32] for at in range(0, len(data), 32)]
    return hashes
