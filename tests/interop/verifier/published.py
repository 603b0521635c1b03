"""P-4.9, P-5: the files of a round, each as it has to be."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .basics import Tensors, octets, sha256
from .documents import Documents, adapter_digest, role_of
from .log import Key, Leaf, path_root, read_note, tree_root
from .settings import config, folder_head
from .shares import cut_down
from .step import State

EDGE, RELEASE = "adapter.onnx_adapter", "release.json"


def tensor_file(
    tensors: Mapping[str, tuple[tuple[int, ...], bytes]], metadata: dict[str, str]
) -> bytes:
    """P-4.9, whole."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    names = sorted(tensors, key=str.encode)
    for name in names:
        shape, data = tensors[name]
        assert len(data) == 4 * prod(shape)
        offsets = [end, end := end + len(data)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(tensors[name][1] for name in names)
    return struct.pack("<Q", len(text)) + text + body


def checkpoint(documents: Documents, number: int, state: State) -> bytes:
    """The round's checkpoint."""
    size = sum(map(prod, documents.shapes.values()))
    tensors = {
        f"adapter/{name}": (shape, state.adapter[name].tobytes())
        for name, shape in documents.shapes.items()
    }
    for name, moments in (("moment1", state.first), ("moment2", state.second)):
        tensors[name] = (size,), b"".join(moments[one].tobytes() for one in documents.shapes)
    note = {
        "format": "fedge-checkpoint-1",
        "round": str(number),
        "plan_digest": documents.digest,
        "base_fingerprint": documents.manifest["fingerprint"],
        "adapter_digest": adapter_digest(state.adapter),
    }
    return tensor_file(tensors, {"fedge": json.dumps(note, sort_keys=True)})


def plain_form(documents: Documents, adapter: Tensors) -> Tensors:
    """P-5.1: without cores; beside biases the factors that peft expects."""
    if documents.plan["adapter"]["method"] == "hybrid":
        head = documents.plan | {"adapter": {"method": "head"}}
        rest = {n: x for n, x in adapter.items() if documents.owner(n)[0] is documents}
        plain = plain_form(replace(documents, plan=head), rest)
        for start, member in documents.of_members().items():
            own = {n.removeprefix(start): x for n, x in adapter.items() if n.startswith(start)}
            plain |= {start + name: x for name, x in plain_form(member, own).items()}
        return plain
    if documents.plan["adapter"]["method"] == "bias":
        widths = {x["path"]: x["in_features"] for x in documents.manifest["linears"]}
        shifts = [name for name in adapter if role_of(name) == "shift"]
        for name in shifts:
            path = name.removesuffix(".shift")
            sizes = {"lora_A": widths[path], "lora_B": math.prod(documents.shapes[name])}
            adapter = adapter | {
                f"{path}.{end}": np.zeros(size, np.float32) for end, size in sizes.items()
            }
        return adapter
    if "classifier.mix_0" in adapter:  # P-2.7
        adapter, both = dict(adapter), ([], [])
        for turn in range(documents.plan["head"]["directions"]["turns"]):
            for name, of_turns in zip(("mix", "directions"), both, strict=True):
                key = f"classifier.{name}_{turn}"
                of_turns.append(adapter.pop(key).reshape(documents.shapes[key]))
        whole = in_order(np.concatenate(both[0], axis=1), np.concatenate(both[1]))
        adapter["classifier.weight"] = whole.reshape(-1)
    inner = ("lora_R", "lora_E", "vera_d", "vera_b", "bottleneck_gate")
    plain = {name: value for name, value in adapter.items() if role_of(name) not in inner}
    for name in adapter.keys() - plain.keys():
        if role_of(name) == "bottleneck_gate":
            up = name.removesuffix("gate") + "up"
            plain[up] = adapter[up] * adapter[name]
            continue
        if role_of(name) != "lora_R":
            factor = name.rpartition(".")[0] + (".lora_A" if name.endswith("_d") else ".lora_B")
            matrix = adapter[factor].reshape(documents.shapes[factor])
            of_rows = role_of(name) != "lora_E"
            numbers = adapter[name][:, None] if of_rows else adapter[name][None, :]
            plain[factor] = (matrix * numbers).reshape(-1)
            continue
        b_name = name.removesuffix("lora_R") + "lora_B"
        b, r = adapter[b_name].reshape(documents.shapes[b_name]), documents.shapes[name][-1]
        cores = adapter[name].reshape(-1, r, r)
        each = [in_order(b[:, n * r : n * r + r], core) for n, core in enumerate(cores)]
        plain[b_name] = np.concatenate(each, axis=1).reshape(-1)
    return plain


def in_order(left: Any, right: Any) -> Any:
    """P-5.1: a product whose terms are added in float64, one after the other."""
    total = np.zeros((len(left), right.shape[1]))
    for k in range(len(right)):
        total = total + left[:, k : k + 1].astype(np.float64) * right[k : k + 1].astype(np.float64)
    return total.astype(np.float32)


def shape_of(documents: Documents, name: str, size: int) -> tuple[int, ...]:
    """Of a published tensor; beside biases there are factors of rank 1."""
    beside = {"lora_A": (1, size), "lora_B": (size, 1)}
    if name == "classifier.weight" and name not in documents.shapes:
        of_directions = documents.shapes["classifier.directions_0"]
        return documents.shapes["classifier.mix_0"][0], of_directions[1]
    return documents.shapes.get(name) or beside[role_of(name)]


def weights_file(documents: Documents, plain: Tensors) -> bytes:
    """adapter_model.safetensors."""
    prompt = "soft_prompt" in plain or "prefix" in plain
    prefix, tensors = "base_model." if prompt else "base_model.model.", {}
    for name, value in plain.items():
        owner, own_name = documents.owner(name)
        start = name.removesuffix(own_name)
        if role_of(own_name) == "head":
            key = f"{prefix}{folder_head(documents)}.{name.rpartition('.')[2]}"
        else:
            key = start + saved_name(owner, own_name, prefix)
        tensors[key] = shape_of(owner, own_name, value.size), value.tobytes()
    return tensor_file(tensors, {"format": "pt"})


def saved_name(documents: Documents, name: str, prefix: str) -> str:
    """A tensor's key there."""
    if name in ("soft_prompt", "prefix"):
        return "prompt_embeddings"
    if role_of(name) in ("shift", "scale"):
        path, _, end = name.rpartition(".")
        own = f"ln_tuning_layers.{'weight' if end == 'scale' else 'bias'}"
        method = documents.plan["adapter"]["method"]
        return f"{prefix}{path}.{own if method == 'norm' else 'lora_B.bias'}"
    return prefix + name + (".weight" if role_of(name) in ("lora_A", "lora_B") else "")


def check_round(
    documents: Documents,
    leaf: Leaf,
    state: State,
    metrics: Mapping[str, float],
    releases: list[Leaf],
) -> None:
    """All files that the leaf of a round speaks about, and those of its last release."""
    number, folder = leaf["round"], f"rounds/{leaf['round']:04d}"
    data = checkpoint(documents, number, state)
    assert leaf.about[f"{folder}/checkpoint.safetensors"] == sha256(data)
    assert leaf["adapter_out"] == adapter_digest(state.adapter)
    plain = cut_down(documents, plain_form(documents, state.adapter))
    assert leaf["published"] == adapter_digest(plain)
    about = dict(leaf.about)
    weights = f"{folder}/adapter/adapter_model.safetensors"
    assert about[weights] == sha256(weights_file(documents, plain))
    if releases:
        names = {f"{folder}/adapter/{name}" for name in (RELEASE, EDGE)}
        assert all(set(each.about) == names for each in releases)
        assert all(each["adapter"] == leaf.index for each in releases)
        about |= releases[-1].about
    for name, digest in about.items():
        assert sha256((documents.run / name).read_bytes()) == digest, name
    spelled = json.dumps(config(documents), indent=1, sort_keys=True) + "\n"  # P-8.4
    assert (documents.run / folder / "adapter/adapter_config.json").read_text() == spelled
    check_release_note(documents, leaf, metrics, about)
    if releases:
        data = (documents.run / folder / "adapter" / EDGE).read_bytes()
        check_edge(documents, plain, edge_tensors(data))


def check_release_note(
    documents: Documents, leaf: Leaf, metrics: Mapping[str, float], about: Mapping[str, str]
) -> None:
    """P-5.3."""
    task = documents.plan["task"]
    folder = f"rounds/{leaf['round']:04d}/adapter/"
    note = json.loads((documents.run / folder / RELEASE).read_text())
    parity, calibration = note.pop("parity"), note.pop("calibration")
    beside = {name.removeprefix(folder): d for name, d in about.items() if name.startswith(folder)}
    del beside[RELEASE]
    assert note == {
        "format": 1,
        "plan_name": documents.plan["name"],
        "plan_digest": documents.digest,
        "base_fingerprint": documents.manifest["fingerprint"],
        "program": documents.plan["base"]["program"],
        "round": leaf["round"],
        "adapter_digest": leaf["published"],
        "task": task["kind"],
        "pairs": bool(task.get("text_pair")),
        "labels": task.get("labels", []),
        "range": [task["low"], task["high"]] if task["kind"] == "regression" else None,
        "max_length": task.get("max_length", 0),
        "exchange": leaf["exchange"],
        "files": beside,
        "metrics": dict(metrics),
        **({"nested": True} if documents.plan["adapter"]["method"] == "dylora" else {}),
    }
    assert (parity is None) == (EDGE not in beside)
    if parity is not None:
        names = ["absolute", "bound", "label_agreement", "max_relative", "rows", "tokens"]
        assert sorted({*parity, "tokens"}) == names
    if calibration is not None:  # P-5.5
        assert parity is not None
        shares = ["ece_after", "ece_before", "nll_after", "nll_before"]
        assert sorted(calibration) == [*shares, "rows", "temperature"]
        assert 0.05 <= calibration["temperature"] <= 20
        assert all(calibration[name] >= 0 for name in shares)
        assert all(calibration[name] <= 1 for name in shares[:2])


def check_passport(run: Path, leaf: Leaf, key: Key, hashes: list[bytes]) -> None:
    """P-8.15: a C2SP tlog-proof of a release's leaf, under this log's key and of this very tree."""
    path = run / f"rounds/{leaf['round']:04d}/adapter/passport.tlog-proof"
    head, _, note = path.read_text().partition("\n\n")
    form, extra, index, *nodes = head.split("\n")
    assert (form, index) == ("c2sp.org/tlog-proof@v1", f"index {leaf.index}")
    assert extra == f"extra {base64.b64encode(leaf.entry).decode()}"
    size, root = read_note(note, key)
    assert leaf.index < size <= len(hashes)
    assert tree_root(hashes[:size]) == root
    proof = [octets(node) for node in nodes]
    assert path_root(hashes[leaf.index], leaf.index, size, proof) == root


# -- P-5.2: a FlatBuffer --------------------------------------------------------------------------


def _number(data: bytes, at: int, form: str) -> int:
    return int(struct.unpack_from("<" + form, data, at)[0])


def _field(data: bytes, table: int, nth: int) -> int:
    """Where the n-th field of a table lies, 0 for one that is left out."""
    fields = table - _number(data, table, "i")
    if 4 + 2 * nth >= _number(data, fields, "H"):
        return 0
    place = _number(data, fields + 4 + 2 * nth, "H")
    return table + place if place else 0


def _behind(data: bytes, place: int) -> int:
    assert place
    return place + _number(data, place, "I")


def _bytes(data: bytes, place: int, width: int = 1) -> bytes:
    """The elements of a vector."""
    if not place:
        return b""
    start = _behind(data, place)
    found = data[start + 4 : start + 4 + width * _number(data, start, "I")]
    assert len(found) == width * _number(data, start, "I")
    return found


def edge_tensors(data: bytes) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shapes and bytes by name."""
    assert data[4:8] == b"TORT"
    root = _number(data, 0, "I")
    assert [_number(data, _field(data, root, nth), "i") for nth in range(3)] == [1, 1, 1]
    vector = _behind(data, _field(data, root, 3))
    found: dict[str, tuple[tuple[int, ...], bytes]] = {}
    for nth in range(_number(data, vector, "I")):
        table = _behind(data, vector + 4 + 4 * nth)
        name = _bytes(data, _field(data, table, 0)).decode()
        dims = _bytes(data, _field(data, table, 1), 8)
        assert _number(data, _field(data, table, 2), "i") == 1
        assert name not in found
        shape = struct.unpack(f"<{len(dims) // 8}q", dims)
        found[name] = shape, _bytes(data, _field(data, table, 3))
    return found


def check_edge(
    documents: Documents, plain: Tensors, found: Mapping[str, tuple[tuple[int, ...], bytes]]
) -> None:
    """They are the published adapter's."""
    expected: dict[str, tuple[tuple[int, ...], bytes]] = {}
    head = {n: x for n, x in plain.items() if role_of(documents.owner(n)[1]) == "head"}
    expected |= slots_of(documents, head)
    for start, member in documents.of_members().items():
        own = {n.removeprefix(start): x for n, x in plain.items() if n.startswith(start)}
        expected |= slots_of(member, {n: x for n, x in own.items() if n not in head})
    if documents.plan["adapter"]["method"] == "dora":
        expected |= under_scales(documents, expected, found)
    assert dict(found) == expected


def under_scales(
    documents: Documents,
    expected: Mapping[str, tuple[tuple[int, ...], bytes]],
    found: Mapping[str, tuple[tuple[int, ...], bytes]],
) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """P-2.5 of `dora` without the base: factors follow from the scales, which are as they are (`scales_of`)."""
    there = {one["name"] for one in documents.manifest["graph"]["slots"]}
    slots = {}
    for name, (shape, data) in expected.items():
        path, _, end = name.rpartition(".")
        if end == "lora_B":
            scale = np.frombuffer(found[f"{path}.scale"][1], "<f4")
            up = np.frombuffer(data, "<f4").reshape(shape) * scale
            slots[name] = shape, up.astype("<f4").tobytes()
            for slot in there & {f"{path}.scale", f"{path}.shift"}:
                assert found[slot][0] == shape[1:]
                slots[slot] = found[slot]
    return slots


def slots_of(documents: Documents, plain: Tensors) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """P-5.2: what is put into slots."""
    adapter = documents.plan["adapter"]
    rank = adapter.get("rank", 1) * adapter.get("heads", 1)
    root = math.sqrt(rank) if adapter.get("rank_stabilised") else rank
    s = np.float32(adapter.get("scaling", adapter.get("alpha", root) / root))
    expected: dict[str, tuple[tuple[int, ...], bytes]] = {}
    shaped = {n: value.reshape(shape_of(documents, n, value.size)) for n, value in plain.items()}
    for name, tensor in shaped.items():
        if adapter["method"] == "bias" and role_of(name).startswith("lora_"):
            continue
        if role_of(name) == "ia3_l":
            scale = name.removesuffix("ia3_l") + "scale"
            expected[scale] = (tensor.size,), np.ascontiguousarray(tensor, "<f4").tobytes()
            continue
        if role_of(name).startswith("hada_"):
            path, _, part = name.rpartition(".")
            if part == "hada_w1_a":
                ups = [shaped[f"{path}.hada_w{number}_a"] for number in (1, 2)]
                downs = [shaped[f"{path}.hada_w{number}_b"].T for number in (1, 2)]
                down, up = (
                    np.stack([x[:, j] * y[:, k] for j in range(rank) for k in range(rank)], axis=1)
                    for x, y in (downs, ups)
                )
                for end, matrix in (("lora_A", down), ("lora_B", up.T * s)):
                    data = np.ascontiguousarray(matrix, "<f4").tobytes()
                    expected[f"{path}.{end}"] = matrix.shape, data
            continue
        if role_of(name).startswith("lokr_"):
            path, _, part = name.rpartition(".")
            if part == "lokr_w1_a":
                w1b, w2a, w2b = (shaped[f"{path}.lokr_{x}"] for x in ("w1_b", "w2_a", "w2_b"))
                turned = (("lora_A", np.kron(w1b, w2b).T), ("lora_B", np.kron(tensor, w2a).T * s))
                for end, matrix in turned:
                    data = np.ascontiguousarray(matrix, "<f4").tobytes()
                    expected[f"{path}.{end}"] = matrix.shape, data
            continue
        if role_of(name) == "lora_magnitude_vector":
            continue  # it hangs on weights of the base: `under_scales`
        if role_of(name) == "lora_A":
            tensor = tensor.T
        elif role_of(name) == "lora_B":
            tensor = tensor.T * s
        elif role_of(name) == "bottleneck_up":
            tensor = tensor * s
        expected[name] = tensor.shape, np.ascontiguousarray(tensor, "<f4").tobytes()
    return expected


def scales_of(weight: Any, bias: Any, a: Any, b: Any, offset: Any, s: float) -> tuple[Any, Any]:
    """P-2.5: scale and shift of a linear under `dora`; float64 sums column by column, row by row."""
    rows = weight.astype(np.float64)
    turned = rows.copy()
    for k in range(len(a)):
        scaled = b[:, k] * np.float32(s)
        turned = turned + np.multiply.outer(scaled.astype(np.float64), a[k].astype(np.float64))
    before, after = np.zeros(len(rows)), np.zeros(len(rows))
    for column in range(rows.shape[1]):
        before = before + rows[:, column] * rows[:, column]
        after = after + turned[:, column] * turned[:, column]
    before, after = np.sqrt(before), np.sqrt(after)
    one = np.float32(1)
    scale = (offset / before.astype(np.float32) + one) / (after / before).astype(np.float32)
    return scale, bias / scale - bias
