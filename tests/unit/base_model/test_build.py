from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from base_model.build import build_base
from base_model.store import open_base
from base_model.verify import read_manifest, verify_base
from edge_runtime.base import EdgeBase
from protocol.errors import ArtefactError, FedgeError
from tests.tiers import some_by_default

TASK = "sequence-classification"


def test_a_base_of_an_older_format_is_refused_with_the_command(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    document = json.loads((base / "manifest.json").read_text())
    for number in (1, 2, 4, None):
        document["format"] = number
        if number is None:
            del document["format"]
        (base / "manifest.json").write_text(json.dumps(document))
        for reader in (open_base, EdgeBase.open):
            with pytest.raises(ArtefactError, match="another format") as refused:
                reader(base)
            assert "fedge base build" in refused.value.remedy


def test_training_and_the_edge_graph_have_the_same_bytes(tiny_base: Path) -> None:
    """What is trained is what is served: file, graph and module hold one set of codes."""
    manifest = read_manifest(tiny_base)
    on_disk = load_file(tiny_base / "weights.safetensors")
    graph = {
        i.name: numpy_helper.to_array(i)
        for i in onnx.load(tiny_base / "graph.onnx").graph.initializer
    }
    model = open_base(tiny_base).model
    assert len(manifest.linears) == 12
    for linear in manifest.linears:
        qweight, scales = f"{linear.path}.qweight", f"{linear.path}.scales"
        module = model.get_submodule(linear.path)
        assert (
            on_disk[qweight].tobytes() == graph[qweight].tobytes() == module.codes.numpy().tobytes()
        )
        assert (
            on_disk[scales].tobytes() == graph[scales].tobytes() == module.scales.numpy().tobytes()
        )


def test_every_linear_has_slots_and_ranks_of_its_own(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    slots = {slot.name: slot.shape for slot in manifest.graph.slots}
    ranks = {slots[f"{linear.path}.lora_A"][1] for linear in manifest.linears}
    assert len(ranks) == len(manifest.linears)
    assert slots["classifier.weight"] == ["labels", 32]
    assert slots["soft_prompt"] == ["prompt", 32]


def test_the_fingerprint_does_not_depend_on_the_default_dtype(
    tiny_source: Path, tiny_base: Path, tmp_path: Path
) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        again = build_base(str(tiny_source), task=TASK, bits=4, out=tmp_path / "again")
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.fingerprint == read_manifest(tiny_base).fingerprint


def test_a_forged_base_does_not_keep_the_fingerprint(tiny_base: Path, tmp_path: Path) -> None:
    """Other tensors under honest digests of the file: the fingerprint covers the tensors."""
    forged = shutil.copytree(tiny_base, tmp_path / "forged")
    tensors = load_file(forged / "weights.safetensors")
    name = next(name for name in tensors if name.endswith(".scales"))
    save_file(tensors | {name: tensors[name] * -3}, forged / "weights.safetensors")
    data = (forged / "weights.safetensors").read_bytes()
    manifest = json.loads((forged / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
    }
    (forged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="not the tensor that the fingerprint covers"):
        verify_base(forged)
    manifest["tensors"][name]["sha256"] = "0" * 64
    (forged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match="fingerprint is not that of"):
        verify_base(forged)


@pytest.mark.parametrize("lost", ["layer.1.", "model"])
def test_an_incomplete_checkpoint_is_no_base(tiny_source: Path, tmp_path: Path, lost: str) -> None:
    source = shutil.copytree(tiny_source, tmp_path / "source")
    weights = source / "model.safetensors"
    if lost == "model":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = load_file(weights)
        save_file({k: v for k, v in tensors.items() if lost not in k}, weights, {"format": "pt"})
    with pytest.raises(ArtefactError, match=r"lacks|cut or damaged"):
        build_base(str(source), task="sequence-classification", bits=4, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", some_by_default((), [8, 16, 32]))
def test_other_widths_agree_with_their_graph(tiny_source: Path, tmp_path: Path, bits: int) -> None:
    from base_model.release import edge_session
    from edge_runtime.edge_adapter import write_edge_adapter

    out = tmp_path / "base"
    manifest = build_base(str(tiny_source), task=TASK, bits=bits, out=out)
    opened = open_base(out, labels=3)
    weight = np.random.default_rng(0).normal(size=(3, 32)).astype("f")
    opened.model.classifier.weight.data.copy_(torch.from_numpy(weight))
    write_edge_adapter(
        {"classifier.weight": weight, "classifier.bias": np.zeros(3, "f")},
        tmp_path / "a.onnx_adapter",
    )
    session, options, _keep = edge_session(out, tmp_path / "a.onnx_adapter")
    ids, mask = np.array([[2, 9, 8, 3], [2, 7, 3, 0]]), np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        expected = opened.model(torch.from_numpy(ids), torch.from_numpy(mask)).logits.numpy()
    (got,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask}, options)
    assert np.linalg.norm(got - expected) <= 1e-5 * np.linalg.norm(expected)
    assert manifest.bits == bits


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "graph.onnx", "tokenizer.json", "config.json"]
)
def test_a_flipped_byte_or_a_lost_tail_is_named(tiny_base: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=name):
        open_base(copy)
    (copy / name).write_bytes(data[:100])
    with pytest.raises(ArtefactError, match=name):
        verify_base(copy)
    (copy / name).unlink()
    with pytest.raises(ArtefactError, match="missing"):
        verify_base(copy)


def test_truncated_weights_are_refused_even_without_verification(
    tiny_base: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    data = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtefactError, match="cannot be read"):
        open_base(copy, verify=False)


def test_a_stranger_in_the_folder_or_a_path_in_the_manifest_is_refused(
    tiny_base: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "base"
    shutil.copytree(tiny_base, copy)
    (copy / "more.safetensors").write_bytes(b"x")
    with pytest.raises(ArtefactError, match=r"more\.safetensors"):
        verify_base(copy)
    (copy / "more.safetensors").unlink()
    text = (copy / "manifest.json").read_text().replace('"config.json": {', '"../config.json": {')
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ArtefactError, match="plain file name"):
        verify_base(copy)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"task": "seq2seq"}, "planned"),
        ({"task": "causal-lm"}, "not built here"),
        ({"task": "dancing"}, "not known"),
        ({"bits": 5}, "not offered"),
        ({"source": "/nowhere/at/all"}, "no such folder"),
        ({"source": "package:no_such_module/x"}, "not installed"),
        ({"pooling": "median"}, "not known"),
    ],
)
def test_what_cannot_be_built_leaves_nothing_behind(
    tiny_source: Path, tmp_path: Path, arguments: dict[str, object], cause: str
) -> None:
    given = {
        "source": str(tiny_source),
        "task": TASK,
        "bits": 4,
        "out": tmp_path / "out",
        **arguments,
    }
    with pytest.raises(FedgeError, match=cause):
        build_base(given.pop("source"), **given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="exists already"):
        build_base(str(tiny_source), task=TASK, bits=4, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
