"""The base of an experiment: built once, found again, never mistaken for another."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from protocol.errors import ArtefactError, FedgeError, MachineError, PlanError
from simulations.base_cache import ready_base
from simulations.experiment import BaseSource
from simulations.progress import NoProgress


def ready(source: BaseSource, folder: Path) -> Path:
    return ready_base(source, folder=folder, cache=folder / ".bases", progress=NoProgress())


def test_it_is_built_once_and_pinned_by_its_weights(tiny_source: Path, tmp_path: Path) -> None:
    weights = hashlib.sha256((tiny_source / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ArtefactError, match="not the pinned one"):
        ready(BaseSource(source=str(tiny_source), sha256="0" * 64), tmp_path)
    assert not (tmp_path / ".bases").exists()
    built = ready(BaseSource(source=str(tiny_source)), tmp_path)
    written = (built / "manifest.json").stat().st_mtime_ns
    assert ready(BaseSource(source=str(tiny_source), sha256=weights), tmp_path) == built
    assert (built / "manifest.json").stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / ".bases").iterdir()] == [built.name]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("package:no_such_package_at_all/model", MachineError),
        ("./no-such-folder", MachineError),
        (".", MachineError),  # a folder, but without weights
    ],
)
def test_a_source_that_is_not_there(source: str, kind: type[FedgeError], tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        ready(BaseSource(source=source), tmp_path)
    assert caught.value.remedy


def test_a_hub_id_cannot_be_pinned(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="pins a folder"):
        ready(BaseSource(source="someone/some-model", sha256="0" * 64), tmp_path)
