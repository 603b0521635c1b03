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
from client.private import private_bytes, private_folder, write_private
from protocol.documents import OddError, json_as
from protocol.encoding import digest
from protocol.errors import ArtefactError, MachineError
from protocol.exchange import Contribution
from protocol.rules import Parts
from protocol.tensor_file import decode_tensors, encode_tensors
from protocol.transparency.leaves import Count, Sha256
from storage.locks import locked

FORMAT, UPDATE, ABOUT = "fedge-kept-update-1", "update", "fedge"
MOST_FILE = 2**32  # bytes
REMEDY = "delete it: the client then trains anew"


class _About(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: str
    plan: Sha256
    client: str
    parts: list[str]
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


OWN = (
    "round",
    "sid",
    "seq",
    "rid",
    "adapter",
    "last",
    "age",
    "free",
    "bound",
)  # as KeptUpdate has them


class FileKept:
    """In ``folder``, of ``client`` under the plan with digest ``plan``: of rounds that train ``parts``.

    Their updates are of ``size`` numbers. Parts that turn have files of their own: a round of others in
    between makes nobody forget.
    """

    def __init__(self, folder: Path, plan: str, client: str, parts: Parts, size: int) -> None:
        self._plan, self._client, self._parts, self._size = plan, client, sorted(parts), size
        # A folder may be several clients'; names of clients and parts are printable.
        own = digest("kept", "\n".join((client, *self._parts)).encode())[:16]
        self._path = folder / f"{plan[:32]}-{own}.safetensors"

    def load(self) -> KeptUpdate | None:
        """What the file holds. Raises MachineError for a damaged one, or another plan's."""
        if (data := private_bytes(self._path, most=MOST_FILE)) is None:
            return None
        try:
            tensors, texts = decode_tensors(data, source=str(self._path))
            about = json_as(_About, texts.get(ABOUT, ""))
        except ArtefactError as error:
            raise MachineError(error.cause, REMEDY) from None
        except OddError:
            raise self._odd("what it says of its update is not whole") from None
        whose = (FORMAT, self._plan, self._client, self._parts)
        if (about.format, about.plan, about.client, about.parts) != whose:
            raise self._odd("it is of another client, plan or parts, or another version's")
        update = tensors.get(UPDATE)
        if update is None or len(tensors) != 1 or update.shape != (self._size,):
            raise self._odd("its update is not of the plan's adapter")
        if not np.isfinite(update).all():
            raise self._odd("its update is not finite")
        contribution = Contribution(
            update=update, weight=about.weight, metrics=about.metrics, failed=about.failed
        )
        own = {name: getattr(about, name) for name in OWN}
        return KeptUpdate(contribution=contribution, passed=about.passed, **own)

    def keep(self, update: KeptUpdate) -> None:
        """Replace the file. Raises MachineError; then nothing may be answered."""
        about = _About(
            format=FORMAT,
            plan=self._plan,
            client=self._client,
            parts=self._parts,
            passed=dict(update.passed),
            failed=update.contribution.failed,
            weight=update.contribution.weight,
            metrics=dict(update.contribution.metrics),
            **{name: getattr(update, name) for name in OWN},
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
