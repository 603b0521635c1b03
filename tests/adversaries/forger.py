"""A coordinator that lies: it has the log's key, so it rewrites leaves and signs whatever it likes."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust, read_log
from audit.sources import Folder
from protocol.encoding import canonical_json, parse_canonical
from protocol.merkle import leaf_hash
from protocol.peft_format import PASSPORT_FILE
from protocol.transparency.dsse import PAYLOAD_TYPE, pae, sign_statement
from protocol.transparency.leaf_codec import PREDICATE, decode_leaf, sha256
from protocol.transparency.note import Checkpoint, sign_note
from protocol.transparency.offline import OfflineProof
from protocol.transparency.tiles import entry_tiles, pack_entries, tiles_grown
from protocol.transparency.tree import Tree

Change = Callable[[Any], None]


class Forger:
    """Over a run's own folder, its key among the files."""

    def __init__(self, run: Path) -> None:
        self.run = run
        secret = (run / "log.key").read_text().strip()
        self.key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
        self._copy = read_log(Folder(run), Trust())
        self.entries = list(self._copy.entries)

    def at(self, kind: str, nth: int = 0) -> int:
        """Where the ``nth`` leaf of a kind stands."""
        return [at for at, data in enumerate(self.entries) if kind_of(data) == kind][nth]

    def edit(self, index: int, change: Change) -> None:
        """Change a leaf's fields; a statement is signed again, a client's message cannot be."""
        value = parse_canonical(self.entries[index])
        if "payload" not in value:
            change(value)
            self.entries[index] = canonical_json(value)
            return
        statement = json.loads(base64.b64decode(value["payload"]))
        change(statement["predicate"])
        subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
        self._put(index, statement["predicateType"], statement["predicate"], subjects)

    def resubject(self, index: int, changes: Mapping[str, str]) -> None:
        """Change what a statement is about: SHA-256 by name."""
        statement = json.loads(base64.b64decode(parse_canonical(self.entries[index])["payload"]))
        subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
        self._put(
            index, statement["predicateType"], statement["predicate"], subjects | dict(changes)
        )

    def about(self, index: int, subjects: Mapping[str, str], *, as_given: bool = False) -> None:
        """A statement about other things; ``as_given``: in this order and no other."""
        statement = json.loads(base64.b64decode(parse_canonical(self.entries[index])["payload"]))
        if not as_given:
            self._put(index, statement["predicateType"], statement["predicate"], subjects)
            return
        listed = [{"digest": {"sha256": d}, "name": n} for n, d in subjects.items()]
        payload = canonical_json(statement | {"subject": listed})
        signature = self.key.sign(pae(PAYLOAD_TYPE, payload))
        envelope = parse_canonical(self.entries[index])
        envelope["payload"] = base64.b64encode(payload).decode()
        envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
        self.entries[index] = canonical_json(envelope)

    def statement(
        self, kind: str, predicate: Mapping[str, Any], subjects: Mapping[str, str]
    ) -> bytes:
        """Any leaf it likes."""
        return sign_statement(PREDICATE.format(kind), predicate, subjects, self.key)

    def republish(self, name: str, data: bytes) -> None:
        """Replace a file, and its digest in every statement about it."""
        _write(self.run / name, data)
        for index, entry in enumerate(self.entries):
            if name in decode_leaf(entry).subjects:
                self.resubject(index, {name: sha256(data)})

    def tree(self, size: int) -> bytes:
        """The root over the first leaves, as they now are."""
        return Tree(map(leaf_hash, self.entries[:size])).root()

    def sign(self) -> Path:
        """Write the tiles and the checkpoint of the leaves as they now are; the run's folder."""
        log, tree = self.run / "log", Tree(map(leaf_hash, self.entries))
        shutil.rmtree(log / "tile")
        files = [
            (name, pack_entries(self.entries[first:stop]))
            for name, first, stop in entry_tiles(0, len(self.entries))
        ]
        for name, data in files + tiles_grown(tree, 0):
            (log / name).parent.mkdir(parents=True, exist_ok=True)
            _write(log / name, data)
        origin = self._copy.key.name
        text = Checkpoint(origin=origin, size=tree.size, root=tree.root()).text
        _write(log / "checkpoint", f"{text}\n{sign_note(text, origin, self.key)}".encode())
        return self.run

    def sign_all(self) -> Path:
        """As :meth:`sign`, with passports of the releases as they now are."""
        run = self.sign()
        tree = Tree(map(leaf_hash, self.entries))
        for index, entry in enumerate(self.entries):
            if kind_of(entry) != "release":
                continue
            statement = json.loads(base64.b64decode(parse_canonical(entry)["payload"]))
            for name in (each["name"] for each in statement["subject"]):
                passport = run / Path(name).parent / PASSPORT_FILE
                if passport.parent.is_dir():
                    proof = OfflineProof(
                        index=index,
                        path=tuple(tree.inclusion(index)),
                        checkpoint=(run / "log/checkpoint").read_text(),
                        extra=entry,
                    )
                    _write(passport, proof.encode().encode())
        return run

    def _put(
        self, index: int, kind: str, predicate: Mapping[str, Any], subjects: Mapping[str, str]
    ) -> None:
        self.entries[index] = sign_statement(kind, predicate, subjects, self.key)


def linked(run: Path, folder: Path) -> Path:
    """A copy of a run for a forger, without copying a byte."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(run, folder, copy_function=os.link))


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # the file may be another copy's too
    path.write_bytes(data)


def kind_of(entry: bytes) -> str:
    """A leaf's kind, whatever its fields are."""
    value = parse_canonical(entry)
    if "payload" not in value:
        return str(value["kind"])
    kind = json.loads(base64.b64decode(value["payload"]))["predicateType"]
    return str(kind).removeprefix("urn:fedge:leaf:").removesuffix(":1")
