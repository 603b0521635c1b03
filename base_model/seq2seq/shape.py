"""What an encoder and a decoder of T5's kind compute, as data.

A layer is blocks that add to a stream of hidden states: attention of a text to itself, of what is written
to what was read, feed-forward; a norm stands before each. Positions are numbers that are added to scores,
by how far two tokens are apart; one table for all layers of a stack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from base_model.decoder.shape import Activation
from protocol.manifest import Linear

SHARED, HEAD = "shared", "lm_head"
ENCODER, DECODER = "encoder", "decoder"
POSITIONS = "block.0.layer.0.SelfAttention.relative_attention_bias"  # in a stack, (buckets, heads)
LAST_NORM = "final_layer_norm"
Buckets = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seq2SeqShape:
    """The function that tensors of T5's kind compute.

    ``layers``: of the decoder. ``context``: tokens that either text may have. ``gated``: feed-forward
    multiplies what is active by a second product. ``tied``: words and output layer are one matrix.
    ``buckets`` and ``distance``: of relative positions, those from ``distance`` on being one.
    ``logits_scale`` multiplies logits. ``start`` is the token that what is written begins with, ``padding``
    the one that stands where a target counts for nothing.
    """

    family: str
    encoder_layers: int
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    activation: Activation
    gated: bool
    tied: bool
    buckets: int
    distance: int
    logits_scale: float
    start: int
    padding: int

    @property
    def inner(self) -> int:
        """Numbers of a token's queries, of its keys and of its values."""
        return self.heads * self.head_size

    @property
    def embeddings(self) -> str:
        """Path of the table of words, of both texts."""
        return SHARED

    @property
    def head(self) -> str:
        """Path of the output layer's matrix."""
        return SHARED if self.tied else HEAD

    def linears(self) -> list[Linear]:
        """Every linear that can be adapted, by path; the output layer is none of them."""
        inner, hidden, wide = self.inner, self.hidden, self.feed_forward
        attention = dict.fromkeys("qkv", (inner, hidden)) | {"o": (hidden, inner)}
        ways = ("wi_0", "wi_1") if self.gated else ("wi",)
        dense = dict.fromkeys(ways, (wide, hidden)) | {"wo": (hidden, wide)}
        every = [
            Linear(path=f"{block}.{name}", out_features=size[0], in_features=size[1])
            for stack in (ENCODER, DECODER)
            for layer in range(self.depth(stack))
            for block in blocks(stack, layer)
            for name, size in (dense if block.endswith("DenseReluDense") else attention).items()
        ]
        return sorted(every, key=lambda linear: linear.path)

    def depth(self, stack: str) -> int:
        """Layers of the encoder or the decoder."""
        return self.encoder_layers if stack == ENCODER else self.layers

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of norms and of tables of positions, by their tensors' names."""
        norms = [
            f"{block.rpartition('.')[0]}.layer_norm"
            for stack in (ENCODER, DECODER)
            for layer in range(self.depth(stack))
            for block in blocks(stack, layer)
        ]
        norms += [f"{stack}.{LAST_NORM}" for stack in (ENCODER, DECODER)]
        tables = {
            f"{stack}.{POSITIONS}.weight": (self.buckets, self.heads)
            for stack in (ENCODER, DECODER)
        }
        every: dict[str, tuple[int, ...]] = {f"{name}.weight": (self.hidden,) for name in norms}
        return every | tables

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every matrix by its module's path; tables are (vocabulary, hidden)."""
        tables = sorted({SHARED, self.head})
        return dict.fromkeys(tables, (self.vocabulary, self.hidden)) | {
            linear.path: (linear.out_features, linear.in_features) for linear in self.linears()
        }

    def repeats(self) -> dict[str, str]:
        """Tensors that a checkpoint may have again, by the name of the one that they are."""
        names = [f"{stack}.embed_tokens.weight" for stack in (ENCODER, DECODER)]
        return dict.fromkeys(
            [*names, *([f"{HEAD}.weight"] if self.tied else [])], f"{SHARED}.weight"
        )

    def distances(self, *, ahead: bool) -> Buckets:
        """int64 (n,): the bucket of each distance, rows of a table of positions.

        In a decoder, which sees nothing ahead, of 0 to ``distance`` tokens back; with ``ahead`` of
        -``distance`` to ``distance`` tokens, below 0 being back.
        """
        buckets = self.buckets // 2 if ahead else self.buckets
        exact = buckets // 2
        back = [
            near if near < exact else _far(near, exact, buckets, self.distance)
            for near in range(self.distance + 1)
        ]
        if not ahead:
            return np.array(back, np.int64)
        return np.array([*back[:0:-1], 0, *(buckets + bucket for bucket in back[1:])], np.int64)


def _far(near: int, exact: int, buckets: int, distance: int) -> int:
    """The bucket of what is ``near`` apart: their widths grow as logarithms, which have 32 bits in torch."""
    share = np.float32(math.log(np.float32(near) / np.float32(exact)))
    share = share / np.float32(math.log(distance / exact)) * np.float32(buckets - exact)
    return min(exact + int(share), buckets - 1)


def blocks(stack: str, layer: int) -> list[str]:
    """Paths of the blocks of a layer, in the order of use."""
    names = ("SelfAttention", *(("EncDecAttention",) if stack == DECODER else ()), "DenseReluDense")
    return [f"{stack}.block.{layer}.layer.{number}.{name}" for number, name in enumerate(names)]
