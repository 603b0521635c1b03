"""A graph that is too large for one file keeps its tensors beside it, and every reader follows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from base_model.build import build_base
from base_model.fetch import fetch_base
from base_model.graph_check import check_graph
from base_model.store import open_base
from base_model.verify import verify_base
from edge_runtime.base import EdgeBase
from edge_runtime.graph_bounds import verify_graph
from edge_runtime.mapped_graph import open_mapped
from protocol.errors import ArtefactError
from protocol.manifest import GRAPH_DATA
from tests.unit.base_model.sources import TEXTS, write_source
from tests.unit.base_model.test_same_answers import edge_logits

TASK = "sequence-classification"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base in one file, the same one beyond the bound, and a sibling of the latter."""
    folder = tmp_path_factory.mktemp("graphs")
    source = write_source(folder / "source", classifier=True)
    sibling = write_source(folder / "other", classifier=True, seed=1)
    build_base(str(source), task=TASK, bits=4, out=folder / "whole")
    for name, origin in (("parted", source), ("sibling", sibling)):
        build_base(str(origin), task=TASK, bits=4, out=folder / name, one_file=10_000)
    return folder / "whole", folder / "parted", folder / "sibling"


@pytest.mark.slow
def test_beyond_the_bound_tensors_lie_beside_the_graph(pair: tuple[Path, Path, Path]) -> None:
    whole, parted, _ = map(verify_base, pair)
    assert GRAPH_DATA not in whole.files
    assert GRAPH_DATA in parted.files
    assert parted.fingerprint == whole.fingerprint
    assert parted.graph.slots == whole.graph.slots
    graph = onnx.load(pair[1] / "graph.onnx", load_external_data=False).graph
    slots = {slot.name for slot in parted.graph.slots}
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(outside) >= 5
    assert not slots & {tensor.name for tensor in outside}
    assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {
        GRAPH_DATA
    }


@pytest.mark.slow
def test_devices_open_it_and_answer_alike(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    whole, parted, _ = pair
    expected = edge_logits(EdgeBase.open(whole), TEXTS)
    assert (edge_logits(EdgeBase.open(parted), TEXTS) == expected).all()
    for _ in ("made", "found"):
        mapped = open_mapped(parted, tmp_path / "cache", threads=1)
        assert np.abs(edge_logits(mapped, TEXTS) - expected).max() <= 1e-6
    folder = tmp_path / "cache"
    assert len([path for path in folder.iterdir() if (path / "made.json").is_file()]) == 1


@pytest.mark.slow
def test_a_mapped_copy_is_of_the_tensors_too(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two bases of one form have the same `graph.onnx`; what differs lies beside it."""
    _, parted, sibling = pair
    opened = [open_mapped(base, tmp_path / "cache", threads=1) for base in (parted, sibling)]
    for base, mapped in zip((parted, sibling), opened, strict=True):
        expected = edge_logits(EdgeBase.open(base), TEXTS)
        assert np.abs(edge_logits(mapped, TEXTS) - expected).max() <= 1e-6


@pytest.mark.slow
def test_damage_in_the_tensors_is_noticed(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(pair[1], tmp_path / "base")
    data = bytearray((copy / GRAPH_DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / GRAPH_DATA).write_bytes(data)
    readers = (
        EdgeBase.open,
        verify_base,
        lambda base: open_mapped(base, tmp_path / "c", threads=1),
    )
    for reader in readers:
        with pytest.raises(ArtefactError, match=GRAPH_DATA):
            reader(copy)
    (copy / GRAPH_DATA).unlink()
    for reader in readers:
        with pytest.raises(ArtefactError, match=GRAPH_DATA):
            reader(copy)


@pytest.mark.slow
def test_it_is_fetched_like_any_base(pair: tuple[Path, Path, Path], tmp_path: Path) -> None:
    manifest = verify_base(pair[1])
    copy = fetch_base(manifest.fingerprint, mirrors=[str(pair[1])], cache=tmp_path / "bases")
    assert verify_base(copy) == manifest
    assert EdgeBase.open(copy)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "other weights", "no data"])
def test_a_graph_that_does_not_answer_like_the_model_is_no_base(
    pair: tuple[Path, Path, Path], tmp_path: Path, fault: str
) -> None:
    whole, parted, sibling = pair
    model = open_base(whole).model
    check_graph(whole / "graph.onnx", model, slots=True)
    check_graph(parted / "graph.onnx", model, slots=True)
    copy = shutil.copytree(parted, tmp_path / "base")
    if fault == "cut":
        (copy / "graph.onnx").write_bytes((copy / "graph.onnx").read_bytes()[:5000])
    elif fault == "no data":
        (copy / GRAPH_DATA).unlink()
    else:
        shutil.copy(sibling / GRAPH_DATA, copy / GRAPH_DATA)
    with pytest.raises(ArtefactError, match=r"cannot be opened|differs from the model"):
        check_graph(copy / "graph.onnx", model, slots=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"location": "weights.safetensors"}, "outside its file"),
        ({"location": "../graph.data"}, "outside its file"),
        ({"location": "/etc/hostname"}, "outside its file"),
        ({"location": ""}, "outside its file"),
        ({"offset": None}, "outside its file"),
        ({"length": None}, "outside its file"),
        ({"checksum": "0"}, "outside its file"),
        ({"offset": "-1"}, "at no place"),
        ({"length": "1e3"}, "at no place"),
        ({"offset": str(2**40)}, "behind the end"),
        ({"length": str(2**40)}, "behind the end"),
        ({"length": "1"}, "claims more than its bytes"),
    ],
)
def test_a_tensor_lies_beside_the_graph_and_nowhere_else(
    pair: tuple[Path, Path, Path], tmp_path: Path, changes: dict[str, str | None], cause: str
) -> None:
    graph = onnx.load(pair[1] / "graph.onnx", load_external_data=False)
    tensor = next(t for t in graph.graph.initializer if len(t.external_data))
    entries = {entry.key: entry.value for entry in tensor.external_data} | changes
    del tensor.external_data[:]
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path = tmp_path / "graph.onnx"
    path.write_bytes(graph.SerializeToString())
    size, beside = path.stat().st_size, (GRAPH_DATA, (pair[1] / GRAPH_DATA).stat().st_size)
    with pytest.raises(ArtefactError, match=cause):
        verify_graph(path, size=size, beside=beside)
    with pytest.raises(ArtefactError, match="outside its file"):
        verify_graph(path, size=size)
