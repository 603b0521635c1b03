"""P-1.2, P-1.3, P-2, P-6.12: plan, base and rosters against the log, and the adapter's layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import lcm, prod
from pathlib import Path
from typing import Any

from .basics import Tensors, canonical, named_hash, sha256
from .drawings import left_at_last
from .log import Leaf
from .methods import FACTORS, METHODS

TAGS = {  # of fingerprints, by what a base was built for (P-1.3, P-1.13 to P-1.18)
    "sequence-classification": "base",
    "document-classification": "base",
    "causal-lm": "decoder",
    "seq2seq-lm": "seq2seq",
    "image-classification": "image",
    "audio-classification": "audio",
    "image-generation": "denoiser",
}


Shapes = Iterator[tuple[str, tuple[int, ...]]]  # of tensors, by name


def role_of(name: str) -> str:
    for role in FACTORS:
        if name.endswith("." + role):
            return role
    return {"soft_prompt": "prompt", "prefix": "prefix"}.get(name, "head")


def part_of(name: str) -> str:
    """A role, of a hybrid's tensor behind the number of its member."""
    number, dot, own = name.partition(".")
    return f"{number}.{role_of(own)}" if dot and number.isdigit() else role_of(name)


def turns_of(adapter: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Parts by turns; a hybrid takes one turn of each of its members."""
    if adapter["method"] == "hybrid":
        own = [turns_of(member) for member in adapter["members"]]
        return tuple(
            tuple(f"{n}.{part}" for n, each in enumerate(own) for part in each[turn % len(each)])
            for turn in range(lcm(*map(len, own)))
        )
    turns = METHODS[adapter["method"]].turns
    return turns[1:] if adapter.get("gated") is False else turns


@dataclass
class Documents:
    """What all the rest follows from."""

    run: Path
    plan: dict[str, Any]
    manifest: dict[str, Any]
    digest: str  # the plan's
    sid: bytes
    shapes: dict[str, tuple[int, ...]]  # P-2.2: by name, in the vector's order

    def of_members(self) -> dict[str, Documents]:
        """P-2.1: of a hybrid what each member would be alone, by what its names begin with; else itself."""
        if self.plan["adapter"]["method"] != "hybrid":
            return {"": self}
        alone = {}
        for number, adapter in enumerate(self.plan["adapter"]["members"]):
            start = f"{number}."
            own = {n.removeprefix(start): s for n, s in self.shapes.items() if n.startswith(start)}
            plan = self.plan | {"adapter": adapter}
            alone[start] = replace(self, plan=plan, shapes=own)
        return alone

    def owner(self, name: str) -> tuple[Documents, str]:
        """Whose a tensor is, and what it is called there."""
        for start, member in self.of_members().items():
            if name.startswith(start):
                return member, name.removeprefix(start)
        return self, name

    def trained(self, number: int) -> list[str]:
        """The tensors of a round, in the vector's order."""
        turns = turns_of(self.plan["adapter"])
        if self.plan["rule"]["name"] == "mean":
            turns = (tuple(part for turn in turns for part in turn),)
        elif self.plan["rule"]["name"] == "first":
            turns = turns[:1]
        else:
            assert self.plan["rule"]["name"] == "alternating"
        turn = number + self.plan.get("start", {"rounds": 0})["rounds"]
        if self.plan["adapter"]["method"] == "sparse":  # P-2.2
            assert self.plan["rule"]["name"] == "alternating"
            turns = turns[:1] if turn == 1 else turns[1:]
        wanted = (*turns[(turn - 1) % len(turns)], "head")
        head = self.plan.get("head", {"trained": True})
        shared = head.get("directions", {"turns": 1})["turns"]  # P-2.7
        fixed = set() if head["trained"] else {self.head_weight}
        for other in range(8):
            fixed.add(f"classifier.directions_{other}")
            if other != (turn - 1) % shared:
                fixed.add(f"classifier.mix_{other}")
        return [n for n in self.shapes if part_of(n) in wanted and n not in fixed]

    @property
    def head_weight(self) -> str:
        return f"{self.manifest['head']['path']}.weight"

    def size(self, number: int) -> int:
        return sum(prod(self.shapes[name]) for name in self.trained(number))

    @property
    def groups(self) -> int:
        return int(self.plan["secrecy"]["groups"])

    @property
    def witnessed(self) -> bool:
        return bool(self.plan["audit"]["witnesses"])

    @property
    def least(self) -> int:
        """The least number of clients in a sum."""
        return int(self.plan["cohort"]["quorum"] // self.groups)


def read_documents(run: Path, first: Leaf) -> Documents:
    """Plan and manifest are those of leaf 0."""
    assert first.kind == "plan"
    files = {name: (run / name).read_bytes() for name in ("plan.json", "manifest.json")}
    assert first.about == {name: sha256(data) for name, data in files.items()}
    plan, manifest = (json.loads(data) for data in files.values())
    digest = named_hash("plan", canonical(plan)).hex()
    assert digest == first["plan"]
    assert fingerprint(manifest) == manifest["fingerprint"] == plan["base"]["fingerprint"]
    assert first["base"] == manifest["fingerprint"]
    assert first["retention_days"] == plan["audit"]["retention_days"]
    own = f"fedge/{plan['name']}/{first['run']}"  # P-8.2
    assert first["origin"] == (plan["audit"]["log"].split("+")[0] or own)
    assert plan["secrecy"]["exchange"] == "secagg"
    sid = named_hash("run", bytes.fromhex(digest) + bytes.fromhex(first["run"]))
    return Documents(run, plan, manifest, digest, sid, layout(plan, manifest))


def fingerprint(manifest: dict[str, Any]) -> str:
    """P-1.3, P-1.13 to P-1.15, P-1.18."""
    tensors = manifest["tensors"]
    assert all(sorted(entry) == ["dtype", "sha256", "shape"] for entry in tensors.values())
    tag = TAGS[manifest["task"]]
    hears = "waveform" if "waveform" in manifest else "log_mel"
    assert not {"waveform", "log_mel"} <= manifest.keys()
    becomes = {"image": "pixels", "audio": hears, "denoiser": "pixels"}.get(tag)  # of a file
    own: tuple[str, ...] = ("embedding_bits", "affine", "tied")
    if tag in ("base", "image", "audio"):
        own = ("pooling",)
    elif tag == "denoiser":  # P-1.18
        own = ()
        assert manifest["graph"]["inputs"] == ["hidden_states", "timestep", "class_labels"]
    architecture = {name: manifest[name] for name in ("family", "bits", "block", *own)}
    architecture["config"] = manifest["files"]["config.json"]["sha256"]
    boxed = manifest["task"] == "document-classification"
    if tag == "base":  # P-1.17
        assert boxed == ("bbox" in manifest["graph"]["inputs"])
    if boxed:
        architecture["boxes"] = True
    body = {"tensors": tensors, "architecture": architecture}
    if becomes:
        body[becomes] = manifest[becomes]
        if tag == "denoiser":
            body |= {name: manifest[name] for name in ("schedule", "classes")}
            assert left_at_last(manifest["schedule"]) >= 2.0**-200
    else:
        body["tokenizer"] = manifest["files"]["tokenizer.json"]["sha256"]
    return named_hash(tag, canonical(body)).hex()


def adapted(plan: dict[str, Any], manifest: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(in, out) of each linear that has factors, by path. (P-2.1)"""
    targets, layers = plan["adapter"]["targets"], plan["adapter"].get("layers")
    if targets == "query-value":
        targets = ["query", "value", "q_lin", "v_lin", "q", "v", "q_proj", "v_proj"]
        targets += ["c_attn", "query_key_value", "qkv_proj", "to_q", "to_v"]
    narrow = plan["adapter"]["method"] != "dora"
    return {
        one["path"]: (one["in_features"], one["out_features"])
        for one in sorted(manifest["linears"], key=lambda one: str(one["path"]))
        if (narrow or one["out_features"] >= one["in_features"])
        and (targets == "all-linear" or any(f".{one['path']}".endswith(f".{t}") for t in targets))
        and (not layers or next(int(p) for p in one["path"].split(".") if p.isdigit()) in layers)
    }


def layout(plan: dict[str, Any], manifest: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """P-2.1, P-2.2."""
    shapes = dict(of_adapter(plan, manifest))
    if "head" in manifest:
        shapes |= of_head(plan, manifest["head"])
    return {name: shapes[name] for name in sorted(shapes, key=str.encode)}


def of_adapter(plan: dict[str, Any], manifest: dict[str, Any]) -> Shapes:
    """P-2.1: the method's own tensors."""
    method = plan["adapter"]["method"]
    if method == "hybrid":
        for number, member in enumerate(plan["adapter"]["members"]):
            for name, shape in of_adapter(plan | {"adapter": member}, manifest):
                yield f"{number}.{name}", shape
    elif method == "prompt":
        yield "soft_prompt", (plan["adapter"]["tokens"], manifest["embedding_size"])
    elif method == "prefix":
        width = 2 * manifest["layers"] * manifest["kv_heads"] * manifest["head_size"]
        yield "prefix", (plan["adapter"]["tokens"], width)
    elif method == "norm":
        linears = {x["path"] for x in manifest["linears"]}
        for slot in manifest["graph"]["slots"]:
            path, _, end = slot["name"].rpartition(".")
            if end in ("scale", "shift") and path not in linears:
                yield slot["name"], tuple(slot["shape"])
    elif method == "bottleneck":
        words = plan["adapter"]["places"] == "embeddings"
        size, w = manifest["embedding_size" if words else "hidden_size"], plan["adapter"]["width"]
        for path in standing(plan, manifest):
            yield f"{path}.bottleneck_down", (size, w)
            yield f"{path}.bottleneck_bias", (w,)
            yield f"{path}.bottleneck_up", (w, size)
            if plan["adapter"]["gated"]:
                yield f"{path}.bottleneck_gate", (1,)
    elif method != "head":
        shifted = {slot["name"] for slot in manifest["graph"]["slots"]}
        for path, (width, out) in adapted(plan, manifest).items():
            if method != "bias" or f"{path}.shift" in shifted:
                yield from of_linear(plan["adapter"], path, width, out)


def of_linear(adapter: dict[str, Any], path: str, width: int, out: int) -> Shapes:
    """P-2.1: what a method has beside each of its linears."""
    method, r = adapter["method"], adapter.get("rank")
    if method == "ia3":
        yield f"{path}.ia3_l", (1, width) if out < width else (out, 1)
    elif method == "bias":
        yield f"{path}.shift", (out,)
    elif method == "loha":
        for number in (1, 2):
            yield f"{path}.hada_w{number}_a", (out, r)
            yield f"{path}.hada_w{number}_b", (r, width)
    elif method == "lokr":
        for number, wide, high in zip((1, 2), divided(width), divided(out), strict=True):
            yield f"{path}.lokr_w{number}_a", (high, r)
            yield f"{path}.lokr_w{number}_b", (r, wide)
    else:
        heads = adapter.get("heads", 1)
        yield f"{path}.lora_A", (heads * r, width)
        yield f"{path}.lora_B", (out, heads * r)
        for part, shape in METHODS[method].inner(heads, r, out).items():
            yield f"{path}.{part}", shape


def of_head(plan: dict[str, Any], head: dict[str, Any]) -> Shapes:
    """P-2.1, P-2.7."""
    labels = len(plan["task"].get("labels", "1"))
    begun = plan.get("head", {"rows": "1" * labels})
    assert len(begun["rows"]) == labels
    yield f"{head['path']}.bias", (labels,)
    if "directions" not in begun:
        yield f"{head['path']}.weight", (labels, head["in_features"])
        return
    assert begun["trained"]
    rank, shared = len(begun["directions"]["rows"]), begun["directions"]["turns"]
    for turn in range(shared):
        own = len(range(turn, rank, shared))
        yield f"{head['path']}.mix_{turn}", (labels, own)
        yield f"{head['path']}.directions_{turn}", (own, head["in_features"])


def standing(plan: dict[str, Any], manifest: dict[str, Any]) -> dict[str, str]:
    """Where bottlenecks stand: by path the one to whose output they add. (P-1.11, P-2.1)"""
    paths = sorted(str(one["path"]) for one in manifest["linears"])
    attention = (
        "attention.output.dense",
        "attention.out_lin",
        "attention.attn.o",
        "attention.dense",
        "attention.o_proj",
        "self_attn.out_proj",
        "attention.out_proj",
    )
    pairs = {}
    for first, second in (
        ("intermediate.dense", "output.dense"),
        ("ffn.lin1", "ffn.lin2"),
        ("ffn", "ffn_output"),
        ("fc1", "fc2"),
        ("feed_forward.intermediate_dense", "feed_forward.output_dense"),
    ):
        for path in paths:
            other = path[: len(path) - len(first)] + second
            if path.endswith("." + first) and other in paths:
                pairs[path] = other
    places = plan["adapter"]["places"]
    if places == "embeddings":
        end = ".word_embeddings.bottleneck_down"
        slots = [str(one["name"]) for one in manifest["graph"]["slots"]]
        (path,) = [name[: -len(".bottleneck_down")] for name in slots if name.endswith(end)]
        return {path: path}
    if places == "parallel":
        return {path: pairs[path] for path in sorted(pairs)}
    ends = [p for p in paths if any(p.endswith("." + a) for a in attention)]
    stand = {*pairs.values(), *(ends if places == "houlsby" else ())}
    return {path: path for path in sorted(stand)}


def divided(width: int) -> tuple[int, int]:
    """Its largest divisor up to the square root, and the other one."""
    smaller = max(d for d in range(1, width + 1) if width % d == 0 and d * d <= width)
    return smaller, width // smaller


def adapter_digest(tensors: Tensors) -> str:
    """P-2.4."""
    vector = b"".join(tensors[name].tobytes() for name in sorted(tensors, key=str.encode))
    return named_hash("adapter", vector).hex()


@dataclass
class Roster:
    """Raw public keys and names by client id."""

    root: str
    keys: dict[bytes, bytes]
    names: dict[bytes, str]


def read_roster(run: Path, leaf: Leaf) -> Roster:
    """P-6.12."""
    name = f"rosters/{leaf['root']}.json"
    data = (run / name).read_bytes()
    assert leaf.about == {name: sha256(data)}
    document = json.loads(data)
    assert sorted(document) == ["clients"]
    clients = document["clients"]
    lines = "".join(f"{one}\x1f{key}\n" for one, key in sorted(clients.items()))
    assert named_hash("roster", lines.encode()).hex() == leaf["root"]
    assert len(clients) == leaf["clients"]
    ids = {bytes.fromhex(sha256(bytes.fromhex(key)))[:16]: one for one, key in clients.items()}
    assert len(ids) == len(clients)
    keys = {one: bytes.fromhex(clients[name]) for one, name in ids.items()}
    return Roster(leaf["root"], keys, ids)
