"""A run's log as an auditor reads it: signed checkpoint, all leaves, the tree over them. (P-8.1, P-8.16)

Everything is recomputed from the entries; the hash tiles, which smaller verifiers rely on, have to be
those of the same tree. A fault here is a fault of the whole log: there is nothing to go on with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from audit.sources import MissingError, Source
from protocol.documents import parse_json
from protocol.encoding import base64_bytes
from protocol.errors import ProofError
from protocol.merkle import leaf_hash
from protocol.transparency.note import (
    Checkpoint,
    VerifierKey,
    parse_checkpoint,
    parse_key,
    verify_note,
)
from protocol.transparency.policy import Policy
from protocol.transparency.tiles import MOST_LEAVES, parse_entries, tiles_grown, tiles_needed
from protocol.transparency.tree import Tree

LOG, BATCH = "log/", "log.batch"
MOST_BYTES, MOST_BATCH_BYTES = 2**32, 2**29  # of all leaves together, of a batch's file
REMEDY = "keep what you have as evidence, and ask the coordinator and its witnesses"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What an auditor knows beforehand: the log's key, whose cosignatures it asks for, what it saw last.

    ``kept`` is the note of a checkpoint.
    """

    key: VerifierKey | None = None
    policy: Policy | None = None
    kept: str | None = None


@dataclass(frozen=True, kw_only=True)
class LogCopy:
    """All leaves of a log, with the checkpoint that covers them. ``note`` is its signed text."""

    key: VerifierKey
    note: str
    checkpoint: Checkpoint
    entries: tuple[bytes, ...]
    tree: Tree
    batches: tuple[str, ...]  # files with leaves that are not in the tiles yet
    tiled: int  # leaves that are in the tiles


def read_log(source: Source, trust: Trust) -> LogCopy:
    """Read and check the whole log.

    Raises ProofError when its key, checkpoint, tree or growth is not what it must be, MissingError and
    ArtefactError for files that cannot be read.
    """
    key = _key(source, trust)
    reading = _Reading(source, key)
    reading.read_tiles()
    if trust.policy is None:
        reading.read_batches()
    else:
        # Leaves that only wait in a batch are not what witnesses have seen.
        if trust.policy.verify_checkpoint(reading.note).origin != key.name:
            raise ProofError("the policy is about another log", REMEDY)
    checkpoint = reading.checkpoint
    if trust.kept is not None:
        _check_growth(parse_kept(trust.kept, key), checkpoint, reading.tree)
    return LogCopy(
        key=key,
        note=reading.note,
        checkpoint=checkpoint,
        entries=tuple(reading.entries),
        tree=reading.tree,
        batches=tuple(reading.batches),
        tiled=reading.tiled,
    )


def parse_kept(note: str, key: VerifierKey) -> Checkpoint:
    """The checkpoint of a note that this log has signed. Raises ProofError."""
    return parse_checkpoint(verify_note(note, [key]).text, origin=key.name)


def batch_path(number: int) -> str:
    """Where the leaves of a round wait until they are in the tiles."""
    return f"rounds/{number:04d}/{BATCH}"


def tile_names(entries: Sequence[bytes]) -> list[str]:
    """The tiles of a log of these leaves: entries, then hashes."""
    tree = Tree(map(leaf_hash, entries))
    names = [path for path, _ in tiles_needed(len(entries))]
    return [LOG + path for path in [*names, *(path for path, _ in tiles_grown(tree, 0))]]


def _key(source: Source, trust: Trust) -> VerifierKey:
    try:
        key = parse_key(source.read("log/key").decode().removesuffix("\n"))
    except MissingError:
        raise MissingError(
            f"{source.where} is no run with a log: log/key is not there",
            "name a run's folder, or the address of an exported copy",
        ) from None
    except UnicodeDecodeError:
        raise ProofError("log/key is no verifier key", REMEDY) from None
    if trust.key is not None and key != trust.key:
        raise ProofError(f"log/key is not the pinned key of {trust.key.name}", REMEDY)
    return key


def _check_growth(old: Checkpoint, new: Checkpoint, tree: Tree) -> None:
    if old.size > new.size:
        raise ProofError(
            f"the log shrank from {old.size} leaves, which were seen before, to {new.size}", REMEDY
        )
    if tree.root(old.size) != old.root:
        raise ProofError(
            f"the log's first {old.size} leaves are not those that were seen before", REMEDY
        )


class _Reading:
    """Tiles, then batches; the tree has to be the signed one after each."""

    def __init__(self, source: Source, key: VerifierKey) -> None:
        self._source, self._key = source, key
        self.entries: list[bytes] = []
        self._bytes = 0
        self.tree = Tree()
        self.note = ""
        self.batches: list[str] = []
        self.tiled = 0
        self.checkpoint = Checkpoint(origin=key.name, size=0, root=self.tree.root())

    def read_tiles(self) -> None:
        """What ``log/checkpoint`` covers; nothing when there is none yet."""
        try:
            self.note = _text(self._source.read("log/checkpoint"), "log/checkpoint")
        except MissingError:
            if not self._source.exists(batch_path(0)):
                raise
            return
        self.checkpoint = parse_kept(self.note, self._key)
        if self.checkpoint.size > MOST_LEAVES:
            raise ProofError(
                f"a log of {self.checkpoint.size} leaves, at most {MOST_LEAVES}", REMEDY
            )
        for path, count in tiles_needed(self.checkpoint.size):
            data, grown = self._tile(path)
            entries = parse_entries(data)
            entries = entries[:count] if grown else entries
            if len(entries) != count:
                raise ProofError(f"{LOG + path} has {len(entries)} entries, not {count}", REMEDY)
            self._add(entries)
        self._check_root("the tiles")
        self.tiled = len(self.entries)
        for path, derived in tiles_grown(self.tree, 0):
            data, grown = self._tile(path)
            if (data[: len(derived)] if grown else data) != derived:
                raise ProofError(f"{LOG + path} is not of the tree of the entries", REMEDY)

    def _tile(self, path: str) -> tuple[bytes, bool]:
        """A tile; True where a partial one is gone because the log has grown: the full one begins with it."""
        try:
            return self._source.read(LOG + path), False
        except MissingError:
            full = path.partition(".p/")[0]
            if full == path:
                raise
            return self._source.read(LOG + full), True

    def read_batches(self) -> None:
        """Leaves of a round that is visible, and of ``log``, which a writer left for later."""
        while True:
            before = len(self.batches)
            for name in (batch_path(self._next_round()), LOG + BATCH):
                if name not in self.batches and self._source.exists(name):
                    self._take(name)
            if len(self.batches) == before:
                return

    def _take(self, name: str) -> None:
        start, entries, note = parse_batch(self._source.read(name), name)
        checkpoint = parse_kept(note, self._key)
        shared = len(self.entries) - start
        if shared < 0 or self.entries[start : start + len(entries)] != entries[: max(shared, 0)]:
            raise ProofError(f"{name} does not follow the log", REMEDY)
        if checkpoint.size != start + len(entries):
            raise ProofError(f"{name}: its checkpoint is of other leaves", REMEDY)
        self.batches.append(name)
        if shared >= len(entries):
            return  # all of it is in the tiles already
        self._add(entries[shared:])
        self.note, self.checkpoint = note, checkpoint
        self._check_root(name)

    def _add(self, entries: list[bytes]) -> None:
        self._bytes += sum(map(len, entries))
        if self._bytes > MOST_BYTES:
            raise ProofError(f"leaves of more than {MOST_BYTES} bytes together", REMEDY)
        for entry in entries:
            self.entries.append(entry)
            self.tree.append(leaf_hash(entry))

    def _check_root(self, what: str) -> None:
        if (len(self.entries), self.tree.root()) != (self.checkpoint.size, self.checkpoint.root):
            raise ProofError(f"{what}: the leaves are not those of the signed root", REMEDY)

    def _next_round(self) -> int:
        """The round whose batch may wait: rounds are counted by their `adapter` leaves."""
        return sum(b'"payload"' in entry and _is_adapter(entry) for entry in self.entries)


def _is_adapter(entry: bytes) -> bool:
    try:
        payload = base64_bytes(json.loads(entry)["payload"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return b'"predicateType":"urn:fedge:leaf:adapter:1"' in payload


def parse_batch(data: bytes, name: str) -> tuple[int, list[bytes], str]:
    """(first leaf, leaves, checkpoint) of a batch. Raises ProofError."""
    try:
        body: Any = parse_json(data, most=MOST_BATCH_BYTES, values=2 * MOST_LEAVES)
        if set(body) != {"start", "entries", "checkpoint"} or type(body["start"]) is not int:
            raise ValueError
        entries = [base64_bytes(entry) for entry in body["entries"]]
        return body["start"], entries, str(body["checkpoint"])
    except (ValueError, TypeError):
        raise ProofError(f"{name} is no batch of leaves", REMEDY) from None


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ProofError(f"{name} is no text", REMEDY) from None
