"""The folder of a decoder: what is in it, what it is checked for, and that it appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from base_model.decoder import build as building
from base_model.decoder import products
from base_model.decoder.build import build_decoder
from base_model.decoder.check import open_graph
from base_model.decoder.families import shape_of
from base_model.decoder.plain import plain_run
from base_model.decoder.source import CodedWeight, DecoderSource
from base_model.decoder.sources import decoder_source
from base_model.slot_check import verify_slots
from base_model.verify import verify_base
from protocol.codes import dequantise, quantise
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import ArtefactError, PlanError
from protocol.forms import DOWN, SOFT_PROMPT, UP
from tests.unit.base_model.decoder.models import (
    CHAT,
    Graph,
    apart,
    float_weights,
    oracle,
    stored_of,
    torch_greedy,
    write_decoder,
)

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
CODED = 5e-2  # what 8 bits of the embeddings change
PROMPT = [1, 5, 9, 13, 22, 40, 7, 33, 21, 60, 3, 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("source") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    out = folder.parent / "base"
    build_decoder(decoder_source(str(folder)), bits=4, out=out)
    return out


def manifest_of(base: Path) -> DecoderManifest:
    manifest = verify_base(base)
    assert isinstance(manifest, DecoderManifest)
    return manifest


def test_a_base_is_verified_and_says_what_it_is(base: Path) -> None:
    manifest = manifest_of(base)
    verify_slots(base, manifest)
    assert (manifest.task, manifest.family, manifest.source) == ("causal-lm", "llama", "tied")
    assert (manifest.bits, manifest.embedding_bits, manifest.affine) == (4, 8, False)
    assert (manifest.tied, manifest.begin, manifest.ends) == (True, 1, [2])
    assert (base / "chat_template.jinja").read_text() == CHAT
    assert len(manifest.linears) == 14
    factors = {linear.path + end for linear in manifest.linears for end in (DOWN, UP)}
    assert manifest.graph.slot_names == {SOFT_PROMPT} | factors
    assert "lm_head.qweight" not in manifest.tensors  # tied ones are stored once
    assert manifest.tensors["model.embed_tokens.qweight"].shape == [manifest.vocab_size, 64]
    assert {path.stat().st_mode & 0o777 for path in base.iterdir()} == {0o644}


def test_the_released_graph_is_near(folder: Path, base: Path) -> None:
    source, shape = decoder_source(str(folder)), manifest_of(base)
    stored = stored_of(shape_of(source.config), source, bits=4, embedding_bits=8)
    model = oracle(folder, float_weights(shape_of(source.config), stored))
    tokens, reference = torch_greedy(model, PROMPT, 64)
    graph = Graph(open_graph(base / shape.graph.file))
    seen = graph.every([*PROMPT, *tokens])[len(PROMPT) - 1 : -1]
    assert max(map(apart, reference, seen)) < 1e-4
    assert seen.argmax(1).tolist() == tokens


def test_the_tensors_in_the_file_are_what_the_graph_computes_with(base: Path) -> None:
    import onnx

    tensors = load_file(base / "weights.safetensors")
    graph = onnx.load(str(base / "graph.onnx")).graph
    data = {tensor.name: tensor.raw_data for tensor in graph.initializer}
    used = set()
    for name in data:
        path, _, end = name.rpartition(".")
        parent, _, module = path.rpartition(".")
        parts = [f"{parent}.{part}.{end}" for part in JOINED.get(module, (module,))]
        if parts[0] in tensors:
            assert b"".join(tensors[part].tobytes() for part in parts) == data[name], name
            used.update(parts)
    assert used == set(tensors)


def levels_of(base: Path) -> dict[str, int]:
    """Accuracy levels of products, by their matrices."""
    import onnx

    return {
        node.input[1].removesuffix(".qweight"): next(
            a.i for a in node.attribute if a.name == "accuracy_level"
        )
        for node in onnx.load(str(base / "graph.onnx")).graph.node
        if node.op_type == "MatMulNBits"
    }


def test_only_an_output_layer_in_eight_bits_rounds_its_inputs(base: Path) -> None:
    levels = levels_of(base)
    assert levels.pop("model.embed_tokens") == 4
    assert set(levels.values()) == {0}
    assert len(levels) == 8


def test_linears_that_round_their_inputs_are_asked_for_and_make_the_same_base(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    build_decoder(decoder_source(str(folder)), bits=4, activation_bits=8, out=tmp_path / "rounded")
    assert set(levels_of(tmp_path / "rounded").values()) == {4}
    exact, rounded = manifest_of(base), manifest_of(tmp_path / "rounded")
    assert (exact.graph.accuracy_level, rounded.graph.accuracy_level) == (0, 4)
    assert rounded.fingerprint == exact.fingerprint
    expected, logits = (
        Graph(open_graph(path / "graph.onnx")).every(PROMPT)
        for path in (base, tmp_path / "rounded")
    )
    assert 1e-4 < apart(expected, logits) < 5e-2


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_wide_products_in_pieces_are_the_same_product(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "WIDE", 64)
    monkeypatch.setattr(products, "PIECE", 48)
    folder = write_decoder(tmp_path / "model", family)
    source = coded(decoder_source(str(folder)), 4, offsets=True)
    build_decoder(source, bits=4, out=tmp_path / "base")
    pieces = [path for path in levels_of(tmp_path / "base") if "mlp.down_proj" in path]
    assert len(pieces) > manifest_of(tmp_path / "base").layers
    stored = stored_of(shape_of(source.config), source, bits=4, embedding_bits=8)
    model = oracle(folder, float_weights(shape_of(source.config), stored))
    expected, reference = torch_greedy(model, PROMPT, 64)
    tokens, seen = Graph(open_graph(tmp_path / "base" / "graph.onnx")).greedy(PROMPT, 64)
    assert tokens == expected
    assert max(map(apart, reference, seen)) < 1e-4


def test_a_text_longer_than_the_context_is_an_error(base: Path) -> None:
    graph = Graph(open_graph(base / "graph.onnx"))
    graph.run([[5] * 96], graph.empty())
    with pytest.raises(Exception, match="cos_cache"):
        graph.run([[5] * 97], graph.empty())


def test_the_same_source_gives_the_same_bytes(folder: Path, base: Path, tmp_path: Path) -> None:
    build_decoder(decoder_source(str(folder)), bits=4, out=tmp_path / "again")
    for path in base.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("bits", "embedding_bits"), [(8, 8), (4, 4), (32, 32), (16, 16), (4, 16), (32, 8)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_other_bits(tmp_path: Path, bits: int, embedding_bits: int, tied: bool) -> None:
    folder = write_decoder(tmp_path / "source", tie_word_embeddings=tied)
    out = tmp_path / "base"
    build_decoder(
        decoder_source(str(folder)), bits=bits, embedding_bits=embedding_bits, out=out, one_file=0
    )
    manifest = manifest_of(out)
    verify_slots(out, manifest)
    assert manifest.graph_files() == ["graph.onnx", "graph.data"]
    assert manifest.tied is tied
    logits = Graph(open_graph(out / "graph.onnx")).every(PROMPT)
    model = AutoModelForCausalLM.from_pretrained(folder)
    bound = {4: 0.6, 8: 0.1, 16: 3e-3, 32: CODED if embedding_bits == 8 else 1e-4}[bits]
    assert apart(model(torch.tensor([PROMPT])).logits[0].detach().numpy(), logits) < bound


def coded(source: DecoderSource, bits: int, *, offsets: bool) -> DecoderSource:
    """The source as a GGUF file would hold it: linears in codes of its own."""
    rng, tensors = np.random.default_rng(2), dict(source.tensors)
    for linear in shape_of(source.config).linears():
        name = f"{linear.path}.weight"
        weight = tensors[name]
        assert not isinstance(weight, CodedWeight)
        codes, scales = quantise(weight, bits=bits, block=32)
        shift = rng.normal(0, 0.05, scales.shape).astype(np.float32) if offsets else None
        tensors[name] = CodedWeight(bits=bits, codes=codes, scales=scales, offsets=shift)
    return replace(source, tensors=tensors, reasons=("it was so",))


def test_codes_of_the_source_with_offsets_are_taken_over(folder: Path, tmp_path: Path) -> None:
    source = coded(decoder_source(str(folder)), 4, offsets=True)
    reasons: list[str] = []
    build_decoder(source, bits=4, embedding_bits=32, out=tmp_path / "base", explain=reasons.append)
    assert reasons == ["it was so"]
    assert manifest_of(tmp_path / "base").affine
    tensors = load_file(tmp_path / "base" / "weights.safetensors")
    name = "model.layers.1.mlp.down_proj"
    weight = source.tensors[f"{name}.weight"]
    assert isinstance(weight, CodedWeight)
    assert tensors[f"{name}.qweight"].tobytes() == weight.codes.tobytes()
    assert np.array_equal(tensors[f"{name}.offsets"], weight.offsets)
    floats = {
        path: dequantise(value.codes, value.scales, bits=4, in_features=value.scales.shape[1] * 32)
        + np.repeat(value.offsets, 32, 1)
        if isinstance(value, CodedWeight)
        else value
        for path, value in source.tensors.items()
    }
    expected, reference = torch_greedy(oracle(folder, floats), PROMPT, 16)
    tokens, seen = Graph(open_graph(tmp_path / "base" / "graph.onnx")).greedy(PROMPT, 16)
    assert tokens == expected
    assert max(map(apart, reference, seen)) < 1e-4


def test_codes_of_other_bits_are_quantised_again_and_it_is_said(
    folder: Path, tmp_path: Path
) -> None:
    reasons: list[str] = []
    source = coded(decoder_source(str(folder)), 8, offsets=False)
    build_decoder(source, bits=4, out=tmp_path / "base", explain=reasons.append)
    assert "14 matrices were quantised a second time" in reasons[1]
    assert manifest_of(tmp_path / "base").bits == 4


def test_without_slots_nothing_can_be_filled(folder: Path, tmp_path: Path) -> None:
    build_decoder(decoder_source(str(folder)), bits=4, out=tmp_path / "base", slots=False)
    assert manifest_of(tmp_path / "base").graph.slots == []


@pytest.mark.parametrize("context", [2, 5])
def test_a_context_may_be_shorter_than_the_check(
    folder: Path, tmp_path: Path, context: int
) -> None:
    build_decoder(decoder_source(str(folder)), bits=4, out=tmp_path / "base", context=context)
    assert manifest_of(tmp_path / "base").max_positions == context


def test_a_context_may_be_shorter_than_the_models(folder: Path, tmp_path: Path) -> None:
    reasons: list[str] = []
    build_decoder(
        decoder_source(str(folder)),
        bits=4,
        out=tmp_path / "base",
        context=32,
        explain=reasons.append,
    )
    assert manifest_of(tmp_path / "base").max_positions == 32
    assert reasons == ["32 of 96 positions, to keep the tables small"]


def damaged(source: DecoderSource, change: Callable[[dict[str, Any]], Any]) -> DecoderSource:
    tensors = dict(source.tensors)
    change(tensors)
    return replace(source, tensors=tensors)


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda t: t.pop(Q), "q_proj.weight is not in the checkpoint"),
        (lambda t: t.update({Q: t[Q][:8]}), r"shape \(8, 64\), by the config it is \(64, 64\)"),
        (lambda t: t.update({"model.extra.weight": t[Q]}), "has no place for it"),
        (lambda t: t.update({"model.norm.weight": t[Q]}), "no vector of 64"),
        (lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}), "differs"),
        (
            lambda t: t.update(
                {
                    Q: CodedWeight(
                        bits=4, codes=np.zeros((64, 3, 16), np.uint8), scales=np.ones((64, 3), "f4")
                    )
                }
            ),
            "codes of another matrix",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_leave_nothing_behind(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], cause: str
) -> None:
    source = damaged(decoder_source(str(folder)), change)
    with pytest.raises(ArtefactError, match=cause):
        build_decoder(source, bits=4, out=tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [{"bits": 5}, {"bits": 4, "embedding_bits": 3}, {"bits": 4, "context": 0}]
)
def test_what_is_not_offered(folder: Path, tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="not offered"):
        build_decoder(decoder_source(str(folder)), out=tmp_path / "base", **arguments)


def test_a_token_beyond_the_embeddings_is_refused(folder: Path, tmp_path: Path) -> None:
    source = replace(decoder_source(str(folder)), ends=(2, 999))
    with pytest.raises(ArtefactError, match="the token 999"):
        build_decoder(source, bits=4, out=tmp_path / "base")


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, ropes=tuple(replace(rope, theta=9_000.0) for rope in s.ropes)),
        lambda s: replace(s, attention_scale=s.attention_scale * 1.02),
        lambda s: replace(s, activation="gelu"),
        lambda s: replace(s, windows=(4, 0)),
        lambda s: replace(s, epsilon=1e-2),
        lambda s: replace(s, logits_scale=1.1),
    ],
)
def test_a_graph_that_says_something_else_is_no_base(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    generating = building.generating_graph

    def otherwise(shape: Any, *arguments: Any, **settings: Any) -> Any:
        return generating(change(shape), *arguments, **settings)

    monkeypatch.setattr(building, "generating_graph", otherwise)
    with pytest.raises(ArtefactError, match="differs from its weights"):
        build_decoder(decoder_source(str(folder)), bits=4, out=tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_the_plain_computation_is_transformers(folder: Path) -> None:
    source = decoder_source(str(folder))
    shape = shape_of(source.config)
    stored = stored_of(shape, source, bits=32, embedding_bits=32)
    logits = plain_run(shape, stored, np.array(PROMPT)).logits
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert apart(model(torch.tensor([PROMPT])).logits[0].detach().numpy(), logits) < 1e-5


@pytest.mark.parametrize("context", [2, 7])
def test_a_context_may_be_shorter_than_what_a_graph_is_tried_on(
    folder: Path, tmp_path: Path, context: int
) -> None:
    out = tmp_path / "base"
    manifest = build_decoder(decoder_source(str(folder)), bits=4, out=out, context=context)
    assert manifest.max_positions == context


def test_codes_of_the_source_need_no_text(folder: Path, tmp_path: Path) -> None:
    reasons: list[str] = []
    source = coded(decoder_source(str(folder)), 4, offsets=True)
    build_decoder(source, bits=4, out=tmp_path / "b", calibration="a", explain=reasons.append)
    assert any("no text is needed" in reason for reason in reasons)
