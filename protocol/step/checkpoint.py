"""A published round's ``checkpoint.safetensors``: all that the next round starts from. (P-4.9)"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np

from protocol.documents import parse_json
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.step.optimizers import Moments
from protocol.step.state import State
from protocol.tensor_file import decode_tensors, encode_tensors

FORMAT, KEY = "fedge-checkpoint-1", "fedge"
ADAPTER, FIRST, SECOND = "adapter/", "moment1", "moment2"
REMEDY = "fetch or restore the checkpoint"


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a checkpoint says of itself; ``adapter_digest`` is P-2.4's."""

    round: int
    plan_digest: str
    base_fingerprint: str
    adapter_digest: str


def encode_checkpoint(state: State, note: Note) -> bytes:
    """The file's bytes, which depend on nothing but state and note."""
    tensors: Tensors = {ADAPTER + name: value for name, value in state.adapter.items()}
    tensors |= {FIRST: state.moments.first, SECOND: state.moments.second}
    return encode_tensors(tensors, _metadata(note))


def decode_checkpoint(data: bytes, *, source: str) -> tuple[State, Note]:
    """(state, note) of a file whose adapter has the digest it notes.

    Raises ArtefactError, which names ``source``, for any other bytes than :func:`encode_checkpoint`
    gives.
    """
    tensors, metadata = decode_tensors(data, source=source)
    adapter = {
        name.removeprefix(ADAPTER): value
        for name, value in tensors.items()
        if name.startswith(ADAPTER)
    }
    if not adapter or tensors.keys() != {FIRST, SECOND, *(ADAPTER + name for name in adapter)}:
        raise ArtefactError(f"{source}: not an adapter with two moments", REMEDY)
    moments = Moments(first=tensors[FIRST], second=tensors[SECOND])
    state = State(adapter=adapter, moments=moments)
    vector = np.concatenate([adapter[name].reshape(-1) for name in sorted(adapter)])
    if not vector.shape == state.moments.first.shape == state.moments.second.shape:
        raise ArtefactError(f"{source}: moments and adapter are of different sizes", REMEDY)
    note = _note(metadata, source)
    if vector_digest(vector) != note.adapter_digest:  # a layout sorts by name: (P-2.2)
        raise ArtefactError(f"{source}: the adapter's bytes have changed", REMEDY)
    return state, note


def _metadata(note: Note) -> dict[str, str]:
    said = {"format": FORMAT} | asdict(note) | {"round": str(note.round)}
    # One key: the safetensors library writes several in an order that changes between processes.
    return {KEY: json.dumps(said, sort_keys=True)}


def _note(metadata: dict[str, str], source: str) -> Note:
    try:
        said = parse_json(metadata[KEY])
        note = Note(
            round=int(said["round"]),
            plan_digest=said["plan_digest"],
            base_fingerprint=said["base_fingerprint"],
            adapter_digest=said["adapter_digest"],
        )
        if metadata != _metadata(note) or not all(isinstance(x, str) for x in said.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ArtefactError(f"{source}: its metadata is not that of a checkpoint", REMEDY) from None
    return note
