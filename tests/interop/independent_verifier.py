"""A second auditor, written from docs/protocol.md alone: standard library, numpy and cryptography.

It verifies runs with X25519 keys, one group, AES masks of 16 or 32 bits, and `fedavg` at rate 1; it asserts
where it finds a fault. It shares no line with the packages of this repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Words = Any
STATEMENT = "urn:fedge:leaf:"


def tagged(tag: str, message: bytes) -> bytes:
    return b"fedge/" + tag.encode() + b"/v1\0" + message


def named_hash(tag: str, message: bytes) -> bytes:
    """HASH of P-1.1 as bytes."""
    return hashlib.sha256(tagged(tag, message)).digest()


def derived(secret: bytes, label: str, context: bytes) -> bytes:
    """KDF of P-6.1."""
    return HKDF(SHA256(), 32, b"", tagged(label, context)).derive(secret)


def check_signature(public: bytes, tag: str, message: bytes, signature: str) -> None:
    """SIG of P-6.1."""
    key = Ed25519PublicKey.from_public_bytes(public)
    key.verify(bytes.fromhex(signature), tagged(tag, message))


def canonical(value: Any) -> bytes:
    """P-1.1: reals as C99 hexadecimal strings."""

    def plain(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: plain(each) for key, each in one.items()}
        if isinstance(one, list):
            return [plain(each) for each in one]
        return one.hex() if isinstance(one, float) else one

    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


# -- P-8.1, P-8.2, P-8.4: the log -----------------------------------------------------------------


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\0" + leaf).digest()


def tree_root(hashes: list[bytes]) -> bytes:
    """RFC 6962, by its recursion."""
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1
    while 2 * split < len(hashes):
        split *= 2
    return hashlib.sha256(b"\1" + tree_root(hashes[:split]) + tree_root(hashes[split:])).digest()


def read_entries(run: Path) -> tuple[bytes, list[bytes]]:
    """(the log's raw key, its leaves) under a checkpoint that verifies."""
    name, identity, encoded = (run / "log/key").read_text().strip().split("+", 2)
    key = base64.b64decode(encoded)
    assert key[0] == 1
    assert hashlib.sha256(name.encode() + b"\n" + key).hexdigest()[:8] == identity
    text, _, signatures = (run / "log/checkpoint").read_text().partition("\n\n")
    dash, signer, line = signatures.split("\n")[0].split(" ")
    assert (dash, signer) == ("\u2014", name)
    assert base64.b64decode(line)[:4].hex() == identity
    message = f"{text}\n".encode()
    Ed25519PublicKey.from_public_bytes(key[1:]).verify(base64.b64decode(line)[4:], message)
    origin, size, root = text.split("\n")
    assert origin == name
    entries: list[bytes] = []
    for first in range(0, int(size), 256):
        width = min(256, int(size) - first)
        path = run / f"log/tile/entries/{first // 256:03d}{'' if width == 256 else f'.p/{width}'}"
        data = path.read_bytes()
        while data:
            length = struct.unpack(">H", data[:2])[0]
            entries.append(data[2 : 2 + length])
            data = data[2 + length :]
    assert len(entries) == int(size) < 256_000
    assert tree_root([leaf_hash(entry) for entry in entries]) == base64.b64decode(root)
    return key[1:], entries


def parse_leaf(entry: bytes, log_key: bytes) -> dict[str, Any]:
    """P-8.5: a message as it is; of a statement its predicate, its kind, and what it is about."""
    value = json.loads(entry)
    assert canonical(value) == entry
    if "kind" in value:
        return dict(value)
    payload = base64.b64decode(value["payload"])
    kind, (signature,) = value["payloadType"], value["signatures"]
    assert kind == "application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    assert signature["keyid"] == hashlib.sha256(log_key).hexdigest()[:16]
    Ed25519PublicKey.from_public_bytes(log_key).verify(base64.b64decode(signature["sig"]), signed)
    statement = json.loads(payload)
    about = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    kind = statement["predicateType"].removeprefix(STATEMENT).removesuffix(":1")
    return {**statement["predicate"], "kind": kind, "about": about}


# -- P-6: a sum -----------------------------------------------------------------------------------


class Sum:
    """The leaves of one sum, and what they say when they are checked."""

    def __init__(self, run: Path, sid: bytes, roster: dict[bytes, bytes]) -> None:
        self.run, self.sid, self.roster = run, sid, roster
        self.leaves: dict[str, list[dict[str, Any]]] = {}

    def add(self, leaf: dict[str, Any]) -> None:
        self.leaves.setdefault(leaf["kind"], []).append(leaf)

    def only(self, kind: str) -> dict[str, Any]:
        (leaf,) = self.leaves[kind]
        return leaf

    def check(self) -> None:
        """P-6.5 to P-6.7: adverts, cohort, shares, members, vectors, alive set."""
        cohort, opened, alive = (self.only(kind) for kind in ("cohort", "round-open", "alive"))
        self.actx = self.sid + cohort["seq"].to_bytes(8, "big")
        self.adverts: dict[bytes, tuple[bytes, bytes]] = {}  # mask key, commitment
        bodies = b""
        for leaf in self.leaves["advert"]:
            data = bytes.fromhex(leaf["advert"])
            assert len(data) == 152 + 64
            body, one = data[:152], data[40:56]
            assert body[:40] == self.actx
            assert not self.adverts or one > max(self.adverts)
            check_signature(self.roster[one], "advert", body, data[152:].hex())
            self.adverts[one] = body[88:120], body[120:152]
            bodies += body
        count = len(self.adverts)
        k = count - 1
        t = 2 * k // 3 + 1
        assert named_hash("u1", bodies).hex() == cohort["u1_root"]
        found = [cohort[name] for name in ("degree", "threshold", "graph_seed", "alive_index")]
        assert found == [k, t, "00" * 32, None]
        self.xid = named_hash(
            "share-ctx",
            self.actx + named_hash("u1", bodies) + bytes(32) + struct.pack(">HHQ", k, t, 2**64 - 1),
        )
        assert self.xid.hex() == cohort["xid"] == opened["xid"]
        for leaf in self.leaves["shares"]:
            one = bytes.fromhex(leaf["client"])
            message = self.xid + one + bytes.fromhex(leaf["root"])
            check_signature(self.roster[one], "shares", message, leaf["signature"])
        self.members = [bytes.fromhex(one) for one in opened["members"]]
        assert [leaf["client"] for leaf in self.leaves["shares"]] == opened["members"]
        assert self.members == sorted(self.members)
        members = named_hash("u2", b"".join(self.members))
        self.rid = named_hash("round", self.xid + members + canonical(opened["terms"]))
        assert self.rid.hex() == opened["rid"] == alive["rid"]
        self.alive = [bytes.fromhex(one) for one in alive["clients"]]
        assert [leaf["client"] for leaf in self.leaves["vector"]] == alive["clients"]
        assert set(self.alive) <= set(self.members) <= set(self.adverts)
        assert len(self.alive) >= opened["terms"]["minimum"]
        statement = self.rid + hashlib.sha256(b"".join(self.alive)).digest()
        for client, signature in alive["signatures"].items():
            assert bytes.fromhex(client) in self.adverts
            check_signature(self.roster[bytes.fromhex(client)], "alive", statement, signature)
        assert len(alive["signatures"]) >= 2 * count // 3 + 1

    def words(self) -> Words:
        """P-6.8: vectors without masks, equal to the published sum."""
        opened = self.only("round-open")
        kind = np.dtype("<u2" if opened["terms"]["bits"] <= 16 else "<u4")
        total = np.zeros(opened["count"], kind)
        for leaf in self.leaves["vector"]:
            one = bytes.fromhex(leaf["client"])
            folder = f"rounds/{opened['round']:04d}/vectors/{opened['group']}"
            data = (self.run / folder / leaf["client"]).read_bytes()
            pieces = [leaf_hash(data[at : at + 65_536]) for at in range(0, len(data), 65_536)]
            assert (tree_root(pieces).hex(), len(data)) == (leaf["root"], leaf["length"])
            message = self.rid + one + tree_root(pieces) + named_hash("proof", b"")
            check_signature(self.roster[one], "vector", message, leaf["signature"])
            total += np.frombuffer(data, kind)
        for key, sign in self.masks():
            stream = Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(total.nbytes))
            mask = np.frombuffer(stream, kind)
            total = total + mask if sign > 0 else total - mask
        aggregate = self.only("aggregate")
        assert hashlib.sha256(total.tobytes()).hexdigest() == aggregate["sum"]
        name = f"rounds/{opened['round']:04d}/sums/{opened['group']}.sum"
        assert aggregate["about"] == {name: aggregate["sum"]}
        assert (self.run / name).read_bytes() == total.tobytes()
        return total

    def masks(self) -> list[tuple[bytes, int]]:
        """Of the seeds: self masks of those in the sum, pair masks of those that were lost."""
        seeds = self.only("reveal")["seeds"]
        assert sorted(seeds) == [one.hex() for one in self.members]
        found = []
        for one in self.members:
            seed = bytes.fromhex(seeds[one.hex()])
            mask_key, commitment = self.adverts[one]
            if one in self.alive:
                assert named_hash("bcommit", self.actx + one + seed) == commitment
                found.append((derived(seed, "self", self.rid), -1))
                continue
            secret = X25519PrivateKey.from_private_bytes(derived(seed, "mask-sk", self.actx))
            assert secret.public_key().public_bytes_raw() == mask_key
            for other in self.alive:
                shared = secret.exchange(X25519PublicKey.from_public_bytes(self.adverts[other][0]))
                pair = min(one, other) + max(one, other)
                # What the other one added has to go, what it took away comes back.
                sign = 1 if one < other else -1
                found.append((derived(shared, "pair", self.rid + pair), sign))
        return found

    def mean(self) -> Any:
        """P-6.9: the decoded mean, (size,) float32."""
        opened, n = self.only("round-open"), len(self.alive)
        terms = opened["terms"]
        size, clip, bits = terms["size"], float.fromhex(terms["clip"]), terms["bits"]
        q = (2**bits - 1) // len(self.members)
        assert q == terms["levels"]
        padded = 1 << (size - 1).bit_length()
        assert padded <= 65_536
        numbers = struct.pack(">QQ", opened["round"], opened["attempt"])
        plan = bytes.fromhex(terms["instruction"]["plan_digest"])
        rotation = named_hash("rotation", plan + numbers)
        assert rotation.hex() == terms["rotation"]
        values = 2 * self.words()[:padded].astype(np.int64) - n * q
        step = 1
        while step < padded:
            pairs = values.reshape(-1, 2, step)
            values = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), 1).reshape(-1)
            step *= 2
        stream = Cipher(AES(rotation), CTR(bytes(16))).encryptor().update(bytes(padded // 8 + 1))
        minus = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")[:padded]
        values = np.where(minus, -values, values)[:size]
        reach = 5.0 * clip / math.sqrt(padded)
        return (values.astype(np.float64) * (reach / (q * math.sqrt(padded) * n))).astype(
            np.float32
        )


# -- P-2, P-4: adapters ---------------------------------------------------------------------------


def read_adapter(path: Path) -> dict[str, Any]:
    """P-4.9: the adapter's tensors of a checkpoint."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name.startswith("adapter/"):
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            found[name.removeprefix("adapter/")] = np.frombuffer(data[start:stop], "<f4")
    return found


def adapter_digest(adapter: dict[str, Any]) -> str:
    """P-2.4."""
    return named_hash(
        "adapter", b"".join(adapter[name].tobytes() for name in sorted(adapter))
    ).hex()


def trained(name: str, number: int) -> bool:
    """P-2.2 for the rule `alternating`: B in odd rounds, A in even ones, always the head."""
    return not name.endswith(".lora_A" if number % 2 else ".lora_B")


def verify_run(run: Path) -> list[int]:
    """The rounds of a run, each verified. Raises AssertionError, InvalidSignature, KeyError."""
    log_key, entries = read_entries(run)
    leaves = [parse_leaf(entry, log_key) for entry in entries]
    first, roster_leaf = leaves[0], leaves[1]
    plan = json.loads((run / "plan.json").read_text())
    assert named_hash("plan", canonical(plan)).hex() == first["plan"]
    assert (plan["rule"]["name"], plan["server"]["optimizer"]) == ("alternating", "fedavg")
    assert plan["server"]["learning_rate"] == 1.0
    names = json.loads((run / f"rosters/{roster_leaf['root']}.json").read_text())["clients"]
    lines = "".join(f"{name}\x1f{key}\n" for name, key in sorted(names.items()))
    assert named_hash("roster", lines.encode()).hex() == roster_leaf["root"]
    keys = [bytes.fromhex(key) for key in names.values()]
    roster = {hashlib.sha256(key).digest()[:16]: key for key in keys}
    sid = named_hash("run", bytes.fromhex(first["plan"]) + bytes.fromhex(first["run"]))
    done, made, before = [], Sum(run, sid, roster), {}
    for leaf in leaves[2:]:
        if leaf["kind"] != "adapter":
            made.add(leaf)
            continue
        number = leaf["round"]
        after = read_adapter(run / f"rounds/{number:04d}/checkpoint.safetensors")
        assert adapter_digest(after) == leaf["adapter_out"]
        for name, digest in leaf["about"].items():
            assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest
        if number:
            check_round(made, leaf, before, after)
            done.append(number)
        made, before = Sum(run, sid, roster), after
    return done


def check_round(
    made: Sum, leaf: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> None:
    """The sum of a round makes its adapter out of the one before."""
    made.check()
    told = made.only("round-open")["terms"]["instruction"]
    assert told["adapter_digest"] == leaf["adapter_in"] == adapter_digest(before)
    assert told["round"] == leaf["round"]
    moved, at = made.mean(), 0
    for name in sorted(before):
        expected = before[name]
        if trained(name, leaf["round"]):
            expected = expected + moved[at : at + len(expected)]
            at += len(expected)
        assert expected.tobytes() == after[name].tobytes(), name
    assert at == len(moved)
