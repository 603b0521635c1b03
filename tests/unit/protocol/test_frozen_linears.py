"""Lengths of a base's rows: of every width what the weight's own numbers give, in the same bits for all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from audit.weights import linears_at
from base_model.frozen_linears import stored_linears
from base_model.store import open_base
from base_model.verify import read_manifest
from protocol.codes import quantise
from protocol.errors import ArtefactError, MachineError
from protocol.frozen_linears import StoredLinears
from protocol.manifest import Linear
from tests.unit.audit.small_bases import small_manifest

PATH = "m.0.query"


def stored(weight: np.ndarray, bits: int) -> StoredLinears:
    """A base of one linear (6, 40)."""
    linear = Linear(path=PATH, in_features=weight.shape[1], out_features=len(weight))
    manifest = small_manifest().model_copy(update={"bits": bits, "linears": [linear]})
    tensors = {"bias": np.arange(6, dtype=np.float32)}
    if bits in (4, 8):
        codes, scales = quantise(weight, bits=bits, block=32)
        tensors |= {"qweight": codes.reshape(len(codes), -1), "scales": scales}
    else:
        tensors["weight"] = weight.astype(np.float16 if bits == 16 else np.float32)
    return StoredLinears(manifest, lambda name: tensors[name.removeprefix(f"{PATH}.")])


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_lengths_are_those_of_the_rows(bits: int) -> None:
    rng = np.random.default_rng(bits)
    linears = stored(rng.normal(size=(6, 40)).astype(np.float32), bits)
    weight = linears.weight(PATH)
    assert weight.shape == (6, 40)
    np.testing.assert_allclose(linears.lengths(PATH), np.linalg.norm(weight, axis=1), rtol=1e-6)
    down = rng.normal(size=(3, 40)).astype(np.float32)
    up = rng.normal(size=(6, 3)).astype(np.float32)
    grown = np.linalg.norm(weight + up @ down, axis=1) / np.linalg.norm(weight, axis=1)
    np.testing.assert_allclose(linears.growth(PATH, down, up), grown, rtol=1e-5)
    assert (linears.growth(PATH, down, 0 * up) == 1).all()


def test_a_bias_is_given_back_where_the_graph_has_a_shift() -> None:
    linears = stored(np.ones((6, 40), np.float32), 32)
    bias = linears.bias(PATH)
    assert bias is not None
    assert bias.tolist() == list(range(6))
    assert linears.bias("m.1.key") is None


def test_a_row_of_zeros_is_refused_with_its_place() -> None:
    weight = np.ones((6, 40), np.float32)
    weight[4] = 0
    with pytest.raises(ArtefactError, match=r"m\.0\.query: row 4 of its weight has no length"):
        stored(weight, 32).lengths(PATH)
    against = np.concatenate([np.zeros(3), [-1], np.zeros(2)]).astype(np.float32)[:, None]
    full = stored(np.ones((6, 40), np.float32), 32)
    with pytest.raises(ArtefactError, match="row 3 of its weight"):
        full.growth(PATH, np.ones((1, 40), np.float32), against)


def test_publisher_and_auditor_get_the_same_bits(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    theirs, ours = stored_linears(tiny_base, manifest), linears_at(tiny_base, manifest)
    model = open_base(tiny_base, verify=False).model
    rng = np.random.default_rng(1)
    for linear in manifest.linears:
        path = linear.path
        down = rng.normal(size=(2, linear.in_features)).astype(np.float32)
        up = rng.normal(size=(linear.out_features, 2)).astype(np.float32)
        assert theirs.growth(path, down, up).tobytes() == ours.growth(path, down, up).tobytes()
        assert theirs.lengths(path).tobytes() == ours.lengths(path).tobytes()
        weight = model.get_submodule(path).weight.detach().numpy()
        assert np.array_equal(ours.weight(path), weight)


def test_an_auditor_takes_no_other_weights(tiny_base: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_base)
    path = manifest.linears[0].path
    with pytest.raises(MachineError, match="cannot be read"):
        linears_at(tmp_path / "none", manifest).lengths(path)
    file = tmp_path / "weights.safetensors"
    shutil.copy(tiny_base / "weights.safetensors", file)
    tensors = load_file(file)
    name = f"{path}.scales"
    save_file(tensors | {name: tensors[name] * np.float32(2)}, file)
    with pytest.raises(ArtefactError, match=re.escape(f"{name} is not the manifest's")):
        linears_at(tmp_path, manifest).lengths(path)
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(ArtefactError, match=re.escape(f"damaged at {name}")):
        linears_at(tmp_path, manifest).lengths(path)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ArtefactError, match="damaged at"):
        linears_at(tmp_path, manifest).lengths(path)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(ArtefactError, match="damaged at"):
        linears_at(tmp_path, manifest).lengths(path)
    listed = manifest.model_copy(update={"tensors": {}})
    with pytest.raises(ArtefactError, match="lists no tensor"):
        linears_at(tiny_base, listed).lengths(path)
