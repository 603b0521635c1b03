"""What a run hangs on beside its seed, as one digest: the experiment, and the content of what it reads.

A sweep finds an earlier run by it, so a changed file is another run and never mixes with those before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from base_model.verify import read_manifest
from protocol.encoding import canonical_json, digest
from protocol.errors import FedgeError
from simulations.base_origin import origin_of
from simulations.experiment import BaseSource, Experiment, resolve_source
from storage.regular import sha256_of


class Identities:
    """Identities of the experiments of one command: what several of them read is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], str] = {}

    def of(self, experiment: Experiment) -> str:
        """64 hex digits. Experiments of one identity and one seed give one run.

        What cannot be read has no digest: its run says why, and is another one once it can be.
        """
        content = experiment.model_dump(mode="json")
        content["plan"].pop("seed", None)
        sources = {
            "data.train": partial(_rows, experiment.data.train, experiment.folder),
            "data.test": partial(_rows, experiment.data.test, experiment.folder),
            "base": partial(_base, experiment.base, experiment.base_task, experiment.folder),
            "start": partial(_start, experiment.start_folder),
        }
        read = {name: self._once(source) for name, source in sources.items()}
        return digest("experiment", canonical_json({"experiment": content, "read": read}))

    def _once(self, source: partial[str]) -> str:
        key = (source.func, *map(str, source.args))
        if key not in self._known:
            try:
                self._known[key] = source()
            except (FedgeError, OSError):
                self._known[key] = ""
        return self._known[key]


def _rows(source: str, folder: Path) -> str:
    return sha256_of(resolve_source(source, folder=folder)) if source else ""


def _base(base: BaseSource, task: str, folder: Path) -> str:
    if base.folder:
        return read_manifest(folder / Path(base.folder).expanduser()).fingerprint
    return origin_of(base, task, folder).digest


def _start(folder: Path | None) -> str:
    from simulations.starts import start_at

    return "" if folder is None else start_at(folder).model_dump_json()
