"""Programs that keep less give the same numbers, and keep no more than they say. (docs/adr/0058)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from base_model.decoder.families import FAMILIES, shape_of
from base_model.decoder.shape import DecoderShape
from base_model.decoder.sources import decoder_source
from base_model.programs.build import GRADIENT, LOSS
from base_model.programs.footprint import Keep
from base_model.programs.recompute import AGAIN, Forward, is_backward, recomputing
from base_model.programs.session import open_session
from base_model.programs.token_loss import TARGET
from tests.unit.base_model.decoder.models import stored_of, write_decoder
from tests.unit.base_model.decoder.test_programs import UNTRAINED, adapter_of, program_of, texts

LESS = [Keep.PRODUCTS, Keep.STREAMS]


def decoder(folder: Path, family: str) -> tuple[DecoderShape, Any]:
    source = decoder_source(str(write_decoder(folder / "model", family)))
    shape = shape_of(source.config)
    return shape, stored_of(shape, source, bits=4, embedding_bits=8)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - UNTRAINED))
def test_every_familys_gradients_are_the_same_numbers(family: str, tmp_path: Path) -> None:
    shape, stored = decoder(tmp_path, family)
    adapter = adapter_of(shape)
    graph = program_of(shape, stored, adapter).SerializeToString()
    ids, targets = texts(shape.vocabulary)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), TARGET: targets} | adapter
    names = [LOSS, *(GRADIENT + name for name in adapter)]

    def numbers(keep: Keep) -> list[np.ndarray]:
        lesser = recomputing(graph, keep, adapter=adapter)
        session = open_session(lesser, Path(), threads=1, as_written=True)
        return list(session.run(names, feeds))

    whole = numbers(Keep.ALL)
    for keep in LESS:
        for name, expected, value in zip(names, whole, numbers(keep), strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=f"{keep}: {name}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderShape, bytes, list[str]]:
    shape, stored = decoder(tmp_path_factory.mktemp("llama"), "llama")
    adapter = adapter_of(shape)
    return shape, program_of(shape, stored, adapter).SerializeToString(), list(adapter)


@pytest.mark.parametrize("keep", LESS)
def test_nothing_is_computed_again_before_a_gradient_asks_for_it(
    keep: Keep, llama: tuple[DecoderShape, bytes, list[str]]
) -> None:
    """Whatever order a runtime takes: it depends on what counts, so on the loss."""
    _, graph, adapter = llama
    after_loss, again = {TARGET}, 0
    for node in onnx.load_model_from_string(recomputing(graph, keep, adapter=adapter)).graph.node:
        if after_loss & set(node.input):
            after_loss |= set(node.output)
        if node.output[0].startswith(AGAIN) and node.op_type not in ("Shape", "Size"):
            again += 1
            assert node.output[0] in after_loss, node
    assert again


def test_of_a_layer_two_streams_are_kept(llama: tuple[DecoderShape, bytes, list[str]]) -> None:
    """What the backward half reads of the forward half, but for what the first layer's input alone gives."""
    shape, graph, adapter = llama
    model = onnx.load_model_from_string(recomputing(graph, Keep.STREAMS, adapter=adapter))
    forward = Forward(onnx.load_model_from_string(graph).graph, frozenset(adapter))
    read = {
        name
        for node in model.graph.node
        if is_backward(node) or node.output[0].startswith(AGAIN)
        for name in node.input
        if name in forward.between and not forward.first(forward.between[name])
    }
    assert read <= forward.narrow
    streams = {name for name in read if name.endswith("/stream")}
    assert len(streams) == 2 * shape.layers  # behind each block; the last is the last norm's


def test_what_keeps_all_is_the_program_itself(llama: tuple[DecoderShape, bytes, list[str]]) -> None:
    _, graph, adapter = llama
    assert recomputing(graph, Keep.ALL, adapter=adapter) is graph


def test_the_same_program_gives_the_same_bytes(
    llama: tuple[DecoderShape, bytes, list[str]],
) -> None:
    _, graph, adapter = llama
    first, second = (recomputing(graph, Keep.STREAMS, adapter=adapter) for _ in range(2))
    assert first == second
