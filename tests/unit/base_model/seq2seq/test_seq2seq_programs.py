"""Loss and gradients of encoders with a decoder by ONNX Runtime, against transformers and peft in 64 bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from base_model.decoder.opened import opened_tensors
from base_model.programs.build import GRADIENT, LOSS
from base_model.programs.checks import OPERATORS
from base_model.programs.frozen import SMALLEST, refer_to_weights
from base_model.programs.language import SCORES
from base_model.programs.seq2seq import seq2seq_graph, seq2seq_scoring_graph
from base_model.programs.session import open_session
from base_model.programs.token_loss import TARGET
from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.families import shape_of
from base_model.seq2seq.folder import seq2seq_source
from base_model.seq2seq.shape import Seq2SeqShape
from base_model.source_files import read_object
from base_model.weights_file import WEIGHTS
from tests.unit.base_model.decoder.models import float_weights, stored_of
from tests.unit.base_model.decoder.test_programs import ALPHA, BOUND, RANK, forms
from tests.unit.base_model.seq2seq.models import KINDS, oracle, write_model

Arrays = dict[str, np.ndarray]
Case = tuple[Path, Seq2SeqShape, Any]
A, B = ".lora_A", ".lora_B"


def adapter_of(shape: Seq2SeqShape) -> Arrays:
    """Random factors beside every linear."""
    rng, tensors = np.random.default_rng(1), {}
    for linear in shape.linears():
        for end, size in ((A, (RANK, linear.in_features)), (B, (linear.out_features, RANK))):
            tensors[linear.path + end] = rng.normal(0, 0.05, size).astype(np.float32)
    return tensors


def texts(vocabulary: int) -> Arrays:
    """Three rows, sources and targets of unequal length; of one the first targets do not count either."""
    rng = np.random.default_rng(2)
    ids, mask = rng.integers(3, vocabulary, (3, 12)), np.ones((3, 12), np.int64)
    targets = rng.integers(3, vocabulary, (3, 9))
    mask[1, 8:] = 0
    ids[1, 8:] = 0
    targets[0, 6:] = targets[2, :2] = -1
    return {"input_ids": ids, "attention_mask": mask, TARGET: targets}


def by_torch(case: Case, adapter: Arrays, rows: Arrays) -> tuple[float, np.ndarray, Arrays]:
    """Summed loss, losses by token (rows, tokens) and gradients by name."""
    folder, shape, stored = case
    targeted = sorted({name.rpartition(".")[0] for name in adapter})
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targeted, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(oracle(folder, float_weights(shape, stored)), config).eval().double()
    leaves = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = key.removeprefix("base_model.model.").removesuffix(".default.weight")
            parameter.data.copy_(torch.from_numpy(adapter[name]))
            leaves[name] = parameter
    ids, mask = (torch.from_numpy(rows[name]) for name in ("input_ids", "attention_mask"))
    labels = torch.from_numpy(np.where(rows[TARGET] < 0, -100, rows[TARGET]))
    logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none"
    )
    losses.sum().backward()
    gradients = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    return losses.sum().item(), losses.detach().reshape(labels.shape).numpy(), gradients


def by_onnx(model: onnx.ModelProto, adapter: Arrays, rows: Arrays) -> tuple[float, Arrays]:
    session = open_session(model.SerializeToString(), Path(), threads=1)
    loss, *gradients = session.run([LOSS, *(GRADIENT + name for name in adapter)], rows | adapter)
    return float(loss), dict(zip(adapter, gradients, strict=True))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    def build(kind: str, bits: int, embedding_bits: int, **settings: Any) -> Case:
        folder = write_model(tmp_path_factory.mktemp(kind) / "model", kind, **settings)
        source = seq2seq_source(str(folder))
        shape = shape_of(source.config)
        return folder, shape, stored_of(shape, source, bits=bits, embedding_bits=embedding_bits)

    return build


def program_of(case: Case, adapter: Arrays) -> onnx.ModelProto:
    return seq2seq_graph(*case[1:], tensors=dict.fromkeys(adapter, 2), trained=adapter, forms=forms)


def verify_gradients(case: Case) -> None:
    adapter, rows = adapter_of(case[1]), texts(case[1].vocabulary)
    loss, gradients = by_onnx(program_of(case, adapter), adapter, rows)
    expected, _, reference = by_torch(case, adapter, rows)
    assert abs(loss - expected) <= 1e-5 * abs(expected)
    assert gradients.keys() == reference.keys()
    for name, gradient in reference.items():
        largest = np.abs(gradient).max()
        assert largest > 0, name
        assert np.abs(gradients[name] - gradient).max() <= BOUND * largest, name


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradients_of_every_kind_are_autograds(kind: str, built: Callable[..., Case]) -> None:
    verify_gradients(built(kind, 4, 8))


@pytest.mark.parametrize(("bits", "embedding_bits"), [(8, 8), (16, 16), (32, 32)])
def test_gradients_at_every_width(
    bits: int, embedding_bits: int, built: Callable[..., Case]
) -> None:
    verify_gradients(built("t5", bits, embedding_bits))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_row_has_the_scores_of_its_counted_tokens(
    kind: str, built: Callable[..., Case]
) -> None:
    case = built(kind, 4, 8)
    adapter, rows = adapter_of(case[1]), texts(case[1].vocabulary)
    model = seq2seq_scoring_graph(*case[1:], tensors=dict.fromkeys(adapter, 2), forms=forms)
    session = open_session(model.SerializeToString(), Path(), threads=1)
    (scores,) = session.run([SCORES], rows | adapter)
    _, losses, _ = by_torch(case, adapter, rows)
    np.testing.assert_allclose(scores[:, 0], losses.sum(1), rtol=1e-5)
    assert scores[:, 1].tolist() == (rows[TARGET] >= 0).sum(1).tolist() == [6, 9, 7]


def test_padding_behind_either_text_changes_nothing(built: Callable[..., Case]) -> None:
    case = built("t5", 4, 8)
    adapter, rows = adapter_of(case[1]), texts(case[1].vocabulary)
    model = program_of(case, adapter)
    loss, gradients = by_onnx(model, adapter, rows)
    fill = {"input_ids": 7, "attention_mask": 0, TARGET: -1}
    wide = {
        name: np.pad(value, ((0, 0), (0, 4)), constant_values=fill[name])
        for name, value in rows.items()
    }
    same, others = by_onnx(model, adapter, wide)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, others[name], rtol=0, atol=1e-5 * np.abs(gradient).max()
        )


def test_a_program_holds_known_operators_and_is_the_same_each_time(
    built: Callable[..., Case],
) -> None:
    case = built("t5-1.1", 4, 8)
    adapter = adapter_of(case[1])
    first, second = (program_of(case, adapter) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    evaluation = seq2seq_scoring_graph(*case[1:], tensors=dict.fromkeys(adapter, 2), forms=forms)
    for graph in (first.graph, evaluation.graph):
        assert {(node.domain, node.op_type) for node in graph.node} <= OPERATORS


def test_only_what_is_asked_for_has_a_gradient(built: Callable[..., Case]) -> None:
    case = built("t5", 4, 8)
    adapter = adapter_of(case[1])
    trained = [name for name in adapter if name.endswith(B)]
    model = seq2seq_graph(
        *case[1:], tensors=dict.fromkeys(adapter, 2), trained=trained, forms=forms
    )
    assert [value.name for value in model.graph.output] == [LOSS, *(GRADIENT + n for n in trained)]
    assert [value.name for value in model.graph.input] == [
        *("input_ids", "attention_mask"),
        *sorted(adapter),
        TARGET,
    ]


@pytest.mark.parametrize("kind", ["t5-1.1", "bart"])
def test_a_program_reads_the_tensors_of_a_built_base(kind: str, tmp_path: Path) -> None:
    source = seq2seq_source(str(write_model(tmp_path / "model", kind)))
    base = tmp_path / "base"
    build_seq2seq(source, bits=4, out=base)
    shape = shape_of(read_object(base / "config.json"))
    assert shape == shape_of(source.config)
    case = (tmp_path / "model", shape, opened_tensors(base, shape))
    adapter, rows = adapter_of(shape), texts(shape.vocabulary)
    model = program_of(case, adapter)
    inside = by_onnx(model, adapter, rows)
    refer_to_weights(model, base / WEIGHTS)
    inner = {t.name for t in model.graph.initializer if len(t.raw_data) >= SMALLEST}
    numbers = re.compile(r"constant\..*|(en|de)coder/buckets")  # places of rows, and of distances
    assert not [name for name in inner if not numbers.fullmatch(name)]
    session = open_session(model.SerializeToString(), base, threads=1)
    (loss,) = session.run([LOSS], rows | adapter)
    assert float(loss) == inside[0]
    assert abs(inside[0] - by_torch(case, adapter, rows)[0]) <= 1e-5 * inside[0]
