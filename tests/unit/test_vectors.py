"""The committed vectors: written again identically, and read by code that imports no fedge."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.encoding import canonical_json
from protocol.errors import PlanError, UpdateError
from protocol.exchange.plain import decode
from protocol.plan import parse_plan
from protocol.tasks.classification import METRICS
from tests.unit.published_vectors import fedge_hash, load
from tests.vectors.make import FILES, FOLDER, rendered


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_vectors_are_written_again_byte_for_byte(name: str) -> None:
    assert rendered(name) == (FOLDER / name).read_text(encoding="utf-8")
    assert {path.name for path in Path(FOLDER).glob("*.json")} == set(FILES)


def unmarked(value: Any) -> Any:
    """Reals become the strings they are carried as."""
    if isinstance(value, dict) and set(value) == {"real"}:
        return value["real"]
    if isinstance(value, dict):
        return {key: unmarked(item) for key, item in value.items()}
    return [unmarked(item) for item in value] if isinstance(value, list) else value


def test_identities() -> None:
    vectors = load("identities.json")
    for case in vectors["canonical_json"]:
        text = json.dumps(
            unmarked(case["value"]), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        assert text.encode() == bytes.fromhex(case["bytes"])
    for case in vectors["hash"]:
        assert fedge_hash(case["tag"], bytes.fromhex(case["message"])) == case["digest"]
    for case in vectors["seed"]:
        parts = "\x1f".join(map(str, case["parts"])).encode()
        first = hashlib.sha256(b"fedge/seed/v1\x00" + parts).digest()[:8]
        assert int.from_bytes(first, "big") >> 1 == case["seed"]
    digests = [case["digest"] for case in vectors["plan"]]
    assert len(set(digests)) == len(digests)
    for text in vectors["plan_refused"]:
        with pytest.raises(PlanError, match=r"base\.program"):
            parse_plan(text, source="vector")
    for case in vectors["adapter"]:
        assert fedge_hash("adapter", bytes.fromhex(case["vector"])) == case["digest"]


@pytest.mark.parametrize(
    "value", [math.nan, {"a": math.inf}, {"ä": 1}, {1: 2}, {"a": b"bytes"}, {1, 2}], ids=repr
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        canonical_json(value)


def test_codes() -> None:
    for case in load("codes.json")["dequantise"]:
        bits, rows, width = case["bits"], case["rows"], case["width"]
        blocks = -(-width // 32)
        raw = bytes.fromhex(case["qweight"])
        codes = [nibble for b in raw for nibble in (b & 15, b >> 4)] if bits == 4 else list(raw)
        scales = struct.unpack(f"<{rows * blocks}f", bytes.fromhex(case["scales"]))
        expected = np.frombuffer(bytes.fromhex(case["weight"]), "<f4").reshape(rows, width)
        for row in range(rows):
            for column in range(width):
                scale = np.float32(scales[row * blocks + column // 32])
                code = codes[row * blocks * 32 + column]
                assert np.float32(code - 2 ** (bits - 1)) * scale == expected[row, column]


def halved(parts: list[float]) -> float:
    """P-6.14: of n numbers the last floor(n/2) are added to the first ones, until one is left."""
    while len(parts) > 1:
        kept = len(parts) - len(parts) // 2
        parts = [
            parts[i] + (parts[kept + i] if kept + i < len(parts) else 0.0) for i in range(kept)
        ]
    return parts[0]


def drawn(seed: int, tensor: str, count: int) -> list[int]:
    """The odd words of P-2.3."""
    parts = f"initial\x1f{seed}\x1f{tensor}".encode()
    first = hashlib.sha256(b"fedge/seed/v1\x00" + parts).digest()[:8]
    named = (int.from_bytes(first, "big") >> 1).to_bytes(8, "little")
    stream = hashlib.shake_256(b"fedge/stream/v1\x00" + named).digest(4 * count)
    return [2 * word + 1 - 2**32 for word in struct.unpack(f"<{count}I", stream)]


def deviates(seed: int, tensor: str, count: int) -> list[float]:
    words = drawn(seed, tensor, 12 * count)
    return [sum(words[at : at + 12]) / 2.0**33 for at in range(0, len(words), 12)]


def orthonormal(seed: int, tensor: str, rows: int, columns: int) -> list[list[float]]:
    """The columns, one number at a time."""
    numbers, done = deviates(seed, tensor, rows * columns), []
    for at in range(columns):
        column = numbers[at * rows : (at + 1) * rows]
        for _ in range(2 if done else 0):
            shares = [halved([a * b for a, b in zip(q, column, strict=True)]) for q in done]
            column = [
                value - halved([share * q[i] for share, q in zip(shares, done, strict=True)])
                for i, value in enumerate(column)
            ]
        norm = math.sqrt(halved([value * value for value in column]))
        done.append([value / norm for value in column])
    return done


def test_round_0() -> None:
    """P-2.3 in Python's own floats: no array, no library, the same bytes."""
    for case in load("start.json")["round_0"]:
        seed, std = case["seed"], round(float.fromhex(case["embedding_std"]) * 4096) / 4096
        cores = any(name.endswith(".lora_R") for name in case["tensors"])
        for name, tensor in case["tensors"].items():
            shape = tensor["shape"]
            count = math.prod(shape)
            values = [0.0] * count
            if name.endswith(".lora_A") and cores:
                rows = orthonormal(seed, name, shape[1], shape[0])
                values = [value for row in rows for value in row]
            elif name.endswith(".lora_B") and cores:
                columns = orthonormal(seed, name, *shape)
                values = [column[row] for row in range(shape[0]) for column in columns]
            elif name.endswith(".lora_A"):
                bound = 1.0 / math.sqrt(shape[1])
                values = [word / 2.0**32 * bound for word in drawn(seed, name, count)]
            elif name == "soft_prompt":
                values = [deviate * std for deviate in deviates(seed, name, count)]
            elif name == "classifier.weight":
                values = [deviate * 0.02 for deviate in deviates(seed, name, count)]
            assert struct.pack(f"<{count}f", *values).hex() == tensor["bytes"], name


def test_plain_messages_and_their_sum() -> None:
    vectors = load("plain.json")
    total, weight = [0] * vectors["size"], 0
    for member in vectors["members"]:
        metrics = list(member["metrics"].values())
        header = struct.pack("<8sII5d", b"fedgeP1\0", vectors["size"], member["weight"], *metrics)
        assert (header.hex() + member["update"]) == member["message"]
        update = struct.unpack(f"<{vectors['size']}f", bytes.fromhex(member["update"]))
        for place, value in enumerate(update):
            # round() is exact here: the product with a power of two is, and ties go to even.
            total[place] += round(value * 2**32) * member["weight"]
        weight += member["weight"]
    mean = [np.float32(float(value) / (weight * 2.0**32)) for value in total]
    assert np.array(mean, "<f4").tobytes().hex() == vectors["sum"]["mean"]
    assert weight == vectors["sum"]["weight"]


@pytest.mark.parametrize("case", load("plain.json")["refused"], ids=lambda case: case["why"])
def test_refused_plain_messages(case: dict[str, str]) -> None:
    limits = load("plain.json")
    with pytest.raises(UpdateError, match=case["error"]):
        decode(
            "site-0",
            bytes.fromhex(case["message"]),
            size=limits["size"],
            max_weight=limits["max_weight"],
            metrics=METRICS,
        )
