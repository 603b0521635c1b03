"""Loss and gradients of decoders by ONNX Runtime, against transformers and peft on the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from base_model.decoder.families import FAMILIES, shape_of
from base_model.decoder.shape import DecoderShape
from base_model.decoder.sources import decoder_source
from base_model.programs.build import GRADIENT, LOSS
from base_model.programs.language import language_graph
from base_model.programs.session import open_session
from base_model.programs.tape import Symbol
from base_model.programs.token_loss import TARGET
from protocol.errors import ArtefactError
from protocol.forms import DOWN, PREFIX, SOFT_PROMPT, UP
from tests.unit.base_model.decoder.models import (
    Cache,
    Graph,
    built_graph,
    float_weights,
    oracle,
    prefix_cache,
    stored_of,
    write_decoder,
)

RANK, ALPHA = 3, 6.0
BOUND = (
    2e-5  # of a gradient's largest number: what 32 bits leave of random weights, in torch as here
)
A, B = ".lora_A", ".lora_B"
UNTRAINED = {"phi3", "gemma2"}  # one matrix for three projections; capped logits
Arrays = dict[str, np.ndarray]


def forms(tensors: Mapping[str, Symbol]) -> Mapping[str, Symbol]:
    """LoRA's; a prompt and a prefix are slots themselves."""
    slots = {}
    for name, value in tensors.items():
        if name in (SOFT_PROMPT, PREFIX):
            slots[name] = value
        elif name.endswith(A):
            slots[name.removesuffix(A) + DOWN] = value.T
        else:
            slots[name.removesuffix(B) + UP] = value.T * (ALPHA / RANK)
    return slots


def adapter_of(shape: DecoderShape) -> Arrays:
    """Random factors beside every linear."""
    rng = np.random.default_rng(1)
    tensors = {}
    for linear in shape.linears():
        for end, size in ((A, (RANK, linear.in_features)), (B, (linear.out_features, RANK))):
            tensors[linear.path + end] = rng.normal(0, 0.05, size).astype(np.float32)
    return tensors


def by_torch(
    folder: Path, floats: Mapping[str, Any], adapter: Arrays, ids: np.ndarray, targets: np.ndarray
) -> tuple[float, Arrays]:
    """Summed loss over counted positions, and gradients by name, in 64 bits: what rounds is ours."""
    targeted = sorted({name.rpartition(".")[0] for name in adapter})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targeted, task_type="CAUSAL_LM")
    model = get_peft_model(oracle(folder, floats), config).eval().double()
    leaves = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = key.removeprefix("base_model.model.").removesuffix(".default.weight")
            parameter.data.copy_(torch.from_numpy(adapter[name]))
            leaves[name] = parameter
    logits = model(input_ids=torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.from_numpy(targets).reshape(-1), reduction="sum"
    )
    loss.backward()
    return loss.item(), {name: leaf.grad.numpy() for name, leaf in leaves.items()}


def prompt_of(shape: DecoderShape) -> Arrays:
    """Rows unlike any word's."""
    rng = np.random.default_rng(3)
    return {SOFT_PROMPT: rng.normal(0, 0.5, (5, shape.hidden)).astype(np.float32)}


def prefix_of(shape: DecoderShape) -> Arrays:
    """Keys and values of every layer."""
    rng, size = np.random.default_rng(4), (5, shape.layers * 2 * shape.key_size)
    return {PREFIX: rng.normal(0, 0.7, size).astype(np.float32)}


def everything_of(shape: DecoderShape) -> Arrays:
    """Low rank, a prompt and a prefix at once."""
    return adapter_of(shape) | prompt_of(shape) | prefix_of(shape)


def by_peft(
    folder: Path, floats: Mapping[str, Any], adapter: Arrays, ids: np.ndarray, targets: np.ndarray
) -> tuple[float, Arrays]:
    """Of a soft prompt or a prefix, which peft has in one table, as :func:`by_torch`."""
    ((name, table),) = adapter.items()
    kind = PromptTuningConfig if name == SOFT_PROMPT else PrefixTuningConfig
    config = kind(num_virtual_tokens=len(table), task_type="CAUSAL_LM")
    model = get_peft_model(oracle(folder, floats).double(), config).eval().double()
    leaf = model.prompt_encoder["default"].embedding.weight
    leaf.data.copy_(torch.from_numpy(table))
    mask = torch.ones(ids.shape, dtype=torch.int64)
    logits = model(input_ids=torch.from_numpy(ids), attention_mask=mask).logits
    logits = logits[:, -ids.shape[1] :]
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.from_numpy(targets).reshape(-1), reduction="sum"
    )
    loss.backward()
    return loss.item(), {name: leaf.grad.numpy()}


def followed(graph: Graph, begin: list[int], text: list[int], cache: Cache) -> np.ndarray:
    """The generating graph's logits behind each token of a text, read one by one: (tokens, vocabulary)."""
    _, cache = graph.run([begin], cache)
    seen = []
    for token in text:
        logits, cache = graph.run([[token]], cache)
        seen.append(logits[0, -1].astype(np.float64))
    return np.stack(seen)


def by_onnx(
    model: onnx.ModelProto, adapter: Arrays, ids: np.ndarray, targets: np.ndarray
) -> tuple[float, Arrays]:
    session = open_session(model.SerializeToString(), Path(), threads=1)
    rows = {"input_ids": ids, "attention_mask": np.ones_like(ids), TARGET: targets}
    loss, *gradients = session.run([LOSS, *(GRADIENT + name for name in adapter)], rows | adapter)
    return float(loss), dict(zip(adapter, gradients, strict=True))


def texts(vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (3, 12), longer than a window, and the next tokens, of which some do not count."""
    rng = np.random.default_rng(2)
    ids = rng.integers(3, vocabulary, (3, 12))
    targets = np.concatenate([ids[:, 1:], np.full((3, 1), -100)], 1)
    targets[0, :5] = targets[2, 7:] = -100
    return ids, targets


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    def build(family: str, bits: int, embedding_bits: int, **settings: Any) -> Any:
        folder = write_decoder(tmp_path_factory.mktemp(family) / "model", family, **settings)
        source = decoder_source(str(folder))
        shape = shape_of(source.config)
        stored = stored_of(shape, source, bits=bits, embedding_bits=embedding_bits)
        return folder, shape, stored

    return build


def program_of(shape: DecoderShape, stored: Any, adapter: Arrays) -> onnx.ModelProto:
    return language_graph(
        shape,
        stored,
        tensors={name: value.ndim for name, value in adapter.items()},
        trained=adapter,
        forms=forms,
    )


def verify_gradients(
    folder: Path,
    shape: DecoderShape,
    stored: Any,
    make: Callable[[DecoderShape], Arrays] = adapter_of,
    reference_of: Callable[..., tuple[float, Arrays]] = by_torch,
) -> None:
    adapter = make(shape)
    ids, targets = texts(shape.vocabulary)
    loss, gradients = by_onnx(program_of(shape, stored, adapter), adapter, ids, targets)
    expected, reference = reference_of(folder, float_weights(shape, stored), adapter, ids, targets)
    assert abs(loss - expected) <= 1e-5 * abs(expected)
    assert gradients.keys() == reference.keys()
    for name, gradient in reference.items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        assert np.abs(gradients[name] - gradient).max() <= BOUND * largest, name


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - UNTRAINED))
def test_gradients_of_every_family_are_autograds(family: str, built: Callable[..., Any]) -> None:
    verify_gradients(*built(family, 4, 8))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - UNTRAINED))
@pytest.mark.parametrize("make", [prompt_of, prefix_of])
def test_gradients_of_prompts_and_prefixes_are_autograds(
    family: str, make: Any, built: Callable[..., Any]
) -> None:
    verify_gradients(*built(family, 4, 8), make, by_peft)


@pytest.mark.parametrize(("bits", "embedding_bits"), [(8, 8), (16, 16), (32, 32), (4, 16)])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_at_every_width(
    bits: int, embedding_bits: int, tied: bool, built: Callable[..., Any]
) -> None:
    verify_gradients(*built("llama", bits, embedding_bits, tie_word_embeddings=tied))


@pytest.mark.parametrize("family", sorted(UNTRAINED))
def test_what_cannot_be_trained_is_refused_by_name(family: str, built: Callable[..., Any]) -> None:
    _, shape, stored = built(family, 4, 8)
    with pytest.raises(ArtefactError, match=f"a {family} cannot be trained here"):
        program_of(shape, stored, adapter_of(shape))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - UNTRAINED))
def test_a_loss_is_that_of_the_logits_that_a_device_has(
    family: str, built: Callable[..., Any], tmp_path: Path
) -> None:
    """Of low rank, a prompt and a prefix at once, which peft has no model for."""
    folder, shape, stored = built(family, 4, 8)
    adapter, (ids, targets) = everything_of(shape), texts(shape.vocabulary)
    loss, _ = by_onnx(program_of(shape, stored, adapter), adapter, ids, targets)
    graph, _ = built_graph(decoder_source(str(folder)), tmp_path / "graph")
    graph.filled = {SOFT_PROMPT: adapter[SOFT_PROMPT]}
    graph.filled |= {name: value.T for name, value in adapter.items() if name.endswith(A)}
    for name, value in adapter.items():
        if name.endswith(B):
            graph.filled[name] = value.T * np.float32(ALPHA / RANK)
    own = [shape.vocabulary + row for row in range(len(adapter[SOFT_PROMPT]))]
    expected = 0.0
    for text, wanted in zip(ids.tolist(), targets, strict=True):
        logits = followed(graph, own, text, prefix_cache(adapter[PREFIX], shape))
        counted = np.flatnonzero(wanted >= 0)
        totals = np.logaddexp.reduce(logits[counted], 1)
        expected += float((totals - logits[counted, wanted[counted]]).sum())
    assert abs(loss - expected) <= 1e-5 * abs(expected)


@pytest.mark.parametrize("make", [prompt_of, prefix_of])
def test_a_prompt_of_no_rows_is_none(make: Any, built: Callable[..., Any]) -> None:
    _, shape, stored = built("llama", 4, 8)
    lora, (ids, targets) = adapter_of(shape), texts(shape.vocabulary)
    expected, reference = by_onnx(program_of(shape, stored, lora), lora, ids, targets)
    adapter = lora | {name: value[:0] for name, value in make(shape).items()}
    loss, gradients = by_onnx(program_of(shape, stored, adapter), adapter, ids, targets)
    assert loss == expected
    for name, gradient in reference.items():
        np.testing.assert_array_equal(gradients[name], gradient)


@pytest.mark.parametrize("make", [adapter_of, everything_of])
def test_padding_behind_a_text_changes_nothing(make: Any, built: Callable[..., Any]) -> None:
    _, shape, stored = built("llama", 4, 8)
    adapter = make(shape)
    model = program_of(shape, stored, adapter)
    ids, targets = texts(shape.vocabulary)
    loss, gradients = by_onnx(model, adapter, ids, targets)
    wide = np.pad(ids, ((0, 0), (0, 4)), constant_values=2)
    padded = np.pad(targets, ((0, 0), (0, 4)), constant_values=-100)
    same, others = by_onnx(model, adapter, wide, padded)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, others[name], rtol=0, atol=1e-5 * np.abs(gradient).max()
        )


def test_the_same_decoder_gives_the_same_bytes(built: Callable[..., Any]) -> None:
    _, shape, stored = built("llama", 4, 8)
    first, second = (program_of(shape, stored, adapter_of(shape)) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
