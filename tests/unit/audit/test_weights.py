"""What a method makes of the base's weights is seen by an auditor who has them, and left open by others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from audit.log_copy import Trust
from audit.releases import UNREAD
from audit.sources import Folder
from audit.verify import audit
from base_model.weights_file import tensor_entry
from protocol.manifest import Manifest, fingerprint_of
from tests.interop.released import drawn, release
from tests.unit.audit.runs import make_run
from tests.unit.audit.small_bases import small_manifest

DORA = {"method": "dora", "rank": 2, "alpha": 4.0, "targets": ["query"]}
TENSORS = {
    name: drawn(name)
    for path in ("m.0.query", "m.1.query")
    for name in (f"{path}.qweight", f"{path}.scales", f"{path}.bias")
}


def with_weights() -> Manifest:
    """The small base, and what its linears are made of."""
    entries = {name: tensor_entry(value) for name, value in TENSORS.items()}
    manifest = small_manifest().model_copy(update={"tensors": entries})
    return manifest.model_copy(update={"fingerprint": fingerprint_of(manifest)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its last round is released."""
    folder, manifest = tmp_path_factory.mktemp("dora") / "run", with_weights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.unit.audit.runs.small_manifest", lambda linears=2: manifest)
        make_run(folder, adapter=DORA, release={"parity_max_relative": 1.0})
    release(folder)
    return folder


def test_without_a_base_it_is_left_open_by_name(run: Path) -> None:
    report = audit(Folder(run), Trust())
    assert report.verdict == "ok"
    (left,) = report.rounds[-1].unverified
    assert "adapter.onnx_adapter: what `dora` does hangs on weights of the base" in left.what
    assert "--base" in left.what


def test_a_base_without_weights_leaves_it_open_too(run: Path, tmp_path: Path) -> None:
    """What an auditor has at home is no fault of the run."""
    report = audit(Folder(run), Trust(), weights=tmp_path)
    assert report.verdict == "ok"
    (left,) = report.rounds[-1].unverified
    assert "weights.safetensors cannot be read: No such file" in left.what
    assert left.leaves == UNREAD


def test_with_one_it_is_what_the_published_tensors_give(run: Path, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    report = audit(Folder(run), Trust(), weights=tmp_path)
    assert report.verdict == "ok"
    assert report.rounds[-1].unverified == ()


def test_other_weights_are_no_base_of_this_run(run: Path, tmp_path: Path) -> None:
    name = "m.1.query.scales"
    moved = TENSORS[name] * np.float32(1.5)
    save_file(TENSORS | {name: moved}, tmp_path / "weights.safetensors")
    report = audit(Folder(run), Trust(), weights=tmp_path)
    assert report.verdict == "failed"
    assert f"{name} is not the manifest's" in str(report.rounds[-1].faults)


def test_slots_of_other_weights_are_another_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is of these weights, the release was made on others."""
    folder, manifest = tmp_path / "run", with_weights()
    monkeypatch.setattr("tests.unit.audit.runs.small_manifest", lambda linears=2: manifest)
    make_run(folder, adapter=DORA, release={"parity_max_relative": 1.0})
    monkeypatch.setattr("tests.interop.released.drawn", other)
    release(folder)
    save_file(TENSORS, tmp_path / "weights.safetensors")
    report = audit(Folder(folder), Trust(), weights=tmp_path)
    assert "holds another adapter than the one published" in str(report.rounds[-1].faults)


def other(name: str) -> np.ndarray:
    value: np.ndarray = drawn(name)
    return value[::-1].copy()
