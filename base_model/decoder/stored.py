"""A decoder's tensors as a base stores them: matrices in codes or 16 bits, vectors as they are. (P-1.3)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from base_model.decoder.products import BLOCK, Stored
from base_model.decoder.source import CodedWeight, Floats
from protocol.codes import dequantise, quantise
from protocol.errors import ArtefactError

PIECE = 2**22  # numbers that are looked at together
COMPLETE = "fetch a complete checkpoint"
# Buffers that follow from the config or are zeros, and a table that nothing reads.
BUFFERS = (
    *("rotary_emb.inv_freq", "final_logits_bias"),
    *(f"{block}.{name}" for block in ("attn", "attention") for name in ("bias", "masked_bias")),
    "EncDecAttention.relative_attention_bias.weight",
)
Progress = Callable[[str, float], None]


class StoredTensors(Protocol):
    """The tensors of a model by name: those that may be in codes, and those that stay in floats."""

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every matrix that may be in codes, by its module's path."""
        ...

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what stays in floats, by the tensors' names."""
        ...


class StoredShape(StoredTensors, Protocol):
    """Which tensors a model has, by Hugging Face's names.

    ``embeddings`` and ``head``: paths of the table of words and of the output layer's matrix, which may be
    one.
    """

    @property
    def family(self) -> str:
        """Hugging Face's ``model_type``."""
        ...

    @property
    def hidden(self) -> int:
        """Numbers of a row of the table of words."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of the table of words."""
        ...

    @property
    def embeddings(self) -> str:
        """See above."""
        ...

    @property
    def head(self) -> str:
        """See above."""
        ...

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every matrix that may be in codes, by its module's path."""
        ...

    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what stays in floats, by the tensors' names."""
        ...

    def repeats(self) -> dict[str, str]:
        """Tensors that a checkpoint may have again, by the name of the one that they are."""
        ...


@dataclass(frozen=True, kw_only=True)
class Weights:
    """``tensors``: by Hugging Face's names. ``embedding_std``: of the word embeddings, as stored.

    ``reasons``: what was done otherwise than the source had it.
    """

    tensors: dict[str, Stored]
    embedding_std: float
    reasons: tuple[str, ...]


def stored_weights(
    shape: StoredShape,
    tensors: Mapping[str, Floats | CodedWeight],
    *,
    bits: int,
    embedding_bits: int,
    tell: Progress,
    importance: Mapping[str, Floats] | None = None,
) -> Weights:
    """Every tensor of a model out of a source's. Raises ArtefactError that names an odd one.

    ``importance``: by the path of a linear, the mean square of each of its inputs.
    """
    _check_names(shape, tensors)
    stored: dict[str, Stored] = {}
    again: list[str] = []
    matrices, tables = shape.matrices(), {shape.embeddings, shape.head}
    for number, (path, size) in enumerate(matrices.items()):
        name, wanted = f"{path}.weight", embedding_bits if path in tables else bits
        weight = tensors[name]
        _check_matrix(name, weight, size)
        table, weighed = path in tables, (importance or {}).get(path)
        stored[name] = _matrix(weight, wanted, size[1], table=table, importance=weighed)
        if isinstance(weight, CodedWeight) and stored[name] is not weight:
            again.append(name)
        tell(f"quantising to {bits} bits", number / len(matrices))
    for name, length in shape.vectors().items():
        vector = tensors[name]
        if isinstance(vector, CodedWeight) or vector.shape != length:
            what = "vector" if len(length) == 1 else "table"
            numbers = " x ".join(map(str, length))
            raise ArtefactError(f"{name} is no {what} of {numbers} numbers", COMPLETE)
        stored[name] = np.ascontiguousarray(vector, np.float32)
    reason = (
        f"{len(again)} matrices were quantised a second time, {again[0]} first" if again else ""
    )
    return Weights(
        tensors=stored,
        embedding_std=_deviation(stored[f"{shape.embeddings}.weight"], shape.hidden),
        reasons=(reason,) if reason else (),
    )


def floats_of(weight: Stored, width: int) -> Floats:
    """float32 (out, width): the values that a stored matrix stands for."""
    if not isinstance(weight, CodedWeight):
        return np.asarray(weight, np.float32)
    values = dequantise(weight.codes, weight.scales, bits=weight.bits, in_features=width)
    if weight.offsets is not None:
        values += np.repeat(weight.offsets, BLOCK, axis=1)[:, :width]
    return values


def file_tensors(stored: Mapping[str, Stored]) -> dict[str, npt.NDArray[np.generic]]:
    """For ``weights.safetensors``: by sorted names, codes as Olive's two dimensions. (P-1.3)"""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for name, value in stored.items():
        if not isinstance(value, CodedWeight):
            tensors[name] = np.ascontiguousarray(value)
            continue
        path = name.removesuffix(".weight")
        tensors[f"{path}.qweight"] = value.codes.reshape(len(value.codes), -1)
        tensors[f"{path}.scales"] = np.ascontiguousarray(value.scales, np.float32)
        if value.offsets is not None:
            tensors[f"{path}.offsets"] = np.ascontiguousarray(value.offsets, np.float32)
    return {name: tensors[name] for name in sorted(tensors)}


def is_affine(stored: Mapping[str, Stored]) -> bool:
    """Whether any matrix has offsets."""
    return any(isinstance(v, CodedWeight) and v.offsets is not None for v in stored.values())


def _check_names(shape: StoredShape, tensors: Mapping[str, object]) -> None:
    wanted = {f"{path}.weight" for path in shape.matrices()} | set(shape.vectors())
    repeats = shape.repeats()
    if lacking := sorted(wanted - set(tensors)):
        raise ArtefactError(f"{lacking[0]} is not in the checkpoint", COMPLETE)
    for name in sorted(set(tensors) - wanted):
        if name in repeats:
            _check_repeated(name, repeats[name], tensors)
            continue
        if name.endswith(BUFFERS):
            continue
        raise ArtefactError(
            f"{name} is in the checkpoint, and a {shape.family} of this config has no place for it",
            "take the config.json that belongs to the checkpoint",
        )


def _check_repeated(name: str, other: str, tensors: Mapping[str, object]) -> None:
    if not is_repeated(tensors[name], tensors[other]):
        raise ArtefactError(
            f"{name} differs from the embeddings, and config.json says that they are tied",
            "write `tie_word_embeddings` as false into config.json, or save the model again",
        )


def is_repeated(tensor: object, other: object) -> bool:
    """Whether both are one, or have the same numbers."""
    return tensor is other or (
        isinstance(tensor, np.ndarray)
        and isinstance(other, np.ndarray)
        and np.array_equal(tensor, other)
    )


def _check_matrix(name: str, weight: Floats | CodedWeight, size: tuple[int, int]) -> None:
    if not isinstance(weight, CodedWeight):
        if weight.shape != size:
            raise ArtefactError(
                f"{name} has the shape {weight.shape}, by the config it is {size}",
                "take config.json and checkpoint from the same place",
            )
        return
    blocks = -(-size[1] // BLOCK)
    sound = (
        weight.bits in (4, 8)
        and weight.codes.shape == (size[0], blocks, BLOCK * weight.bits // 8)
        and weight.scales.shape == (size[0], blocks)
        and (weight.offsets is None or weight.offsets.shape == weight.scales.shape)
    )
    if not sound:
        raise ArtefactError(f"{name} holds codes of another matrix than {size}", COMPLETE)


def _matrix(
    weight: Floats | CodedWeight,
    bits: int,
    width: int,
    *,
    table: bool,
    importance: Floats | None,
) -> Stored:
    """A matrix in ``bits``; codes that fit are taken over. A table of words has no offsets."""
    if isinstance(weight, CodedWeight):
        offsets = weight.offsets is not None
        if weight.bits == bits and not (offsets and (table or width % BLOCK)):
            return weight
        weight = floats_of(weight, width)
    if bits == 32:
        return np.ascontiguousarray(weight, np.float32)
    if bits == 16:
        return _halved(weight)
    codes, scales = quantise(weight, bits=bits, block=BLOCK, importance=importance)
    return CodedWeight(bits=bits, codes=codes, scales=scales)


def _halved(weight: Floats) -> npt.NDArray[np.float16]:
    half = weight.astype(np.float16)
    if not np.isfinite(half).all():
        raise ArtefactError("a matrix has numbers beyond the range of 16 bits", "use --bits 32")
    return half


def _deviation(table: Stored, width: int) -> float:
    """Standard deviation over all numbers of the word embeddings."""
    rows = max(1, PIECE // width)
    total = squares = 0.0
    count = len(table.codes) if isinstance(table, CodedWeight) else len(table)
    for start in range(0, count, rows):
        part = floats_of(rows_of(table, slice(start, start + rows)), width).astype(np.float64)
        total += float(part.sum())
        squares += float((part * part).sum())
    mean = total / (count * width)
    return float(np.sqrt(max(squares / (count * width) - mean * mean, 1e-24)))


def rows_of(table: Stored, rows: slice) -> Stored:
    """Some rows of a table of words, which has no offsets."""
    if isinstance(table, CodedWeight):
        return CodedWeight(bits=table.bits, codes=table.codes[rows], scales=table.scales[rows])
    return table[rows]
