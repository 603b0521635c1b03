"""What an encoder with a decoder computes, written out in numpy: what new graphs are compared with.

It knows no cache and no operator of ONNX Runtime, and expands one matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from base_model.decoder.plain import Reals, active_rows, linear_rows, rms_rows, taken_rows
from base_model.decoder.products import Stores
from base_model.decoder.source import Floats
from base_model.decoder.stored import floats_of
from base_model.seq2seq.shape import DECODER, ENCODER, OFFSET, Block, Seq2SeqShape

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """``states`` (source, hidden) of what is read, ``logits`` (tokens, vocabulary) behind what is written.

    ``cross`` and ``cache``: keys, then values, (heads, tokens, head_size) each, layer by layer.
    """

    states: Reals
    cross: list[Reals]
    cache: list[Reals]
    logits: Floats


def plain_run(shape: Seq2SeqShape, weights: Stores, source: Ids, written: Ids) -> Plain:
    """What becomes of ids (source,) that are read, and of those (tokens,) that were written."""
    plain = _Plain(shape, weights)
    stream, bias = plain.words(ENCODER, source), plain.bias(ENCODER, len(source))
    for layer in range(shape.encoder_layers):
        attention, dense = shape.blocks(ENCODER, layer)
        stream = plain.attention(attention, stream, bias)[0]
        stream = plain.feed_forward(dense, stream)
    states = plain.last(ENCODER, stream)
    cross, cache = list[Reals](), list[Reals]()
    stream, bias = plain.words(DECODER, written), plain.bias(DECODER, len(written))
    for layer in range(shape.layers):
        own, other, dense = shape.blocks(DECODER, layer)
        stream, *pair = plain.attention(own, stream, bias)
        cache += pair
        stream, *pair = plain.attention(other, stream, np.zeros((), np.float32), states)
        cross += pair
        stream = plain.feed_forward(dense, stream)
    rows = plain.last(DECODER, stream) * np.float32(shape.logits_scale)
    logits = linear_rows(weights, shape.head, rows).astype(np.float32)
    return Plain(states=states, cross=cross, cache=cache, logits=logits)


class _Plain:
    """Blocks on the tensors of one model."""

    def __init__(self, shape: Seq2SeqShape, weights: Stores) -> None:
        self._shape, self._weights = shape, weights

    def words(self, stack: str, ids: Ids) -> Reals:
        """What a stack reads, (tokens, hidden)."""
        shape = self._shape
        table = self._weights[f"{shape.embeddings}.weight"]
        rows = floats_of(taken_rows(table, ids), shape.hidden) * np.float32(shape.embedding_scale)
        if not shape.table:
            return rows
        places = self._floats(f"{shape.positions(stack)}.weight")[OFFSET : OFFSET + len(ids)]
        return self._norm(shape.stack_norm(stack), rows + places)

    def bias(self, stack: str, tokens: int) -> Reals:
        """(heads or 1, tokens, tokens): added to scores; -inf in a decoder for what comes later."""
        shape, ahead = self._shape, stack == ENCODER
        apart = np.arange(tokens) - np.arange(tokens)[:, None]
        if shape.table:
            added = np.zeros((1, tokens, tokens), np.float32)
        else:
            near = np.clip(apart, -shape.distance, shape.distance if ahead else 0)
            rows = shape.distances(ahead=ahead)[near + shape.distance if ahead else -near]
            added = self._floats(f"{shape.positions(stack)}.weight")[rows].transpose(2, 0, 1)
        return added if ahead else np.where(apart <= 0, added, -np.inf)

    def attention(
        self, block: Block, stream: Reals, bias: Reals, states: Reals | None = None
    ) -> tuple[Reals, Reals, Reals]:
        """The stream behind a block, and its keys and values; of ``states`` where they are given."""
        rows = self._entered(block, stream)
        seen = rows if states is None else states
        *paths, last = block.linears
        given = zip(paths, (rows, seen, seen), strict=True)
        queries, keys, values = (self._heads(path, part) for path, part in given)
        scores = queries @ keys.swapaxes(1, 2) * np.float32(self._shape.attention_scale) + bias
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ values).swapaxes(0, 1).reshape(len(rows), -1)
        return self._left(block, stream, linear_rows(self._weights, last, mixed)), keys, values

    def feed_forward(self, block: Block, stream: Reals) -> Reals:
        """The stream behind a block."""
        rows = self._entered(block, stream)
        first, *gate, last = block.linears
        active = active_rows(self._shape.activation, linear_rows(self._weights, first, rows))
        for path in gate:
            active = active * linear_rows(self._weights, path, rows)
        return self._left(block, stream, linear_rows(self._weights, last, active))

    def last(self, stack: str, stream: Reals) -> Reals:
        """What a stack gives."""
        return self._norm(self._shape.stack_norm(stack), stream) if self._before else stream

    @property
    def _before(self) -> bool:
        """Whether norms stand before blocks."""
        return self._shape.style == "t5"

    def _entered(self, block: Block, stream: Reals) -> Reals:
        return self._norm(block.norm, stream) if self._before else stream

    def _left(self, block: Block, stream: Reals, added: Reals) -> Reals:
        return stream + added if self._before else self._norm(block.norm, stream + added)

    def _norm(self, path: str, rows: Reals) -> Reals:
        weight, epsilon = self._floats(f"{path}.weight"), self._shape.epsilon
        if self._before:
            return rms_rows(rows, weight, epsilon)
        centred = rows - rows.mean(-1, keepdims=True)
        return rms_rows(centred, weight, epsilon) + self._floats(f"{path}.bias")

    def _heads(self, path: str, rows: Reals) -> Reals:
        """(heads, tokens, head_size)."""
        sizes = (len(rows), self._shape.heads, self._shape.head_size)
        return linear_rows(self._weights, path, rows).reshape(sizes).swapaxes(0, 1)

    def _floats(self, name: str) -> Floats:
        return floats_of(self._weights[name], 0)
