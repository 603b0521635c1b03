"""P-8.1, P-8.2, P-8.4 to P-8.7: the log's tree, its checkpoint, and what its leaves say."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .basics import canonical, octets, sha256

MESSAGES = {
    "advert": "group advert",
    "shares": "client xid root signature",
    "vector": "client rid root length signature",
    "complaint": "client about receipt signature",
}
STATEMENTS = {
    "plan": "origin run plan base retention_days",
    "roster": "root clients",
    "cohort": "seq group u1_root graph_seed degree threshold alive_index xid",
    "round-open": "seq group round attempt rid xid members terms count code",
    "alive": "seq group rid clients signatures",
    "reveal": "seq group rid seeds boxes",
    "aggregate": "seq group rid round summands sum",
    "dp": "entry",
    "adapter": "round attempt seq adapter_in adapter_out published exchange sums void",
    "abort": "seq group round attempt revealed",
    "eval": "round rows metrics",
    "release": "round adapter eval",
    "retention": "round vectors",
    "audit": "size verdict rounds tool auditor",
    "withdrawal": "request first rounds asked adapters releases before",
    "pad": "",
}


@dataclass
class Leaf:
    """A leaf: its kind and place, its fields, and of a statement what it is about (SHA-256 by name)."""

    kind: str
    index: int
    fields: dict[str, Any]
    about: dict[str, str]
    entry: bytes

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True)
class Key:
    """The log's verifier key."""

    text: str
    name: str
    identity: bytes
    raw: bytes


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\0" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def tree_root(hashes: list[bytes]) -> bytes:
    """RFC 6962, by its recursion."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node_hash(tree_root(hashes[:split]), tree_root(hashes[split:]))


def path_root(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that an inclusion proof leads to, by the same recursion from above."""
    if size == 1:
        assert not path
        return leaf
    split = 1 << (size - 1).bit_length() - 1
    if index < split:
        return node_hash(path_root(leaf, index, split, path[:-1]), path[-1])
    return node_hash(path[-1], path_root(leaf, index - split, size - split, path[:-1]))


def read_log(run: Path) -> tuple[Key, list[Leaf]]:
    """(the log's key, its leaves) under a checkpoint that verifies."""
    key = read_key(run)
    size, root = read_note((run / "log/checkpoint").read_text(), key)
    entries = read_entries(run, size)
    hashes = [leaf_hash(entry) for entry in entries]
    assert tree_root(hashes) == root
    check_tiles(run, hashes)
    leaves = [parse_leaf(index, entry, key.raw) for index, entry in enumerate(entries)]
    for leaf in leaves:
        put_lists(run, leaf)
    assert leaves[0].kind == "plan"
    assert leaves[0]["origin"] == key.name
    return key, leaves


def read_key(run: Path) -> Key:
    """log/key."""
    return parse_key((run / "log/key").read_text().removesuffix("\n"), 1)


def parse_key(text: str, kind: int) -> Key:
    """P-8.2: a verifier key, of a log (1) or a witness (4)."""
    name, identity, encoded = text.split("+", 2)
    key = octets(encoded)
    assert (key[0], len(key)) == (kind, 33)
    assert sha256(name.encode() + b"\n" + key)[:8] == identity
    return Key(text, name, bytes.fromhex(identity), key[1:])


def read_note(note: str, key: Key) -> tuple[int, bytes]:
    """(size, root) of a checkpoint that the log signed."""
    text, (signature,) = note.partition("\n\n")[0], signatures_of(note, key)
    Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, f"{text}\n".encode())
    origin, size, root = text.split("\n")
    assert origin == key.name
    return int(size), octets(root)


def signatures_of(note: str, key: Key) -> list[bytes]:
    """What the lines hold that name a key; without a line of anybody there is no note."""
    lines = note.partition("\n\n")[2].removesuffix("\n").split("\n")
    split = [line.split(" ") for line in lines]
    assert all((len(words), words[0]) == (3, "\u2014") for words in split)
    named = [octets(data) for _, signer, data in split if signer == key.name]
    return [data[4:] for data in named if data[:4] == key.identity]


def check_trust(run: Path, key: Key, plan: dict[str, Any]) -> None:
    """P-8.2, P-8.12: whom the log names to be believed, and what witnesses have signed of it."""
    audit = plan["audit"]
    witnesses, quorum = [parse_key(text, 4) for text in audit["witnesses"]], audit["witness_quorum"]
    lines = [f"log {key.text}"]
    if witnesses:
        assert audit["log"] == key.text
        assert len(witnesses) < 2 * quorum <= 2 * len(witnesses)
        assert len({key.raw, *(one.raw for one in witnesses)}) == 1 + len(witnesses)
        names = [f"w{number}" for number in range(1, len(witnesses) + 1)]
        keys = zip(names, witnesses, strict=True)
        lines += [f"witness {name} {one.text}" for name, one in keys]
        lines.append(f"group all {quorum} {' '.join(names)}")
    lines.append("quorum all" if witnesses else "quorum none")
    assert (run / "log/policy").read_text() == "\n".join(lines) + "\n"
    note = (run / "log/checkpoint").read_text()
    for one in witnesses:
        for data in signatures_of(note, one):
            time = int.from_bytes(data[:8], "big")
            text = f"cosignature/v1\ntime {time}\n" + note.partition("\n\n")[0] + "\n"
            Ed25519PublicKey.from_public_bytes(one.raw).verify(data[8:], text.encode())


def tile_name(index: int, width: int) -> str:
    return f"{index:03d}" + ("" if width == 256 else f".p/{width}")


def check_tiles(run: Path, hashes: list[bytes]) -> None:
    """C2SP tlog-tiles: of level n the roots of 256^n leaves each, 256 to a tile."""
    level = 0
    while hashes:
        for first in range(0, len(hashes), 256):
            part = hashes[first : first + 256]
            path = run / f"log/tile/{level}/{tile_name(first // 256, len(part))}"
            assert path.read_bytes() == b"".join(part)
        whole = len(hashes) // 256 * 256
        hashes = [tree_root(hashes[at : at + 256]) for at in range(0, whole, 256)]
        level += 1


def read_entries(run: Path, size: int) -> list[bytes]:
    """The entry tiles; logs of more than 256,000 leaves are beyond this verifier."""
    assert size < 256_000
    entries: list[bytes] = []
    for first in range(0, size, 256):
        width = min(256, size - first)
        data = (run / f"log/tile/entries/{tile_name(first // 256, width)}").read_bytes()
        while data:
            length = struct.unpack(">H", data[:2])[0]
            entries.append(data[2 : 2 + length])
            data = data[2 + length :]
    assert len(entries) == size
    return entries


def put_lists(run: Path, leaf: Leaf) -> None:
    """P-8.19: what a leaf has no room for, in its place."""
    sizes = {"members": 0, "clients": 0, "signatures": 64, "seeds": 32}
    holders = leaf["revealed"] if leaf.kind == "abort" else [leaf.fields]
    for fields in holders if leaf.kind in ("round-open", "alive", "reveal", "abort") else []:
        assert isinstance(fields, dict)
        for name in sizes.keys() & fields.keys():
            value, size = fields[name], 16 + sizes[name]
            if isinstance(value, list | dict):
                assert len(value) <= 128
                continue
            data = (run / "log/lists" / value).read_bytes()
            assert sha256(data) == value
            rows = [data[at : at + size].hex() for at in range(0, len(data), size)]
            assert len(data) == len(rows) * size
            ids = [row[:32] for row in rows]
            assert ids == sorted(set(ids))
            assert 128 < len(ids) <= 65_535
            fields[name] = {row[:32]: row[32:] for row in rows} if sizes[name] else ids


def parse_leaf(index: int, entry: bytes, log_key: bytes) -> Leaf:
    """P-8.5: exactly one spelling, exactly the fields of its kind, signed by whom it has to be."""
    value = json.loads(entry)
    assert canonical(value) == entry
    if "kind" in value:
        kind = value.pop("kind")
        drawn = kind == "shares" and "choice" in value  # P-6.3
        assert sorted(value) == sorted([*MESSAGES[kind].split(), *(["choice"] if drawn else [])])
        assert not drawn or len(bytes.fromhex(value["choice"])) == 32
        return Leaf(kind, index, value, {}, entry)
    assert sorted(value) == ["payload", "payloadType", "signatures"]
    payload = octets(value["payload"])
    form, (signature,) = value["payloadType"], value["signatures"]
    assert form == "application/vnd.in-toto+json"
    statement = json.loads(payload)
    assert canonical(statement) == payload
    assert sorted(statement) == ["_type", "predicate", "predicateType", "subject"]
    assert set(statement["subject"][0]) == {"name", "digest"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    kind = statement["predicateType"].removeprefix("urn:fedge:leaf:").removesuffix(":1")
    assert statement["predicateType"] == f"urn:fedge:leaf:{kind}:1"
    fields = statement["predicate"]
    assert sorted(fields) == sorted(STATEMENTS[kind].split())
    key = bytes.fromhex(fields["auditor"]) if kind == "audit" else log_key
    assert signature["keyid"] == sha256(key)[:16]
    signed = b"DSSEv1 %d %s %d %s" % (len(form), form.encode(), len(payload), payload)
    Ed25519PublicKey.from_public_bytes(key).verify(octets(signature["sig"]), signed)
    about = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert len(about) == len(statement["subject"]) > 0
    return Leaf(kind, index, fields, about, entry)
