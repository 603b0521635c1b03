"""A decoder's folder is opened when everything in it fits, and refused by name otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from base_model.decoder.texts import verify_tokenizer
from edge_runtime.decoder.base import DecoderBase, read_decoder_manifest
from edge_runtime.decoder.cache import Cache
from protocol.errors import ArtefactError, DataError
from protocol.manifest import Slot
from tests.tiny_decoder import CONTEXT, SPECIAL, TEMPLATE, tiny_graph, write_manifest


@pytest.fixture
def copy(decoder_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(decoder_folder, tmp_path / "copy")


def rewritten(folder: Path, change: Callable[[onnx.ModelProto], None], **manifest: Any) -> Path:
    """The folder with another graph, and a manifest that lists it."""
    model = tiny_graph()
    change(model)
    onnx.save(model, folder / "graph.onnx")
    write_manifest(folder, **manifest)
    return folder


def test_a_base_is_opened(decoder: DecoderBase) -> None:
    assert decoder.template == TEMPLATE
    assert decoder.in_place
    assert decoder.encode("ab c") == [1, *decoder.encode("ab c", special=False)]
    assert decoder.tokenizer.decode(decoder.encode("ab c€")) == "ab c€"
    assert decoder.tokenizer.id_to_token(3) == SPECIAL[3]
    with pytest.raises(DataError, match="Unicode"):
        decoder.encode("\ud800")


@pytest.mark.parametrize("name", ["graph.onnx", "tokenizer.json", "chat_template.jinja"])
def test_a_file_that_is_damaged_or_missing_is_named(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-2] + b"xx")
    with pytest.raises(ArtefactError, match=f"{name} is damaged"):
        DecoderBase.open(copy)
    (copy / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing"):
        DecoderBase.open(copy)


def test_a_folder_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not a base"):
        DecoderBase.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 3, "task": "sequence-classification"}')
    with pytest.raises(ArtefactError, match="not a base that writes text"):
        DecoderBase.open(tmp_path)


def other_vocabulary(model: onnx.ModelProto) -> None:
    model.CopyFrom(tiny_graph(vocabulary=77))


def fixed_length(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4


def no_mask(model: onnx.ModelProto) -> None:
    model.graph.input[1].name = "mask"
    for node in model.graph.node:
        node.input[:] = ["mask" if name == "attention_mask" else name for name in node.input]


def another_input(model: onnx.ModelProto) -> None:
    extra = helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["rows", "new"])
    model.graph.input.append(extra)
    model.graph.node.append(helper.make_node("Identity", ["position_ids"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.INT64, None))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_vocabulary, "logits"),
        (fixed_length, "input_ids"),
        (no_mask, "attention_mask"),
        (another_input, "position_ids"),
    ],
)
def test_a_graph_of_another_contract_is_refused(
    copy: Path, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    with pytest.raises(ArtefactError, match=f"graph is not the manifest's.*{said}"):
        DecoderBase.open(rewritten(copy, change))


@pytest.mark.parametrize(
    ("other", "said"),
    [({"layers": 3}, "past_key_values.2.key"), ({"head_size": 8}, "past_key_values.0.key")],
)
def test_a_manifest_of_another_graph_is_refused(
    copy: Path, other: dict[str, int], said: str
) -> None:
    write_manifest(copy, **other)
    with pytest.raises(ArtefactError, match=f"first difference: {said}"):
        DecoderBase.open(copy)


def test_slots_that_are_not_the_manifests_are_refused(copy: Path, decoder: DecoderBase) -> None:
    graph = decoder.manifest.graph
    more = [*graph.slots, Slot(name="model.more", dtype="float32", shape=[3])]
    write_manifest(copy, graph=graph.model_copy(update={"slots": more}))
    with pytest.raises(ArtefactError, match=r"slots are not the manifest's.*model\.more"):
        DecoderBase.open(copy)


def test_a_base_without_a_template_opens(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    write_manifest(copy)
    assert DecoderBase.open(copy).template is None


def counts_by_its_cache(model: onnx.ModelProto) -> None:
    """The length is that of the old cache and the new tokens, not what the mask counts."""
    nodes = [
        helper.make_node("Shape", ["past_key_values.0.key"], ["p"], start=2, end=3),
        helper.make_node("Shape", ["input_ids"], ["n"], start=1, end=2),
        helper.make_node("Add", ["p", "n"], ["whole64"]),
        helper.make_node("Cast", ["whole64"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Squeeze", ["whole"], ["length"]),
        helper.make_node("Sub", ["length", "one"], ["seq"]),
        helper.make_node("Unsqueeze", ["seq", "zero"], ["seqlens_by_cache"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    model.graph.initializer.append(zero)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[5], node.input[6] = "seqlens_by_cache", "length"
    kept = [n for n in model.graph.node if n.output[0] not in {"length", "seqlens", "length32"}]
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])


def test_a_graph_that_cannot_write_in_place_gives_the_same(
    copy: Path, decoder: DecoderBase, capfd: pytest.CaptureFixture[str]
) -> None:
    other = DecoderBase.open(rewritten(copy, counts_by_its_cache))
    assert not other.in_place
    assert capfd.readouterr().err == ""  # that it was tried is nobody's error
    tokens = list(range(4, 4 + CONTEXT - 1))
    mine, theirs = Cache(decoder), Cache(other)
    for cut in (tokens[:9], tokens[:20], tokens, tokens[:7], [*tokens[:5], 9, 8]):
        left, right = mine.follow(cut), theirs.follow(cut)
        assert abs(left - right).max() < 1e-4
        assert mine.tokens == theirs.tokens == tuple(cut)


@pytest.mark.parametrize("text", ["{}", "\xff", '{"a": 1'])
def test_a_tokenizer_that_cannot_be_used_is_found_by_the_publisher_too(
    copy: Path, text: str
) -> None:
    (copy / "tokenizer.json").write_bytes(text.encode("latin-1"))
    write_manifest(copy)
    with pytest.raises(ArtefactError, match=r"tokenizer\.json"):
        verify_tokenizer(copy, read_decoder_manifest(copy))
