"""The file of a kept update: its owner's alone, of bounded size, replaced whole. (P-6.10, P-4.14)

It is made of the client's rows, so it is private. Lost or deleted it costs one training, and a round where a
sum of its adapter is asked for again; to one that others alone have opened it then gives something else.
One put back from a backup might be counted twice: a site that restores a backup deletes it, and it may
delete those of plans that have ended.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from client.kept_updates import MOST_RUNS, KeptUpdate
from client.private import private_folder, write_private
from protocol.documents import OddError, json_as
from protocol.encoding import digest
from protocol.errors import ArtefactError, MachineError
from protocol.exchange import Contribution
from protocol.tensor_file import decode_tensors, encode_tensors
from protocol.transparency.leaves import Count, Sha256
from storage.locks import locked
from storage.regular import read_regular

FORMAT, UPDATE, ABOUT = "fedge-kept-update-1", "update", "fedge"
MOST_FILE = 2**32  # bytes
REMEDY = "delete it: the client then trains anew"


class _About(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str
    plan: Sha256
    client: str
    round: Annotated[int, Field(gt=0)]
    sid: Sha256
    seq: Count
    rid: Sha256
    adapter: Sha256
    last: Annotated[int, Field(gt=0)]
    passed: Annotated[dict[Sha256, Annotated[int, Field(gt=0)]], Field(max_length=MOST_RUNS)]
    age: Count
    free: bool
    bound: bool
    failed: bool
    weight: Annotated[int, Field(gt=0)]
    metrics: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class FileKept:
    """In ``folder``, of ``client`` under the plan with digest ``plan``; updates are of ``size`` numbers."""

    def __init__(self, folder: Path, plan: str, client: str, size: int) -> None:
        # A folder may be several clients'; rounds of a plan whose parts turn are of several sizes.
        own = digest("kept", f"{size} {client}".encode())[:16]
        self._path = folder / f"{plan[:32]}-{own}.safetensors"
        self._plan, self._client, self._size = plan, client, size

    def load(self) -> KeptUpdate | None:
        """What the file holds. Raises MachineError for a damaged one, or another plan's."""
        try:
            data = read_regular(self._path, most=MOST_FILE)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MachineError(
                f"{self._path}: cannot be read: {error.strerror}", "check the file and its folder"
            ) from None
        try:
            tensors, texts = decode_tensors(data, source=str(self._path))
            about = json_as(_About, texts.get(ABOUT, ""))
        except ArtefactError as error:
            raise MachineError(error.cause, REMEDY) from None
        except OddError:
            raise self._odd("what it says of its update is not whole") from None
        if (about.format, about.plan, about.client) != (FORMAT, self._plan, self._client):
            raise self._odd("it is of another client or plan, or another version's")
        update = tensors.get(UPDATE)
        if update is None or len(tensors) != 1 or update.shape != (self._size,):
            raise self._odd("its update is not of the plan's adapter")
        if not np.isfinite(update).all():
            raise self._odd("its update is not finite")
        contribution = Contribution(
            update=update, weight=about.weight, metrics=about.metrics, failed=about.failed
        )
        return KeptUpdate(
            contribution=contribution,
            round=about.round,
            sid=about.sid,
            seq=about.seq,
            rid=about.rid,
            adapter=about.adapter,
            last=about.last,
            passed=about.passed,
            age=about.age,
            free=about.free,
            bound=about.bound,
        )

    def keep(self, update: KeptUpdate) -> None:
        """Replace the file. Raises MachineError; then nothing may be answered."""
        about = _About(
            format=FORMAT,
            plan=self._plan,
            client=self._client,
            round=update.round,
            sid=update.sid,
            seq=update.seq,
            rid=update.rid,
            adapter=update.adapter,
            last=update.last,
            passed=dict(update.passed),
            age=update.age,
            free=update.free,
            bound=update.bound,
            failed=update.contribution.failed,
            weight=update.contribution.weight,
            metrics=dict(update.contribution.metrics),
        )
        private_folder(self._path.parent)
        data = encode_tensors(
            {UPDATE: update.contribution.update}, {ABOUT: about.model_dump_json()}
        )
        write_private(self._path, data)

    def alone(self) -> AbstractContextManager[bool]:
        """Hold the file's lock. Raises MachineError."""
        return locked(private_folder(self._path.parent) / f"{self._path.name}.lock")

    def _odd(self, fault: str) -> MachineError:
        return MachineError(f"{self._path}: {fault}", REMEDY)
