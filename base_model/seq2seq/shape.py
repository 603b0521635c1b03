"""What an encoder with a decoder computes, as data.

A layer is blocks that add to a stream of hidden states: attention of a text to itself, of what is written
to what was read, feed-forward. There are two styles. T5's has norms of mean squares before its blocks and
at the end of a stack, no biases, and positions that are added to scores, by how far two tokens are apart: one
table for all layers of a stack. BART's has layer norms behind its blocks and behind the words, biases, and a
table of positions that is added to words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from base_model.decoder.shape import Activation
from protocol.manifest import Linear

HEAD = "lm_head"
ENCODER, DECODER = "encoder", "decoder"
STACKS = (ENCODER, DECODER)
OFFSET = 2  # rows of a table of positions in front of the first position's, as BART was trained
Buckets = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A block of a layer: its linears' paths in the order of use, the path of its norm, and its own.

    Of attention the linears are those of queries, keys, values and output, of feed-forward the first, the one
    that multiplies what is active where it is gated, and the last.
    """

    kind: Literal["own", "cross", "dense"]
    path: str
    norm: str
    linears: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seq2SeqShape:
    """The function that tensors compute.

    ``layers``: of the decoder. ``context``: tokens that either text may have. ``gated``: feed-forward
    multiplies what is active by a second product. ``tied``: words and output layer are one matrix.
    ``buckets`` and ``distance``: of relative positions, those from ``distance`` on being one. ``table``: rows
    of a table of positions, 0 for none. ``attention_scale`` multiplies scores, ``embedding_scale`` words,
    ``logits_scale`` logits. ``start`` is the token that what is written begins with, ``padding`` the one that
    stands where a target counts for nothing.
    """

    family: str
    style: Literal["t5", "bart"]
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
    gated: bool = False
    tied: bool
    buckets: int = 0
    distance: int = 0
    table: int = 0
    attention_scale: float = 1.0
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    start: int
    padding: int

    @property
    def inner(self) -> int:
        """Numbers of a token's queries, of its keys and of its values."""
        return self.heads * self.head_size

    @property
    def embeddings(self) -> str:
        """Path of the table of words, of both texts."""
        return "shared" if self.style == "t5" else "model.shared"

    @property
    def head(self) -> str:
        """Path of the output layer's matrix."""
        return self.embeddings if self.tied else HEAD

    def depth(self, stack: str) -> int:
        """Layers of the encoder or the decoder."""
        return self.encoder_layers if stack == ENCODER else self.layers

    def blocks(self, stack: str, layer: int) -> list[Block]:
        """The blocks of a layer, in the order of use."""
        return (_t5_blocks if self.style == "t5" else _bart_blocks)(stack, layer, gated=self.gated)

    def positions(self, stack: str) -> str:
        """Path of a stack's table of positions: (buckets, heads), or (table, hidden)."""
        if self.style == "t5":
            return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        return f"model.{stack}.embed_positions"

    def stack_norm(self, stack: str) -> str:
        """Path of the norm behind the last layer, or of the one behind the words."""
        return (
            f"{stack}.final_layer_norm"
            if self.style == "t5"
            else f"model.{stack}.layernorm_embedding"
        )

    def _every_block(self) -> list[Block]:
        return [
            block
            for stack in STACKS
            for layer in range(self.depth(stack))
            for block in self.blocks(stack, layer)
        ]

    def linears(self) -> list[Linear]:
        """Every linear that can be adapted, by path; the output layer is none of them."""
        inner, hidden, wide = self.inner, self.hidden, self.feed_forward
        every = []
        for block in self._every_block():
            *first, last = block.linears
            wider, back = ((wide, hidden), (hidden, wide))
            if block.kind != "dense":
                wider, back = ((inner, hidden), (hidden, inner))
            sizes = dict.fromkeys(first, wider) | {last: back}
            every += [
                Linear(path=path, out_features=size[0], in_features=size[1])
                for path, size in sizes.items()
            ]
        return sorted(every, key=lambda linear: linear.path)

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of norms, biases and tables of positions, by their tensors' names."""
        norms = [block.norm for block in self._every_block()]
        norms += [self.stack_norm(stack) for stack in STACKS]
        every: dict[str, tuple[int, ...]] = {f"{name}.weight": (self.hidden,) for name in norms}
        size = (self.buckets, self.heads)
        if self.style == "bart":
            every |= {f"{name}.bias": (self.hidden,) for name in norms}
            every |= {f"{linear.path}.bias": (linear.out_features,) for linear in self.linears()}
            size = (self.table, self.hidden)
        return every | {f"{self.positions(stack)}.weight": size for stack in STACKS}

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every matrix by its module's path; tables are (vocabulary, hidden)."""
        tables = sorted({self.embeddings, self.head})
        return dict.fromkeys(tables, (self.vocabulary, self.hidden)) | {
            linear.path: (linear.out_features, linear.in_features) for linear in self.linears()
        }

    def repeats(self) -> dict[str, str]:
        """Tensors that a checkpoint may have again, by the name of the one that they are."""
        inside = "" if self.style == "t5" else "model."
        names = [f"{inside}{stack}.embed_tokens.weight" for stack in STACKS]
        words = f"{self.embeddings}.weight"
        return dict.fromkeys([*names, *([f"{HEAD}.weight"] if self.tied else [])], words)

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


def _t5_blocks(stack: str, layer: int, *, gated: bool) -> list[Block]:
    kinds: list[tuple[Literal["own", "cross", "dense"], str, tuple[str, ...]]] = [
        ("own", "SelfAttention", ("q", "k", "v", "o")),
        ("cross", "EncDecAttention", ("q", "k", "v", "o")),
        ("dense", "DenseReluDense", ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")),
    ]
    blocks: list[Block] = []
    for kind, name, linears in kinds:
        if kind == "cross" and stack == ENCODER:
            continue
        place = f"{stack}.block.{layer}.layer.{len(blocks)}"
        path = f"{place}.{name}"
        blocks.append(
            Block(
                kind=kind,
                path=path,
                norm=f"{place}.layer_norm",
                linears=tuple(f"{path}.{linear}" for linear in linears),
            )
        )
    return blocks


def _bart_blocks(stack: str, layer: int, *, gated: bool) -> list[Block]:
    assert not gated
    place = f"model.{stack}.layers.{layer}"
    kinds: list[tuple[Literal["own", "cross"], str]] = [("own", "self_attn")]
    if stack == DECODER:
        kinds.append(("cross", "encoder_attn"))
    attention = ("q_proj", "k_proj", "v_proj", "out_proj")
    blocks = [
        Block(
            kind=kind,
            path=f"{place}.{name}",
            norm=f"{place}.{name}_layer_norm",
            linears=tuple(f"{place}.{name}.{linear}" for linear in attention),
        )
        for kind, name in kinds
    ]
    dense = Block(
        kind="dense",
        path=place,
        norm=f"{place}.final_layer_norm",
        linears=(f"{place}.fc1", f"{place}.fc2"),
    )
    return [*blocks, dense]
