"""`fedge edge blend`: what it takes, refuses and says; what devices do with a blend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_runtime.adapter import Tensors, load_adapter, read_note, read_tensors
from edge_runtime.base import EdgeBase
from edge_runtime.blends.making import Share, blend
from edge_runtime.blends.note import BLEND_FILE, MOST_PARTS, is_blend, parse_blend, read_blend
from edge_runtime.blends.weighted import Weighted, blended, low_rank_sum
from edge_runtime.commands import app
from edge_runtime.decoder.adapters import load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.passport import read_policy
from protocol.errors import ArtefactError, DataError, FedgeError, ProofError
from protocol.manifest import Linear
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from tests.device_kinds import changed_note, overwritten, released_text
from tests.tiny_decoder import lora, write_tiny_decoder

HALVES = ("a", 0.5), ("b", 0.5)


def shares(released: dict[str, Path], *weighted: tuple[str, float]) -> list[Share]:
    return [Share(folder=released[name], weight=weight) for name, weight in weighted]


def edge(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=True)


@pytest.mark.parametrize(
    ("weighted", "said"),
    [
        ([], "a blend of 0 adapters"),
        ([("a", 1.0)] * (MOST_PARTS + 1), f"a blend of {MOST_PARTS + 1} adapters"),
        ([("a", float("nan"))], "weight nan"),
        ([("a", 1.0), ("b", float("inf"))], "weight inf"),
        ([("a", 1.0), ("b", 0.0)], "weight 0"),
        ([("a", 0.9), ("b", 0.4)], "the weights sum to 1.3"),
        ([("a", 1.0), ("a", -1.0)], "the weights sum to 0"),
        ([("a", 0.5), ("c", 0.5)], "a soft prompt cannot be blended"),
    ],
)
def test_weights_that_make_no_blend_are_refused(
    tiny_base: Path, released: dict[str, Path], tmp_path: Path, weighted: Any, said: str
) -> None:
    with pytest.raises(FedgeError) as refused:
        blend(tmp_path / "out", tiny_base, shares(released, *weighted))
    assert said in refused.value.cause
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": ["music", "light", "timer"]}, "the same in another order"),
        ({"labels": ["light", "music", "radio"]}, "other labels"),
        ({"pairs": True}, "pairs of texts"),
        ({"base_fingerprint": "0" * 64}, "belongs to base 0000"),
        ({"files": {}}, "was not released"),
        ({"files": {EDGE_FILE: "0" * 64}}, "damaged"),
        ({"labels": ["light", "music"]}, "the head has 3 labels"),
        ({"task": "regression", "labels": [], "range": [0.0, 1.0]}, "the head has 3 labels"),
        ({"task": "oracle"}, "task `oracle`"),
    ],
)
def test_adapters_that_do_not_go_together_are_refused(
    tiny_base: Path, released: dict[str, Path], tmp_path: Path, fields: Any, said: str
) -> None:
    other = shutil.copytree(released["b"], tmp_path / "b")
    changed_note(other, **fields)
    with pytest.raises((DataError, ArtefactError)) as refused:
        blend(tmp_path / "out", tiny_base, shares({**released, "b": other}, *HALVES))
    assert said in refused.value.cause
    assert not (tmp_path / "out").exists()


def test_what_is_no_release_is_refused(
    tiny_base: Path, released: dict[str, Path], tmp_path: Path
) -> None:
    blend(tmp_path / "out", tiny_base, shares(released, *HALVES))
    with pytest.raises(ArtefactError, match="is there already"):
        blend(tmp_path / "out", tiny_base, shares(released, *HALVES))
    with pytest.raises(ArtefactError, match="is a blend, and a release is needed"):
        blend(tmp_path / "two", tiny_base, [Share(folder=tmp_path / "out", weight=1.0)])
    alone = Share(folder=released["a"] / EDGE_FILE, weight=1.0)
    with pytest.raises(ArtefactError, match="a file alone"):
        blend(tmp_path / "two", tiny_base, [alone])
    with pytest.raises(ArtefactError, match="is not an adapter"):
        blend(tmp_path / "two", tiny_base, [Share(folder=tmp_path, weight=1.0)])
    with pytest.raises(ArtefactError, match="is not a base"):
        blend(tmp_path / "two", tmp_path, shares(released, *HALVES))


def test_one_head_and_none_are_no_blend() -> None:
    head = {
        "classifier.weight": np.ones((2, 4), np.float32),
        "classifier.bias": np.ones(2, np.float32),
    }
    shift = {"a.shift": np.ones(3, np.float32)}
    parts = [
        Weighted(source="a", weight=0.5, tensors=head | shift),
        Weighted(source="b", weight=0.5, tensors=shift),
    ]
    with pytest.raises(ArtefactError, match="one has a head that the other has not"):
        blended(parts, [])
    odd = [Weighted(source="a", weight=1.0, tensors={"a.rotation": np.ones(3, np.float32)})]
    with pytest.raises(ArtefactError, match=r"a\.rotation"):
        blended(odd, [])
    large = [Weighted(source="a", weight=1e39, tensors=shift)]
    with pytest.raises(ArtefactError, match="beyond float32"):
        blended(large, [])


def outputs(linear: Linear, tensors: Tensors, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a linear without a bias, its weights ones, gives of ``rows`` (n, in). (P-1.11)"""
    scale, shift = tensors.get("a.scale", 1.0), tensors.get("a.shift", 0.0)
    ones = np.ones((linear.in_features, linear.out_features))
    read = scale * rows if linear.narrows else rows
    result: npt.NDArray[Any] = (
        read @ ones + shift if linear.narrows else scale * (rows @ ones + shift)
    )
    if "a.lora_A" in tensors:
        result = result + read @ tensors["a.lora_A"].astype(np.float64) @ tensors["a.lora_B"]
    return result


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_linear_with_scale_and_shift_is_summed_only_where_that_is_the_sum(
    data: st.DataObject, seed: int
) -> None:
    """Of what the linear gives, over parts with either, both or none, and scales of inputs."""
    rng = np.random.default_rng(seed)
    width, out = (5, 3) if data.draw(st.booleans()) else (3, 5)
    linear = Linear(path="a", in_features=width, out_features=out)
    sizes = {"a.scale": max(width, out), "a.shift": out}
    parts = []
    for number in range(data.draw(st.integers(1, 3))):
        weight = data.draw(st.sampled_from([1.0, 0.5, -2.0]))
        names = data.draw(st.sets(st.sampled_from(sorted(sizes))))
        tensors = {name: rng.normal(1, 1, sizes[name]).astype(np.float32) for name in names}
        parts.append(Weighted(source=f"part {number}", weight=weight, tensors=tensors))
    rows = rng.normal(size=(4, width))
    plain = outputs(linear, {}, rows)
    change = sum(part.weight * (outputs(linear, part.tensors, rows) - plain) for part in parts)
    summed = {
        name: sum((p.weight * (p.tensors[name] - rest) for p in parts if name in p.tensors), rest)
        for name, rest in (("a.scale", 1.0), ("a.shift", 0.0))
    }
    if not np.allclose(outputs(linear, summed, rows), plain + change, atol=1e-4):
        with pytest.raises(DataError, match="the linear a would have a scale and a shift"):
            blended(parts, [linear])
        return
    tensors = blended(parts, [linear])
    np.testing.assert_allclose(outputs(linear, tensors, rows), plain + change, atol=1e-4)


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_factors_read_in_a_blend_what_they_read_alone(data: st.DataObject, seed: int) -> None:
    """Where inputs are scaled, by the part that has them, by another, by several; or it is refused."""
    rng = np.random.default_rng(seed)
    linear = Linear(path="a", in_features=5, out_features=3)
    parts = []
    for number in range(data.draw(st.integers(1, 3))):
        tensors = {}
        if data.draw(st.booleans()):
            tensors["a.scale"] = rng.uniform(0.5, 2, 5).astype(np.float32)
            if data.draw(st.booleans()):
                tensors["a.scale"][2] = 0.0
        if data.draw(st.booleans()):
            tensors["a.lora_A"] = rng.normal(size=(5, 2)).astype(np.float32)
            tensors["a.lora_B"] = rng.normal(size=(2, 3)).astype(np.float32)
        weight = data.draw(st.sampled_from([1.0, 0.5, 0.25]))
        parts.append(Weighted(source=f"part {number}", weight=weight, tensors=tensors))
    rows = rng.normal(size=(4, 5))
    plain = outputs(linear, {}, rows)
    change = sum(part.weight * (outputs(linear, part.tensors, rows) - plain) for part in parts)
    scales = [
        part.weight * (part.tensors["a.scale"] - 1) for part in parts if "a.scale" in part.tensors
    ]
    if scales and np.float32(1 + sum(scales)[2]) == 0 and any(_reads(part, 2) for part in parts):
        with pytest.raises(DataError, match="would read nothing of input 2"):
            blended(parts, [linear])
        return
    tensors = blended(parts, [linear])
    np.testing.assert_allclose(outputs(linear, tensors, rows), plain + change, atol=1e-3)


def _reads(part: Weighted, row: int) -> bool:
    """Whether a part's factors read an input."""
    scale = part.tensors.get("a.scale", np.ones(5, np.float32))
    return "a.lora_A" in part.tensors and bool(scale[row])


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_factors_side_by_side_are_the_weighted_sum(data: st.DataObject, seed: int) -> None:
    """Whatever the ranks, some of them together above what the matrix can have, some downs shared."""
    rng = np.random.default_rng(seed)
    width, out = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    pairs, change = [], np.zeros((width, out))
    for _ in range(data.draw(st.integers(1, 4))):
        rank = data.draw(st.integers(0, 5))
        down = rng.normal(size=(width, rank)).astype(np.float32)
        if pairs and data.draw(st.booleans()):
            down = pairs[0][1]
        up = rng.normal(size=(down.shape[1], out)).astype(np.float32)
        weight = data.draw(st.floats(-4, 4))
        pairs.append((weight, down, up))
        change += weight * (down.astype(np.float64) @ up.astype(np.float64))
    down, up = low_rank_sum(pairs)
    assert down.dtype == up.dtype == np.float32
    assert down.shape[1] <= min(width, out)
    np.testing.assert_allclose(down.astype(np.float64) @ up, change, atol=1e-4)


def test_the_command_writes_what_infer_takes(
    tiny_base: Path, released: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    named = [f"--adapter={released['a']}=1.5", f"--adapter={released['b']}=-0.5"]
    said = json.loads(edge("blend", out, "--base", tiny_base, *named, "--json").stdout)
    assert [part["weight"] for part in said["parts"]] == [1.5, -0.5]
    assert said["rank"] == 4 + 7
    assert not said["verified"]
    assert sorted(path.name for path in out.iterdir()) == [EDGE_FILE, BLEND_FILE]
    about = ["infer", "--base", tiny_base, "--adapter", out, "--json", "play some music"]
    answer = edge(*about)
    assert json.loads(answer.stdout)[0]["label"] in ("light", "music", "timer")
    assert "1.5 × t round 1 + -0.5 × t round 1: it is no release, no log vouches" in answer.stderr
    shown = edge("blend", tmp_path / "again", "--base", tiny_base, *named).stdout
    assert "2 adapters as one" in shown
    assert "nobody verified them" in shown
    again = (tmp_path / "again" / EDGE_FILE).read_bytes()
    assert again == (out / EDGE_FILE).read_bytes()


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=half", "a=1,5"])
def test_an_option_that_is_no_weighted_folder_is_refused(tiny_base: Path, text: str) -> None:
    refused = edge("blend", "out", "--base", tiny_base, "--adapter", text).exception
    assert isinstance(refused, DataError)
    assert "this is no FOLDER=WEIGHT" in refused.cause


def test_a_blend_is_not_run_where_a_log_has_to_vouch(
    tiny_base: Path, released: dict[str, Path], world: Any, tmp_path: Path
) -> None:
    """Its parts can be: then the blend says so."""
    out, policy = tmp_path / "out", read_policy(world.folder / "policy")
    with pytest.raises(ProofError, match="no passport"):
        blend(out, tiny_base, shares(released, *HALVES), policy=policy)
    world.publish()
    vouched = next(path.parent for path in world.folder.rglob(PASSPORT_FILE))
    note, _ = blend(out, tiny_base, [Share(folder=vouched, weight=1.0)], policy=policy)
    assert note.verified
    with pytest.raises(ProofError, match="is a blend, which no log vouches for"):
        load_adapter(out, EdgeBase.open(tiny_base), policy)


def test_a_blend_is_checked_as_a_release_is(
    tiny_base: Path, released: dict[str, Path], tmp_path: Path
) -> None:
    out, base = tmp_path / "out", EdgeBase.open(tiny_base)
    blend(out, tiny_base, shares(released, *HALVES))
    document = json.loads((out / BLEND_FILE).read_text())

    def rewritten(**fields: Any) -> None:
        (out / BLEND_FILE).write_text(json.dumps(document | fields))

    for fields, said in (
        ({"base_fingerprint": "0" * 64}, "belongs to base"),
        ({"labels": ["light", "music"]}, "the head has 3 labels"),
        ({"labels": []}, "task classification has labels"),
        ({"parts": []}, "parts"),
        ({"more": 1}, "more"),
        ({"format": 2}, "format"),
        ({"files": {EDGE_FILE: "0" * 64}}, "damaged"),
        ({"files": {EDGE_FILE: "0" * 64, "x": "0" * 64}}, "one file"),
    ):
        rewritten(**fields)
        with pytest.raises(ArtefactError) as refused:
            load_adapter(out, base)
        assert said in refused.value.cause, fields
    rewritten()
    load_adapter(out, base)
    with pytest.raises(ArtefactError, match="a release is needed here"):
        read_note(out)
    (out / RELEASE_FILE).write_bytes((released["a"] / RELEASE_FILE).read_bytes())
    assert not is_blend(out)  # what a release says counts, and this is another file
    with pytest.raises(ArtefactError, match="damaged"):
        load_adapter(out, base)
    with pytest.raises(ArtefactError, match=r"blend\.json cannot be read"):
        read_blend(tmp_path)
    with pytest.raises(ArtefactError, match="nonsense"):
        parse_blend("{", source="nonsense")


def test_texts_are_written_under_a_blend(tmp_path: Path) -> None:
    base = write_tiny_decoder(tmp_path / "base")
    one, two = (released_text(tmp_path / str(n), base, lora(n)) for n in (1, 2))
    out = tmp_path / "out"
    assert (
        edge("blend", out, "--base", base, f"--adapter={one}=0.5", f"--adapter={two}=2").exit_code
        == 0
    )
    said = edge("generate", "--base", base, "--adapter", out, "--max-tokens", "4", "hello")
    assert said.exit_code == 0
    assert "0.5 × tests round 1 + 2 × tests round 1: it is no release" in said.stderr
    adapter = load_decoder_adapter(out, DecoderBase.open(base))
    assert adapter.values.keys() == read_tensors(out / EDGE_FILE).keys()
    (out / EDGE_FILE).write_bytes((out / EDGE_FILE).read_bytes() + b"\0")
    with pytest.raises(ArtefactError, match="is damaged"):
        load_decoder_adapter(out, DecoderBase.open(base))
    overwritten(one, {"model.other.lora_A": np.ones((2, 2), np.float32)})
    with pytest.raises(ArtefactError, match=r"no slot model\.other"):
        blend(tmp_path / "more", base, [Share(folder=one, weight=1.0)])


def test_an_adapter_that_sorts_is_none_of_a_base_that_writes(
    released: dict[str, Path], tmp_path: Path
) -> None:
    base = write_tiny_decoder(tmp_path / "base")
    folder = shutil.copytree(released["a"], tmp_path / "a")
    changed_note(folder, base_fingerprint=DecoderBase.open(base).manifest.fingerprint)
    with pytest.raises(ArtefactError, match="the base writes text"):
        blend(tmp_path / "out", base, [Share(folder=folder, weight=1.0)])
