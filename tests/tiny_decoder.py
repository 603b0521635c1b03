"""A tiny decoder that keeps the contract of `protocol.decoder_manifest`, by hand and with random weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from protocol.decoder_manifest import DecoderManifest, decoder_fingerprint
from protocol.manifest import FileEntry, Graph, Linear, Slot

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, LAYERS, CONTEXT = 32, 4, 2, 16, 2, 48
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
BYTES = [f"<0x{byte:02X}>" for byte in (0x0A, 0xC3, 0xA9, 0xE2, 0x82, 0xAC)]
VOCABULARY = [*SPECIAL, *BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", *".,!?:'-<>|/"]
PARTS = {"q_proj": HEADS, "k_proj": KV_HEADS, "v_proj": KV_HEADS, "o_proj": HEADS}
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}. "
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}: {{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}: {% endif %}"
)


def tiny_tokenizer() -> Any:
    """Characters, and bytes for what is none of them, as Llama's: text in, `<s>` before it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def _linears() -> list[Linear]:
    width = HEADS * HEAD_SIZE
    return [
        Linear(
            path=f"model.layers.{layer}.self_attn.{name}",
            in_features=width if name == "o_proj" else HIDDEN,
            out_features=HIDDEN if name == "o_proj" else heads * HEAD_SIZE,
        )
        for layer in range(LAYERS)
        for name, heads in PARTS.items()
    ]


def _slots() -> list[Slot]:
    return [
        Slot(name=linear.path + end, dtype="float32", shape=shape)
        for linear in _linears()
        for end, shape in (
            (".lora_A", [linear.in_features, f"{linear.path}.rank"]),
            (".lora_B", [f"{linear.path}.rank", linear.out_features]),
        )
    ] + [Slot(name="soft_prompt", dtype="float32", shape=["prompt", HIDDEN])]


class _Writer:
    """Nodes and weights of the graph."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.rng = np.random.default_rng(seed)

    def weight(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], output: str, domain: str = "", **of: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **of))
        return output

    def linear(self, linear: Linear, source: str) -> str:
        size = (linear.in_features, linear.out_features)
        path = linear.path
        weight = self.weight(f"{path}.weight", self.rng.normal(0, 0.25, size).astype(np.float32))
        self.weight(f"{path}.lora_A", np.zeros((size[0], 0), np.float32))
        self.weight(f"{path}.lora_B", np.zeros((0, size[1]), np.float32))
        plain = self.node("MatMul", [source, weight], f"{path}.plain")
        down = self.node("MatMul", [source, f"{path}.lora_A"], f"{path}.down")
        up = self.node("MatMul", [down, f"{path}.lora_B"], f"{path}.up")
        return self.node("Add", [plain, up], f"{path}.out")


def _lengths(to: _Writer) -> tuple[str, str]:
    axes, one = to.weight("last", np.array([1], np.int64)), to.weight("one", np.array(1, np.int32))
    total = to.node("ReduceSum", ["attention_mask", axes], "sum", keepdims=0)
    whole = to.node("Cast", [total], "sum32", to=TensorProto.INT32)
    seqlens = to.node("Sub", [whole, one], "seqlens")
    shape = to.node("Shape", ["attention_mask"], "mask_shape", start=1, end=2)
    scalar = to.node("Squeeze", [shape], "length")
    return seqlens, to.node("Cast", [scalar], "length32", to=TensorProto.INT32)


def _rotary(to: _Writer) -> tuple[str, str]:
    angles = np.outer(np.arange(CONTEXT), 10_000.0 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE))
    return (
        to.weight("cos", np.cos(angles).astype(np.float32)),
        to.weight("sin", np.sin(angles).astype(np.float32)),
    )


def tiny_graph(seed: int = 0, vocabulary: int = len(VOCABULARY)) -> onnx.ModelProto:
    """Embeddings, layers of grouped attention with slots on its linears, an output layer."""
    to = _Writer(seed)
    table = to.weight("embed", to.rng.normal(0, 1, (vocabulary, HIDDEN)).astype(np.float32))
    prompt = to.weight("soft_prompt", np.zeros((0, HIDDEN), np.float32))
    table = to.node("Concat", [table, prompt], "table", axis=0)
    hidden = to.node("Gather", [table, "input_ids"], "embedded")
    seqlens, length = _lengths(to)
    cos, sin = _rotary(to)
    by_path = {linear.path: linear for linear in _linears()}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}.self_attn"
        q, k, v = (to.linear(by_path[f"{path}.{name}"], hidden) for name in list(PARTS)[:3])
        cache = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        outputs = [f"{path}.attended", f"present.{layer}.key", f"present.{layer}.value"]
        to.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, *cache, seqlens, length, cos, sin],
                outputs,
                domain="com.microsoft",
                num_heads=HEADS,
                kv_num_heads=KV_HEADS,
                do_rotary=1,
            )
        )
        out = to.linear(by_path[f"{path}.o_proj"], outputs[0])
        hidden = to.node("Add", [hidden, out], f"hidden.{layer}")
    norm = to.weight("norm", np.ones(HIDDEN, np.float32))
    hidden = to.node("SimplifiedLayerNormalization", [hidden, norm], "normed", axis=-1)
    head = to.weight("head", to.rng.normal(0, 0.5, (HIDDEN, vocabulary)).astype(np.float32))
    to.node("MatMul", [hidden, head], "logits")
    return _model(to, vocabulary)


def _model(to: _Writer, vocabulary: int) -> onnx.ModelProto:
    def cache(name: str, length: str) -> Any:
        shape = ["rows", KV_HEADS, length, HEAD_SIZE]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    parts = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["rows", "new"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["rows", "total"]),
        *(cache(f"past_key_values.{part}", "past") for part in parts),
        *(helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in _slots()),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "new", vocabulary]),
        *(cache(f"present.{part}", "total") for part in parts),
    ]
    graph = helper.make_graph(to.nodes, "tiny", inputs, outputs, to.weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def write_tiny_decoder(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """The folder of a base: manifest, graph, tokenizer, configuration and, if one is given, a template."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(tiny_graph(seed), folder / "graph.onnx")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, **other: Any) -> None:
    """The manifest of what lies in ``folder``; ``other`` takes the place of what would be right."""
    files = {
        path.name: FileEntry(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes=path.stat().st_size
        )
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }
    architecture = {
        "family": "llama",
        "bits": 32,
        "embedding_bits": 32,
        "block": 32,
        "affine": False,
        "tied": False,
    }
    fingerprint = decoder_fingerprint(
        tensors={},
        architecture=architecture | {"config": files["config.json"].sha256},
        tokenizer_sha256=files["tokenizer.json"].sha256,
    )
    graph = Graph(
        file="graph.onnx",
        opset=20,
        accuracy_level=0,
        inputs=["input_ids", "attention_mask"],
        output="logits",
        slots=_slots(),
    )
    sizes = {
        "hidden_size": HIDDEN,
        "embedding_size": HIDDEN,
        "layers": LAYERS,
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_size": HEAD_SIZE,
        "vocab_size": len(VOCABULARY),
        "max_positions": CONTEXT,
    }
    values: dict[str, Any] = {
        "fingerprint": fingerprint,
        "source": "tests",
        "begin": 1,
        "ends": [2],
        "embedding_std": 1.0,
        "parameters": 1,
        "linears": _linears(),
        "graph": graph,
        "tensors": {},
        "files": files,
        "made_with": {},
    }
    manifest = DecoderManifest(**{**architecture, **sizes, **values, **other})
    (folder / "manifest.json").write_text(manifest.to_json())


def lora(seed: int = 0, *, rank: int = 3, size: float = 0.6) -> dict[str, np.ndarray]:
    """Random factors for every linear, large enough to change what is written."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for linear in _linears():
        tensors[linear.path + ".lora_A"] = rng.normal(0, size, (linear.in_features, rank))
        tensors[linear.path + ".lora_B"] = rng.normal(0, size, (rank, linear.out_features))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def soft_prompt(seed: int = 0, *, tokens: int = 5) -> dict[str, np.ndarray]:
    """Random rows before a text."""
    rows = np.random.default_rng(seed).normal(0, 2, (tokens, HIDDEN))
    return {"soft_prompt": rows.astype(np.float32)}


def prefix(seed: int = 0, *, tokens: int = 3) -> dict[str, np.ndarray]:
    """Random keys and values of every layer before a text."""
    size = (tokens, LAYERS * 2 * KV_HEADS * HEAD_SIZE)
    return {"prefix": np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)}
