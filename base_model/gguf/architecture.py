"""Keys and tensors of the architectures that are read, as Hugging Face names them.

llama.cpp computes some things only where a key asks for it: scaled rotary embeddings, experts, windows. A key
that is not known to be harmless, and a tensor without a place, are refused: what is passed over would be
another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from base_model.gguf.container import Container, shown
from protocol.errors import ArtefactError

OTHER = "use a model of another kind, or its checkpoint as Hugging Face has it"
LAYER_PARTS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
BIASES = {
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
}
NORMS = {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
EMBEDDING, FINAL_NORM, HEAD = "token_embd.weight", "output_norm.weight", "output.weight"
DEFAULT_BASE = 10000.0
# Keys under the architecture's name that are read, or that say nothing about what is computed.
READ = (
    *("block_count", "embedding_length", "feed_forward_length", "context_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.layer_norm_rms_epsilon"),
    *("rope.freq_base", "rope.dimension_count", "vocab_size"),
)
# Keys that may be there with a value that changes nothing.
IDLE: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scale_linear": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """``parts``: of a layer, by llama.cpp's names. ``permuted``: whether rows of q and k lie in ggml's order.

    ``settings``: of the configuration, that no key states.
    """

    parts: Mapping[str, str]
    permuted: bool
    settings: Mapping[str, Any]


ARCHITECTURES = {
    "llama": Architecture(
        parts=LAYER_PARTS, permuted=True, settings={"attention_bias": False, "mlp_bias": False}
    ),
    "qwen2": Architecture(
        parts=LAYER_PARTS | BIASES, permuted=False, settings={"use_sliding_window": False}
    ),
    "qwen3": Architecture(
        parts=LAYER_PARTS | NORMS,
        permuted=False,
        settings={"attention_bias": False, "use_sliding_window": False},
    ),
}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor of Hugging Face's comes from.

    ``name``: of the file. ``shape``: of the weight. ``heads``: rows are to be brought back from ggml's
    rotary order within so many heads; None leaves them.
    """

    name: str
    shape: tuple[int, ...]
    heads: int | None = None

    def rows(self) -> npt.NDArray[np.intp] | None:
        """Which row of the file becomes row 0, 1, ...: ggml has a head's two halves interleaved."""
        if self.heads is None:
            return None
        order = np.arange(self.shape[0], dtype=np.intp).reshape(self.heads, -1, 2)
        return order.swapaxes(1, 2).reshape(-1)


def architecture_of(container: Container) -> str:
    """One of ARCHITECTURES. Raises ArtefactError, also for keys that would change what is computed."""
    keys, path = container.keys, container.path
    name = keys.get("general.architecture")
    if not isinstance(name, str):
        raise ArtefactError(f"{path}: the key 'general.architecture' is missing", OTHER)
    kind = keys.get("general.type", "model")
    if kind != "model":
        raise ArtefactError(
            f"{path} holds no model, but: {shown(kind)}", "name the model's own file"
        )
    if name not in ARCHITECTURES:
        raise ArtefactError(
            f"{path}: a model of the architecture {shown(name)} cannot be read; "
            f"these can: {', '.join(ARCHITECTURES)}",
            OTHER,
        )
    for key, value in keys.items():
        rest = key.removeprefix(f"{name}.")
        if rest == key or rest in READ:
            continue
        if rest not in IDLE or not _is_one_of(value, IDLE[rest]):
            raise ArtefactError(
                f"{path}: the key {key!r} ({shown(value)}) asks for something that is not supported",
                OTHER,
            )
    return name


def config_of(container: Container, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The configuration as ``config.json`` has it, and choices that were made. Raises ArtefactError."""
    keys = _Keys(container, name)
    layers = keys.count("block_count")
    if layers > len(container.tensors):
        raise keys.odd("block_count", f"asks for {layers} layers: tensors are missing")
    embedding = container.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ArtefactError(f"{container.path}: the tensor {EMBEDDING!r} is missing", OTHER)
    base = keys.real("rope.freq_base", DEFAULT_BASE)
    config = {
        "model_type": name,
        "architectures": [CLASSES[name]],
        "vocab_size": embedding.shape[0],
        "hidden_size": keys.count("embedding_length"),
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": layers,
        **_heads_of(keys),
        "hidden_act": "silu",
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "tie_word_embeddings": HEAD not in container.tensors,
        **ARCHITECTURES[name].settings,
    }
    if keys.states("rope.freq_base"):
        return config, ()
    return config, (
        f"the file states no base of the rotary embeddings: {base:g}, as llama.cpp takes it",
    )


def _heads_of(keys: _Keys) -> dict[str, int]:
    """Numbers of heads, and their size. Raises ArtefactError where they do not fit."""
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    kv_heads = keys.count("attention.head_count_kv", heads)
    size = keys.count("attention.key_length", hidden // heads or 1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.count(key, size) != size:
            raise keys.odd(key, f"is not the size of a head, {size}")
    fit = keys.states("attention.key_length") or heads * size == hidden
    if heads % kv_heads or size % 2 or not fit:
        raise keys.odd(
            "attention.head_count", f"does not fit: {heads} heads of {size}, {kv_heads} of keys"
        )
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size}


def places_of(config: Mapping[str, Any]) -> dict[str, Place]:
    """Every tensor of the model by Hugging Face's name, in the order of layers."""
    architecture = ARCHITECTURES[config["model_type"]]
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    places = {"model.embed_tokens.weight": Place(name=EMBEDDING, shape=(vocabulary, hidden))}
    shapes = _shapes_of(config)
    heads: dict[str, int] = {}
    if architecture.permuted:
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for layer in range(config["num_hidden_layers"]):
        for part, theirs in architecture.parts.items():
            places[f"model.layers.{layer}.{theirs}"] = Place(
                name=f"blk.{layer}.{part}",
                shape=shapes[part],
                heads=heads.get(part.partition(".")[0]),
            )
    places["model.norm.weight"] = Place(name=FINAL_NORM, shape=(hidden,))
    if not config["tie_word_embeddings"]:
        places["lm_head.weight"] = Place(name=HEAD, shape=(vocabulary, hidden))
    return places


def _shapes_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries = config["num_attention_heads"] * size
    values = config["num_key_value_heads"] * size
    return {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (queries, hidden),
        "attn_k.weight": (values, hidden),
        "attn_v.weight": (values, hidden),
        "attn_output.weight": (hidden, queries),
        "attn_q.bias": (queries,),
        "attn_k.bias": (values,),
        "attn_v.bias": (values,),
        "attn_q_norm.weight": (size,),
        "attn_k_norm.weight": (size,),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }


class _Keys:
    """Numbers under the architecture's name."""

    def __init__(self, container: Container, name: str) -> None:
        self.container, self.name = container, name

    def odd(self, key: str, fault: str) -> ArtefactError:
        return ArtefactError(f"{self.container.path}: the key {self.name}.{key} {fault}", OTHER)

    def states(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.container.keys

    def _value(self, key: str, default: Any) -> Any:
        value = self.container.keys.get(f"{self.name}.{key}", default)
        if value is None:
            raise self.odd(key, "is missing")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A size, of which no model has 2^31. Raises ArtefactError."""
        value = self._value(key, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise self.odd(key, f"is no size: {shown(value)}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A float32 in its shortest digits, as people wrote it. Raises ArtefactError."""
        value = self._value(key, default)
        if type(value) is not float or not 0 < value < 1e30:
            raise self.odd(key, f"is no positive number: {shown(value)}")
        return float(str(np.float32(value)))


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    return isinstance(value, int | float | str) and value in values
