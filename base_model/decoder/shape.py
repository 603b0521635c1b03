"""What a decoder computes, as data: its sizes, and each way in which families differ.

A layer is two blocks, attention and feed-forward, each of which adds to the stream of hidden states what it
makes of it. Families differ in where norms stand, in what has a bias, in rotary positions and in constants:
all of it is said here, so that the graph, its check and whatever trains read one description.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from protocol.manifest import Linear

Floats = npt.NDArray[np.float32]
Activation = Literal["relu", "silu", "gelu", "gelu_tanh"]
EMBEDDINGS, HEAD, LAST_NORM = "model.embed_tokens", "lm_head", "model.norm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """Rotary positions: ``theta``, and how frequencies are stretched beyond the trained context.

    ``linear`` divides all by ``factor``. ``llama3`` divides low ones, of fewer than ``low`` turns in
    ``original`` positions, keeps those of more than ``high``, and goes over from one to the other between.
    """

    theta: float
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 1

    def frequencies(self, head_size: int) -> Floats:
        """float32 (head_size / 2,): radians that a pair of numbers turns by from token to token."""
        steps = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
        plain = (np.float32(1) / np.float32(self.theta) ** steps).astype(np.float32)
        if self.scaling == "default":
            return plain
        stretched = plain / np.float32(self.factor)
        if self.scaling == "linear":
            return stretched
        turns = np.float32(self.original / (2 * math.pi)) * plain
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1).astype(np.float32)
        return (stretched * (1 - kept) + plain * kept).astype(np.float32)

    def tables(self, head_size: int, positions: int) -> tuple[Floats, Floats]:
        """Cosines and sines, float32 (positions, head_size / 2)."""
        angles = np.outer(np.arange(positions, dtype=np.float32), self.frequencies(head_size))
        return np.cos(angles), np.sin(angles)


@dataclass(frozen=True, kw_only=True, slots=True)
class Norms:
    """Names of a layer's norms, each before or after a block; "" where there is none."""

    before_attention: str = "input_layernorm"
    after_attention: str = ""
    before_feed_forward: str = "post_attention_layernorm"
    after_feed_forward: str = ""

    def names(self) -> list[str]:
        """Those that there are."""
        four = (
            *(self.before_attention, self.after_attention),
            *(self.before_feed_forward, self.after_feed_forward),
        )
        return [name for name in four if name]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """The function that a decoder's tensors compute.

    ``context``: positions that the tables of ropes hold. ``ropes`` and ``windows``: per layer; None is a
    layer without positions, a window is how many tokens one sees, itself among them, 0 being all.
    ``biases``: last names of the linears that have one. ``query_norm``: queries and keys have a norm of
    their own, over a head or over all heads at once. ``unit_norms``: a norm multiplies by 1 + its weight.
    ``fused``: queries, keys and values are one matrix, gate and up another. ``attention_scale`` multiplies
    scores, ``embedding_scale`` embeddings, ``prompt_scale`` a soft prompt (some families scale whatever
    comes in, others words alone), ``residual_scale`` what a block adds, ``logits_scale`` logits. A cap c > 0
    makes x c * tanh(x / c).
    """

    family: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    activation: Activation
    tied: bool
    ropes: tuple[Rope | None, ...]
    windows: tuple[int, ...]
    norms: Norms
    biases: frozenset[str] = frozenset()
    query_norm: Literal["", "head", "row"] = ""
    unit_norms: bool = False
    fused: bool = False
    attention_scale: float
    embedding_scale: float = 1.0
    prompt_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    scores_cap: float = 0.0
    logits_cap: float = 0.0

    @property
    def query_size(self) -> int:
        """Numbers of a token's queries."""
        return self.heads * self.head_size

    @property
    def key_size(self) -> int:
        """Numbers of a token's keys, and of its values."""
        return self.kv_heads * self.head_size

    @property
    def head(self) -> str:
        """Path of the output layer's matrix: the embeddings' where they are tied."""
        return EMBEDDINGS if self.tied else HEAD

    @property
    def embeddings(self) -> str:
        """Path of the table of words."""
        return EMBEDDINGS

    def layer_linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a layer's linears by their paths in it, in the order of use."""
        keys, wide = self.key_size, self.feed_forward
        if self.fused:
            return {
                "self_attn.qkv_proj": (self.query_size + 2 * keys, self.hidden),
                "self_attn.o_proj": (self.hidden, self.query_size),
                "mlp.gate_up_proj": (2 * wide, self.hidden),
                "mlp.down_proj": (self.hidden, wide),
            }
        return {
            "self_attn.q_proj": (self.query_size, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.query_size),
            "mlp.gate_proj": (wide, self.hidden),
            "mlp.up_proj": (wide, self.hidden),
            "mlp.down_proj": (self.hidden, wide),
        }

    def linears(self) -> list[Linear]:
        """Every linear that can be adapted, by path; the output layer is none of them."""
        shapes = self.layer_linears()
        every = [
            Linear(path=f"{layer_path(layer)}.{path}", out_features=out, in_features=width)
            for layer in range(self.layers)
            for path, (out, width) in shapes.items()
        ]
        return sorted(every, key=lambda linear: linear.path)

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all norms and biases, by their tensors' names."""
        inner: dict[str, tuple[int, ...]] = {
            f"{name}.weight": (self.hidden,) for name in self.norms.names()
        }
        if self.query_norm:
            of_head = self.query_norm == "head"
            inner["self_attn.q_norm.weight"] = (self.head_size if of_head else self.query_size,)
            inner["self_attn.k_norm.weight"] = (self.head_size if of_head else self.key_size,)
        for path, (out, _) in self.layer_linears().items():
            if path.rpartition(".")[2] in self.biases:
                inner[f"{path}.bias"] = (out,)
        every = {
            f"{layer_path(layer)}.{name}": size
            for layer in range(self.layers)
            for name, size in inner.items()
        }
        return every | {f"{LAST_NORM}.weight": (self.hidden,)}

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every matrix by its module's path; the embeddings are (vocabulary, hidden)."""
        tables = {EMBEDDINGS, self.head}
        return dict.fromkeys(sorted(tables), (self.vocabulary, self.hidden)) | {
            linear.path: (linear.out_features, linear.in_features) for linear in self.linears()
        }

    def repeats(self) -> dict[str, str]:
        """Tensors that a checkpoint may have again, by the name of the one that they are."""
        return {f"{HEAD}.weight": f"{EMBEDDINGS}.weight"} if self.tied else {}


def layer_path(layer: int) -> str:
    """The module path of a layer."""
    return f"model.layers.{layer}"
