"""Writes the test vectors: what `docs/protocol.md` fixes byte for byte, as JSON anyone can read.

    python tests/vectors/make.py

Bytes are hex, numbers are exact (float.hex strings). The suite checks that this writes what is
committed, and reads the vectors with code that does not import fedge (tests/unit/test_vectors.py).
A change here is a change of the protocol.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from protocol.codes import dequantise, pack  # noqa: E402
from protocol.encoding import canonical_json, digest, seed_from, vector_digest  # noqa: E402
from protocol.exchange import Contribution  # noqa: E402
from protocol.exchange.plain import HEADER, MAGIC, PlainClient, PlainCoordinator  # noqa: E402
from protocol.initial import ZEROS, Law  # noqa: E402
from protocol.layout import Layout, TensorSpec  # noqa: E402
from protocol.plan import parse_plan  # noqa: E402
from protocol.recipe import initial_adapter  # noqa: E402
from protocol.tasks.classification import METRICS  # noqa: E402
from tests.vectors.ring import ring  # noqa: E402
from tests.vectors.secagg import attempt, holders  # noqa: E402
from tests.vectors.sparsity import bitmap, magnitude  # noqa: E402

PLAN = """
name = "vector"
rounds = 3
[base]
fingerprint = "{fingerprint}"
[task]
labels = ["no", "yes"]
[rule]
name = "first"
[local]
learning_rate = 1e-3
"""

START = """
[start]
adapter = "{adapter}"
settings = "{settings}"
round = 3
rounds = 5
plans = ["{first}", "{second}"]
origin = "fedge/vector/1"
size = 40
root = "{root}"
[start.spent]
mechanism = "distributed"
rho = 0.1
xi = 1e-30
"""


def hexed(array: Any) -> str:
    """Little-endian bytes."""
    array = np.ascontiguousarray(array)
    return array.astype(array.dtype.newbyteorder("<")).tobytes().hex()


def identities() -> dict[str, Any]:
    """P-1.1, P-1.2, P-1.4, P-2.4."""
    values: list[Any] = [
        {"b": 1, "a": [True, None, "x"]},
        "ä€",
        {"rate": 0.1, "zero": -0.0, "whole": 3.0},
        {"deep": {"z": [], "y": {}, "x": -(2**63)}},
        'quote " backslash \\ newline \n',
    ]
    plan = PLAN.format(fingerprint="0" * 64)
    places = {"adapter": "a" * 64, "first": "1" * 64, "second": "2" * 64, "root": "3" * 64}
    places["settings"] = "4" * 64
    more = plan + START.format(**places)
    named = plan.replace("[base]", f'[base]\nprogram = "{"5" * 64}"', 1)
    seeds = [("initial", 0, "classifier.weight"), ("cohort", 7, 1, 0), ("train", 0, 3, "site-1")]
    vector = np.array([0.0, -0.0, 1.5, -(2.0**-149), 3.4e38], np.float32)
    return {
        "canonical_json": [
            {"value": _marked(value), "bytes": canonical_json(value).hex()} for value in values
        ],
        "hash": [
            {"tag": tag, "message": message.hex(), "digest": digest(tag, message)}
            for tag, message in (("plan", b""), ("base", b"abc"), ("adapter", bytes(range(256))))
        ],
        "seed": [{"parts": list(parts), "seed": seed_from(*parts)} for parts in seeds],
        "plan": [
            {"toml": text, "digest": parse_plan(text, source="vector").digest}
            for text in (plan, more, named)
        ],
        "plan_refused": [
            named.replace("5" * 64, program) for program in ("5" * 63, "A" * 64, "5" * 65, "sha256")
        ],
        "adapter": [{"vector": hexed(vector), "digest": vector_digest(vector)}],
    }


def _marked(value: Any) -> Any:
    """JSON has one kind of number; a real one is written ``{"real": hex}``."""
    if isinstance(value, float):
        return {"real": value.hex()}
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    return [_marked(item) for item in value] if isinstance(value, list) else value


def codes() -> dict[str, Any]:
    """P-1.3."""
    rng = np.random.default_rng(1)
    cases = []
    for bits, rows, width in ((4, 2, 40), (4, 1, 32), (8, 2, 33)):
        blocks = -(-width // 32)
        plain = rng.integers(0, 2**bits, (rows, blocks * 32)).astype(np.uint8)
        plain[:, width:] = 2 ** (bits - 1)
        scales = rng.normal(0, 0.1, (rows, blocks)).astype(np.float32)
        packed = pack(plain, bits=bits, block=32)
        weight = dequantise(packed, scales, bits=bits, in_features=width)
        cases.append(
            {
                "bits": bits,
                "rows": rows,
                "width": width,
                "qweight": hexed(packed),
                "scales": hexed(scales),
                "weight": hexed(weight),
            }
        )
    return {"dequantise": cases}


def plain() -> dict[str, Any]:
    """P-3.2 and P-3.3."""
    rng = np.random.default_rng(2)
    members = []
    for number, weight in enumerate((1, 40, 9)):
        update = rng.normal(0, 0.5, 6).astype(np.float32)
        metrics = {name: float(number + place) for place, name in enumerate(METRICS)}
        message = PlainClient().mask(Contribution(update=update, weight=weight, metrics=metrics))
        members.append(
            {
                "client": f"site-{number}",
                "update": hexed(update),
                "weight": weight,
                "metrics": metrics,
                "message": message.hex(),
            }
        )
    coordinator = PlainCoordinator(6, max_weight=100, metrics=METRICS)
    for member in members:
        coordinator.receive(member["client"], bytes.fromhex(member["message"]))
    result = coordinator.unmask()
    good = bytes.fromhex(members[0]["message"])
    return {
        "size": 6,
        "max_weight": 100,
        "members": members,
        "sum": {"mean": hexed(result.mean), "weight": result.weight, "metrics": result.metrics},
        "refused": [
            {"why": why, "message": bad.hex(), "error": error} for why, bad, error in _refused(good)
        ],
    }


def _refused(good: bytes) -> list[tuple[str, bytes, str]]:
    def header(**changes: Any) -> bytes:
        magic, size, weight, *metrics = HEADER.unpack_from(good)
        fields = {"magic": magic, "size": size, "weight": weight, "metrics": metrics} | changes
        packed = HEADER.pack(fields["magic"], fields["size"], fields["weight"], *fields["metrics"])
        return packed + good[HEADER.size :]

    def first(value: float) -> bytes:
        return good[: HEADER.size] + struct.pack("<f", value) + good[HEADER.size + 4 :]

    return [
        ("empty", b"", "shorter than its header"),
        ("half a header", good[:20], "shorter than its header"),
        ("another magic", header(magic=MAGIC[:-1] + b"\x01"), "not a plain-exchange message"),
        ("a coordinate too few", good[:-4], "coordinates"),
        ("a byte too many", good + b"\x00", "coordinates"),
        ("another length", header(size=5), "coordinates"),
        ("weight 0", header(weight=0), "weight"),
        ("a weight above the bound", header(weight=101), "weight"),
        ("a negative metric", header(metrics=[-1.0, 0, 0, 0, 0]), "metric"),
        ("a metric above 2^40", header(metrics=[0, 2.0**41, 0, 0, 0]), "metric"),
        ("an infinite metric", header(metrics=[0, float("inf"), 0, 0, 0]), "metric"),
        ("NaN", first(float("nan")), "NaN"),
        ("infinity", first(float("-inf")), "coordinate"),
        ("64", first(64.0), "coordinate"),
    ]


def start() -> dict[str, Any]:
    """P-2.3: round 0 of a small layout with cores, and of a prompt."""
    rows, columns = Law("orthonormal rows"), Law("orthonormal columns")
    small, spread = Law("normal", 0.02), Law("uniform", 1.0 / math.sqrt(5))
    specs = [
        TensorSpec(name="classifier.bias", shape=(3,), part="head"),
        TensorSpec(name="classifier.weight", shape=(3, 5), part="head"),
        TensorSpec(name="m.0.query.lora_A", shape=(4, 5), part="lora_A"),
        TensorSpec(name="m.0.query.lora_B", shape=(6, 4), part="lora_B"),
        TensorSpec(name="m.0.query.lora_R", shape=(4, 4), part="lora_R"),
        TensorSpec(name="soft_prompt", shape=(2, 5), part="prompt"),
    ]
    cases = []
    for seed, cores in ((5, False), (2**63 - 1, True)):
        factors = {"lora_A": rows, "lora_B": columns} if cores else {"lora_A": spread}
        laws = {"classifier.weight": small, "soft_prompt": Law("normal", 193 / 4096), **factors}
        layout = Layout(
            tuple(
                replace(s, law=laws.get(s.part, laws.get(s.name, ZEROS)))
                for s in specs
                if cores or s.part != "lora_R"
            )
        )
        tensors = initial_adapter(layout, seed=seed)
        given = {s.name: {"shape": s.shape, "bytes": hexed(tensors[s.name])} for s in layout.specs}
        cases.append({"seed": seed, "embedding_std": (0.0471).hex(), "tensors": given})
    return {"round_0": cases}


FILES = {
    "identities.json": identities,
    "codes.json": codes,
    "plain.json": plain,
    "start.json": start,
    "ring.json": ring,
    "secagg.json": attempt,
    "holders.json": holders,
    "magnitude.json": magnitude,
    "bitmap.json": bitmap,
}


def rendered(name: str) -> str:
    """What belongs in the file ``name``."""
    return json.dumps(FILES[name](), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    for file in FILES:
        (FOLDER / file).write_text(rendered(file), encoding="utf-8")
