"""The run folder: what is published, and what of the open round is safe already. (P-4.8)

    plan.json               the plan, with every default
    manifest.json           the base's
    rosters/                every roster the run has had, by its digest
    log.key                 the secret key of the run's log
    metrics.jsonl           what curves are made of, from the records (:mod:`server.history`)
    log/                    the transparency log (:mod:`server.log`)
    privacy.jsonl           the privacy ledger: one line per sum that was or may have been opened
    sequence.json           the run's id, its last attempt at a secret sum: number, round, attempt
    rounds/0007/            a published round: checkpoint.safetensors, record.json, adapter/; sums/ and
                            vectors/ for auditors; log.batch until its leaves are in the log's tiles
    rounds/0007.attempt1.json   the record of an attempt that failed
    rounds/.0008.open/      the open attempt: round.json, replies (:mod:`server.replies`), sums/, vectors/,
                            and ``revealing``: which secret sums clients were asked to open, by number
    rounds/.0008.tmp/       being written; becomes rounds/0008 by one rename

Nothing else is state. A lock keeps a second coordinator out. (docs/adr/0006)
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from protocol.errors import ArtefactError
from protocol.manifest import MANIFEST_NAME
from protocol.manifests import AnyManifest
from protocol.merkle import leaf_hash
from protocol.plan import Plan
from protocol.secagg.client import CHUNK
from protocol.secagg.roster import render_roster
from protocol.secagg.task import roster_root
from protocol.step.checkpoint import Note, decode_checkpoint, encode_checkpoint
from protocol.step.state import State
from protocol.transparency.leaves import AskedSum
from server.ledger import RunLedger
from server.log import BATCH
from server.replies import Replies
from storage.locks import take
from storage.regular import sha256_of
from storage.whole import folder_that_appears, remove, sync, write_whole

CHECKPOINT, RECORD, ADAPTER, OPEN = "checkpoint.safetensors", "record.json", "adapter", "round.json"
PLAN, SEQUENCE, LEDGER, ROSTERS = "plan.json", "sequence.json", "privacy.jsonl", "rosters"
LOCK = ".lock"  # (docs/adr/0006)
SUMS, VECTORS = "sums", "vectors"
REVEALING, ROUND = "revealing", re.compile(r"[0-9]{4,}")
RESTORE = "restore the run folder, or remove the damaged last round and resume"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Number:
    """Of an attempt at a secret sum: it only grows in a run (``run`` is its random id, 16 bytes)."""

    run: bytes
    seq: int = 0
    round: int = 0
    attempt: int = 0


class RunInUseError(ArtefactError):
    """Another coordinator holds the run's folder."""


class RunStore:
    """The coordinator's folder of one run; hold it open for as long as the run lasts."""

    def __init__(self, folder: Path) -> None:
        """Open and lock ``folder``, made if needed. Raises RunInUseError when another holds it."""
        self.folder = folder
        self._rounds = folder / "rounds"
        try:
            self._rounds.mkdir(parents=True, exist_ok=True)
            lock = take(folder / LOCK)
        except OSError as error:
            raise ArtefactError(
                f"{folder} cannot be written: {error.strerror}", "name another run folder"
            ) from None
        if lock is None:
            raise RunInUseError(
                f"{folder} is in use by another coordinator", "wait for it, or stop it first"
            )
        self._lock = lock
        self._last: int | None = None  # published, once it is known: nobody else publishes here
        self._without_vectors = 1  # rounds below this have none
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a killed coordinator left half written, or published but not tidied up."""
        for leftover in self._rounds.glob(".*.tmp"):
            remove(leftover)
        for leftover in self._rounds.glob(".*.open"):
            if (self._rounds / leftover.stem.removeprefix(".")).is_dir():
                shutil.rmtree(leftover)

    def keep_plan(self, plan: Plan) -> None:
        """Write ``plan.json`` beside the rounds, once: what releases and reports read."""
        path = self.folder / PLAN
        if not path.exists():
            write_whole(path, plan.render().encode())

    def keep_manifest(self, manifest: AnyManifest) -> None:
        """Write the base's manifest beside the plan, once: layouts follow from it."""
        path = self.folder / MANIFEST_NAME
        if not path.exists():
            write_whole(path, manifest.to_json().encode())

    def keep_roster(self, roster: Mapping[str, bytes]) -> str:
        """Write the roster under its digest; the digest."""
        root = roster_root(roster).hex()
        path = self.folder / ROSTERS / f"{root}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_whole(path, render_roster(dict(roster)).encode())
        return root

    @property
    def run_id(self) -> bytes:
        """This run's random id, 16 bytes; drawn once."""
        return self.last_number().run

    def last_number(self) -> Number:
        """The last attempt's number; 0 before the first. Raises ArtefactError."""
        path = self.folder / SEQUENCE
        try:
            content = json.loads(path.read_text("utf-8"))
            seq, number, attempt = (int(content[key]) for key in ("sequence", "round", "attempt"))
            run = bytes.fromhex(content["run"])
        except FileNotFoundError:
            return self._keep_number(Number(run=os.urandom(16)))
        except (OSError, ValueError, KeyError, TypeError):
            raise ArtefactError(f"{path} is damaged", "restore it, or start another run") from None
        return Number(run=run, seq=seq, round=number, attempt=attempt)

    def _keep_number(self, number: Number) -> Number:
        fields = {"sequence": number.seq, "round": number.round, "attempt": number.attempt}
        write_whole(self.folder / SEQUENCE, _json({"run": number.run.hex(), **fields}).encode())
        return number

    def next_number(self, round_number: int, attempt: int) -> Number:
        """The next attempt's number; used up once it is given."""
        last = self.last_number()
        return self._keep_number(
            Number(run=last.run, seq=last.seq + 1, round=round_number, attempt=attempt)
        )

    @cached_property
    def ledger(self) -> RunLedger:
        """The privacy ledger. Raises ArtefactError for a damaged line."""
        return RunLedger(self.folder / LEDGER)

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def last_round(self) -> int | None:
        """The last published round; None for a fresh folder. Raises ArtefactError for a gap."""
        if self._last is None:
            self._last = self._listed_last()
        return self._last

    def _listed_last(self) -> int | None:
        numbers = sorted(
            int(path.name) for path in self._rounds.iterdir() if ROUND.fullmatch(path.name)
        )
        if numbers and numbers != list(range(len(numbers))):
            raise ArtefactError(
                f"{self._rounds}: a published round is missing", "restore it, or start another run"
            )
        return numbers[-1] if numbers else None

    # -- published rounds -------------------------------------------------------------------------

    def publish(
        self,
        number: int,
        state: State,
        record: Record,
        write_adapter: Callable[[Path], None],
        batch: Callable[[dict[str, str]], bytes],
    ) -> Path:
        """Make a round visible, whole, by one rename; then forget the open attempt.

        ``batch`` gets the SHA-256 of the round's files by name and gives what becomes ``log.batch``, whose
        path is returned.
        """
        folder = self._rounds / f"{number:04d}"
        note = Note(
            round=record["round"],
            plan_digest=record["plan_digest"],
            base_fingerprint=record["base_fingerprint"],
            adapter_digest=record["adapter_out"],
        )
        with folder_that_appears(folder) as new:
            (new / CHECKPOINT).write_bytes(encode_checkpoint(state, note))
            (new / RECORD).write_text(_json(record), "utf-8")
            write_adapter(new / ADAPTER)
            for name in (SUMS, VECTORS):
                if (self._open(number) / name).is_dir():
                    (self._open(number) / name).rename(new / name)
            files = [new / CHECKPOINT, new / RECORD, *sorted((new / ADAPTER).iterdir())]
            digests = {f"rounds/{folder.name}/{p.relative_to(new)}": sha256_of(p) for p in files}
            (new / BATCH).write_bytes(batch(digests))
        self._last = number
        shutil.rmtree(self._open(number), ignore_errors=True)
        return folder / BATCH

    def batches(self) -> list[Path]:
        """Where leaves may lie that are not in the log's tiles yet."""
        paths = self._rounds.glob(f"[0-9]*/{BATCH}")
        of_rounds = [path for path in paths if ROUND.fullmatch(path.parent.name)]
        return sorted(of_rounds, key=lambda path: int(path.parent.name))

    def drop_vectors(self, number: int) -> None:
        """Delete a round's masked vectors."""
        folder = self._rounds / f"{number:04d}"
        if (folder / VECTORS).is_dir():
            gone = self._rounds / f".{number:04d}.vectors.tmp"
            (folder / VECTORS).rename(gone)
            sync(folder)
            shutil.rmtree(gone)

    def with_vectors(self) -> Iterator[tuple[int, float]]:
        """Rounds with masked vectors, oldest first, and when these were published (seconds since 1970)."""
        for number in range(self._without_vectors, (self.last_round() or 0) + 1):
            folder = self._rounds / f"{number:04d}" / VECTORS
            if folder.is_dir():
                yield number, folder.stat().st_mtime
            if number == self._without_vectors and not folder.is_dir():
                self._without_vectors += 1  # none come to a round that is published

    def record(self, number: int) -> Record:
        """The record of a published round. Raises ArtefactError for damage."""
        folder = self._rounds / f"{number:04d}"
        try:
            return dict(json.loads((folder / RECORD).read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ArtefactError(f"{folder} is damaged: {_why(error)}", RESTORE) from None

    def load(self, number: int) -> tuple[State, Record]:
        """State and record of a published round. Raises ArtefactError for damage."""
        folder = self._rounds / f"{number:04d}"
        record = self.record(number)
        try:
            path = folder / CHECKPOINT
            state, note = decode_checkpoint(path.read_bytes(), source=str(path))
            if note.adapter_digest != record["adapter_out"]:
                raise ValueError("checkpoint and record are of different rounds")
            return state, record
        except ArtefactError as error:
            raise ArtefactError(f"{error.cause}; the round is damaged", RESTORE) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{folder} is damaged: {_why(error)}", RESTORE) from None

    # -- the open attempt -------------------------------------------------------------------------

    def open_attempt(self, number: int, content: Record) -> None:
        """Begin an attempt: its cohort is on disk before anybody is asked."""
        folder = self._open(number)
        shutil.rmtree(folder, ignore_errors=True)
        with folder_that_appears(folder, mode=0o700) as new:  # `plain`: it holds single updates
            (new / OPEN).write_text(_json(content), "utf-8")

    def opened(self, number: int) -> Record | None:
        """The attempt that was open when the coordinator stopped, if any."""
        try:
            content: Record = json.loads((self._open(number) / OPEN).read_text("utf-8"))
            return content
        except (OSError, ValueError):
            return None

    def replies(self, number: int) -> Replies:
        """What came of the open attempt in clear."""
        return Replies(self._open(number))

    def forget_vectors(self, number: int, group: int | None = None) -> None:
        """Delete masked vectors and sums of the open attempt, all or a group's: there is no sum of them."""
        for kind in (VECTORS, SUMS):
            folder = self._open(number) / kind
            if group is None:
                shutil.rmtree(folder, ignore_errors=True)
            elif kind == VECTORS:
                shutil.rmtree(folder / str(group), ignore_errors=True)

    def put_vector(self, number: int, group: int, client: str, packed: memoryview) -> None:
        """Keep a masked vector for auditors, with the leaf hashes of its root. (P-8.4)

        Not fsynced before its round is published.
        """
        folder = self._open(number) / VECTORS / str(group)
        folder.mkdir(parents=True, exist_ok=True)
        pieces = (packed[at : at + CHUNK] for at in range(0, len(packed), CHUNK))
        (folder / client).write_bytes(packed)
        (folder / f"{client}.chunks").write_bytes(b"".join(map(leaf_hash, pieces)))

    def put_sum(self, number: int, name: str, data: bytes) -> None:
        """Keep what is published of an opened sum."""
        folder = self._open(number) / SUMS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    def note_revealing(self, number: int, seq: int, sums: Sequence[AskedSum]) -> None:
        """The open attempt asks clients to open ``sums``: on disk before anybody is asked."""
        asked = self.revealing(number) | {seq: list(sums)}
        content = {str(seq): [one.model_dump() for one in asked[seq]] for seq in sorted(asked)}
        write_whole(self._open(number) / REVEALING, json.dumps(content).encode())

    def revealing(self, number: int) -> dict[int, list[AskedSum]]:
        """What the open attempt has asked for, by number: of several, when it was killed."""
        path = self._open(number) / REVEALING
        content = json.loads(path.read_bytes()) if path.exists() else {}
        return {
            int(seq): [AskedSum.model_validate(one) for one in sums]
            for seq, sums in content.items()
        }

    def fail_attempt(self, number: int, attempt: int, record: Record) -> None:
        """Record a failed attempt and forget its replies."""
        write_whole(self._failure(number, attempt), _json(record).encode())
        shutil.rmtree(self._open(number), ignore_errors=True)

    def failed_attempts(self, number: int) -> int:
        """How many attempts at this round are recorded as failed: they are counted from 1."""
        attempts = itertools.count(1)
        return next(each for each in attempts if not self._failure(number, each).exists()) - 1

    def last_failure(self, number: int) -> Record | None:
        """The record of the last attempt at this round that failed."""
        last = self.failed_attempts(number)
        return dict(json.loads(self._failure(number, last).read_text("utf-8"))) if last else None

    def _failure(self, number: int, attempt: int) -> Path:
        return self._rounds / f"{number:04d}.attempt{attempt}.json"

    def _open(self, number: int) -> Path:
        return self._rounds / f".{number:04d}.open"


def is_revealing(rounds: Path, number: int) -> bool:
    """Whether the attempt that is open at a round has asked for sums; for others than the run's owner."""
    return (rounds / f".{number:04d}.open" / REVEALING).exists()


def _why(error: Exception) -> str:
    return str(error) if type(error) is ValueError else type(error).__name__


def _json(value: Record) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
