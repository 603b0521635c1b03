"""Where a client keeps its control variates between two rounds: a file per plan, its owner's alone. (P-4.13)

They are made of its rows, so they are private; of bounded size; and written whole, before the update leaves.
A file that is lost or deleted costs the correction of one round.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from client.control_variates import REMEMBERED, Memory, Passage
from client.private import private_bytes, private_folder, write_private
from protocol.encoding import digest
from protocol.errors import ArtefactError, MachineError
from protocol.layout import Layout, Tensors
from protocol.tensor_file import decode_tensors, encode_tensors

FORMAT = "fedge-controls-1"
TURN = re.compile(r"0|[1-9][0-9]{0,9}")  # a round, counted over all runs
KINDS = ("received", "own", "shared")
MOST_FILE = 2**32  # bytes
REMEDY = "delete it: the next round is then trained without a correction"


class Controls(Protocol):
    """One plan's control variates."""

    def load(self) -> Memory:
        """What was kept last; empty at first."""
        ...

    def keep(self, memory: Memory) -> None:
        """Keep ``memory`` in its place; it is safe when this returns."""
        ...


class FileControls:
    """In a folder of this user's own."""

    def __init__(self, folder: Path, plan: str, client: str, layout: Layout) -> None:
        """Of ``client`` under the plan with digest ``plan``, whose adapter is of ``layout``."""
        own = digest("controls", client.encode())[:16]  # a folder may be several clients'
        self._path = folder / f"{plan[:32]}-{own}.safetensors"
        self._plan, self._client, self._layout = plan, client, layout

    def load(self) -> Memory:
        """What the file holds. Raises MachineError for a damaged one, or another plan's."""
        if (data := private_bytes(self._path, most=MOST_FILE)) is None:
            return {}
        try:
            tensors, about = decode_tensors(data, source=str(self._path))
        except ArtefactError as error:
            raise MachineError(error.cause, REMEDY) from None
        if about != self._about:
            raise self._odd("it is of another client or plan, or another version's")
        return self._memory(tensors)

    def keep(self, memory: Memory) -> None:
        """Replace the file. Raises MachineError; then nothing may be answered."""
        tensors: Tensors = {}
        for name, passages in memory.items():
            for passage in passages:
                for kind in KINDS:
                    value = getattr(passage, kind)
                    if value is not None:
                        tensors[f"{name} {passage.turn} {kind}"] = value
        private_folder(self._path.parent)
        write_private(self._path, encode_tensors(tensors, self._about))

    @property
    def _about(self) -> dict[str, str]:
        return {"format": FORMAT, "plan": self._plan, "client": self._client}

    def _memory(self, tensors: Tensors) -> Memory:
        shapes = {spec.name: spec.shape for spec in self._layout.specs}
        passages: dict[str, dict[int, Tensors]] = {}
        for key, value in tensors.items():
            name, _, place = key.partition(" ")
            turn, _, kind = place.partition(" ")
            if not TURN.fullmatch(turn) or kind not in KINDS or shapes.get(name) != value.shape:
                raise self._odd(f"{key[:80]!r} is none of the plan's adapter")
            if value.dtype != np.float32 or not np.isfinite(value).all():
                raise self._odd(f"{key[:80]!r} holds what is no float32, NaN or infinity")
            passages.setdefault(name, {}).setdefault(int(turn), {})[kind] = value
        return {name: self._ordered(name, turns) for name, turns in passages.items()}

    def _ordered(self, name: str, turns: dict[int, Tensors]) -> tuple[Passage, ...]:
        whole = all({"received", "own"} <= turns[turn].keys() for turn in turns)
        if len(turns) > REMEMBERED or not whole:
            raise self._odd(f"what it has of {name} is not whole")
        return tuple(
            Passage(turn=turn, shared=turns[turn].get("shared"), **_both(turns[turn]))
            for turn in sorted(turns)
        )

    def _odd(self, fault: str) -> MachineError:
        return MachineError(f"{self._path}: {fault}", REMEDY)


def _both(kinds: Tensors) -> Tensors:
    return {kind: kinds[kind] for kind in ("received", "own")}
