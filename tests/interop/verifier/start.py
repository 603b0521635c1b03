"""P-2.3: round 0, derived from the plan and the manifest."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from .basics import Tensors, canonical, named_hash, octets, seed
from .documents import Documents, adapter_digest, role_of
from .draws import deviates, words
from .methods import METHODS


def taken_over(documents: Documents, start: dict[str, Any]) -> Tensors:
    """P-4.11: the adapter that the plan names, from the round's own checkpoint."""
    assert 1 <= start["round"] <= start["rounds"]
    assert (
        start["settings"]
        == named_hash("adapter-settings", canonical(documents.plan["adapter"])).hex()
    )
    data = (documents.run / "rounds/0000/checkpoint.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors: Tensors = {}
    for name in documents.shapes:
        first, last = header[f"adapter/{name}"]["data_offsets"]
        tensors[name] = np.frombuffer(data[8 + length + first : 8 + length + last], "<f4")
        assert len(tensors[name]) == math.prod(documents.shapes[name])
        assert np.all(np.abs(tensors[name]) <= 64)
    assert adapter_digest(tensors) == start["adapter"]
    return tensors


def round_0(documents: Documents) -> Tensors:
    """Every tensor, flat."""
    if start := documents.plan.get("start"):
        return taken_over(documents, start)
    deviation = round(documents.manifest.get("embedding_std", 0.0) * 4096) / 4096 or 1 / 4096
    tensors: Tensors = {}
    for name, shape in documents.shapes.items():
        owner, own_name = documents.owner(name)
        adapter = owner.plan["adapter"]
        method, gated = adapter["method"], adapter.get("gated", False)
        own = METHODS[method].starts if method in METHODS else {}
        named, role = seed("initial", documents.plan["seed"], name), role_of(own_name)
        values = np.zeros(math.prod(shape))
        if role in own:
            values = own[role](named, shape)
        elif role == "lora_A" or role in ("lokr_w1_b", "lokr_w2_a", "lokr_w2_b"):
            values = words(named, math.prod(shape)) / 2.0**32 * (1 / math.sqrt(shape[1]))
        elif role == "bottleneck_down" or (role == "bottleneck_up" and gated):
            values = words(named, math.prod(shape)) / 2.0**32 * (1 / math.sqrt(shape[0]))
        elif role == "prompt":
            values = deviates(named, math.prod(shape)) * deviation
        elif role == "prefix":
            values = deviates(named, math.prod(shape)) * 0.02
        elif role in ("ia3_l", "scale", "vera_d"):
            values = np.ones(math.prod(shape))
        elif role in ("hada_w1_b", "hada_w2_b"):
            values = deviates(named, math.prod(shape))
        elif role == "hada_w1_a":
            values = deviates(named, math.prod(shape)) * 0.1
        elif (head := documents.plan.get("head")) and len(shape) == 2 and role == "head":  # P-2.7
            of_directions = ".directions_" in name
            coded = head["directions"] if of_directions else head
            lines = [octets(row) for row in coded["rows"]]
            codes = np.array([np.frombuffer(line, "i1") for line in lines])
            if "directions" in head:
                turn, shared = int(name[-1]), head["directions"]["turns"]
                codes = codes[turn::shared] if of_directions else codes[:, turn::shared]
            assert codes.shape == shape
            assert shape[1] <= 65_536
            values = codes.reshape(-1) * np.float64(coded["scale"])
        elif name.endswith(".weight"):
            values = deviates(named, math.prod(shape)) * 0.02
        tensors[name] = values.reshape(-1).astype("<f4")
        assert np.all(np.abs(tensors[name]) <= 64)  # P-4.2
    return tensors
