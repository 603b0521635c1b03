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
    ``turning``: how many numbers of a head turn, the first ones; 0 is all.
    """

    theta: float
    scaling: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 1
    turning: int = 0

    def width(self, head_size: int) -> int:
        """Numbers of a head that turn."""
        return self.turning or head_size

    def frequencies(self, head_size: int) -> Floats:
        """float32 (width / 2,): radians that a pair of numbers turns by from token to token."""
        width = self.width(head_size)
        steps = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
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
        """Cosines and sines, float32 (positions, width / 2)."""
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
class Names:
    """Module paths, as transformers has them.

    ``positions``: of a table of positions, "" where there is none. ``layers`` is followed by a layer's
    number, and what comes behind ``last_norm`` by it: ``attention``: the linears of queries, keys and values;
    ``mixing``: the one behind attention; ``widening``: gate and up; ``narrowing``: what they are for. Of
    linears that are one matrix there is one path.
    """

    embeddings: str = EMBEDDINGS
    positions: str = ""
    layers: str = "model.layers"
    last_norm: str = LAST_NORM
    attention: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    mixing: str = "self_attn.o_proj"
    widening: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    narrowing: str = "mlp.down_proj"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """The function that a decoder's tensors compute.

    ``context``: positions at most. ``positions``: rows of the table of positions, 0 without one. ``ropes``
    and ``windows``: per layer; None is a layer that turns nothing, a window is how many tokens one sees,
    itself among them, 0 being all.
    ``biases``: last names of the linears that have one. ``query_norm``: queries and keys have a norm of
    their own, over a head or over all heads at once. ``unit_norms``: a norm multiplies by 1 + its weight.
    ``centred``: norms take the mean away, and have a bias. ``by_head``: the one matrix of queries, keys and
    values has all three of a head one behind the other. ``gated``: what is activated multiplies another
    linear's output. ``parallel``: the feed-forward block reads what the attention block reads.
    ``transposed``: transformers holds linears as (in, out); a base does not. ``attention_scale`` multiplies
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
    names: Names = Names()
    positions: int = 0
    biases: frozenset[str] = frozenset()
    query_norm: Literal["", "head", "row"] = ""
    unit_norms: bool = False
    centred: bool = False
    by_head: bool = False
    gated: bool = True
    parallel: bool = False
    transposed: bool = False
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
        return self.embeddings if self.tied else HEAD

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values are one matrix."""
        return len(self.names.attention) == 1

    def layer_path(self, layer: int) -> str:
        """The module path of a layer."""
        return f"{self.names.layers}.{layer}"

    @property
    def embeddings(self) -> str:
        """Path of the table of words."""
        return self.names.embeddings

    def layer_linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a layer's linears by their paths in it, in the order of use."""
        names, wide = self.names, self.feed_forward
        inputs: tuple[int, ...] = (self.query_size, self.key_size, self.key_size)
        inner: tuple[int, ...] = (wide, wide) if self.gated else (wide,)
        if self.fused:
            inputs = (sum(inputs),)
        if len(names.widening) == 1:
            inner = (sum(inner),)
        return {
            **{
                path: (size, self.hidden)
                for path, size in zip(names.attention, inputs, strict=True)
            },
            names.mixing: (self.hidden, self.query_size),
            **{path: (size, self.hidden) for path, size in zip(names.widening, inner, strict=True)},
            names.narrowing: (self.hidden, wide),
        }

    def linears(self) -> list[Linear]:
        """Every linear that can be adapted, by path; the output layer is none of them."""
        shapes = self.layer_linears()
        every = [
            Linear(path=f"{self.layer_path(layer)}.{path}", out_features=out, in_features=width)
            for layer in range(self.layers)
            for path, (out, width) in shapes.items()
        ]
        return sorted(every, key=lambda linear: linear.path)

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is never in codes, by the tensors' names: norms, biases, a table of positions."""
        inner: dict[str, tuple[int, ...]] = {
            name: (self.hidden,) for norm in self.norms.names() for name in self._of_norm(norm)
        }
        if self.query_norm:
            of_head = self.query_norm == "head"
            inner["self_attn.q_norm.weight"] = (self.head_size if of_head else self.query_size,)
            inner["self_attn.k_norm.weight"] = (self.head_size if of_head else self.key_size,)
        for path, (out, _) in self.layer_linears().items():
            if path.rpartition(".")[2] in self.biases:
                inner[f"{path}.bias"] = (out,)
        every = {
            f"{self.layer_path(layer)}.{name}": size
            for layer in range(self.layers)
            for name, size in inner.items()
        }
        if self.positions:
            every[f"{self.names.positions}.weight"] = (self.positions, self.hidden)
        return every | dict.fromkeys(self._of_norm(self.names.last_norm), (self.hidden,))

    def _of_norm(self, path: str) -> list[str]:
        """Its tensors."""
        return [f"{path}.weight", *([f"{path}.bias"] if self.centred else [])]

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every matrix by its module's path; the embeddings are (vocabulary, hidden)."""
        tables = {self.embeddings, self.head}
        return dict.fromkeys(sorted(tables), (self.vocabulary, self.hidden)) | {
            linear.path: (linear.out_features, linear.in_features) for linear in self.linears()
        }

    def repeats(self) -> dict[str, str]:
        """Tensors that a checkpoint may have again, by the name of the one that they are."""
        return {f"{HEAD}.weight": f"{self.embeddings}.weight"} if self.tied else {}
