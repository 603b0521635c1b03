"""Texts in one run: who joins, leaves, is swapped, fails or overflows changes no other text."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge_runtime.decoder.adapters import adapter_of
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.generation import Generator, Request, Step
from edge_runtime.decoder.sampling import Sampling
from edge_runtime.decoder.together import Together, Writing, fewest_rows
from protocol.errors import ArtefactError, DataError
from tests.tiny_decoder import lora, soft_prompt, write_manifest, write_tiny_decoder
from tests.writing_together import PROMPT, Text, apart, built_base, factors, forms

BOUND = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    """Floats: two rows are enough for a run of several."""
    return built_base(tmp_path_factory.mktemp("together"), bits=32)


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    """Codes of 4 bits: linears that read the same are one product. Four rows are enough."""
    base = built_base(tmp_path_factory.mktemp("coded"))
    assert base.manifest.joined
    return base


def verify_alone(text: Text, base: DecoderBase, adapter: Any, **of: Any) -> None:
    alone = Text(base, adapter, count=len(text.tokens), **of).alone()
    assert text.tokens == alone.tokens
    assert apart(text, alone) < BOUND


@pytest.mark.parametrize("kind", ["base", "coded"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_texts_join_and_leave_and_pause_in_any_order(
    request: pytest.FixtureRequest, kind: str, seed: int
) -> None:
    """Prompts of any length, room that grows, rows that are taken again, runs of too few."""
    base: DecoderBase = request.getfixturevalue(kind)
    rng, together, adapters = np.random.default_rng(seed), Together(base), [*forms(base).values()]
    writing: list[tuple[Text, Any, int]] = []
    over = []
    for _ in range(150):
        if len(writing) < 8 and rng.random() < 0.2:
            adapter, length = adapters[rng.integers(len(adapters))], int(rng.integers(1, 13))
            own = Text(base, adapter, prompt=PROMPT[:length], count=int(rng.integers(2, 78)))
            writing.append((own, adapter, length))
        chosen = [entry for entry in writing if rng.random() < 0.9]
        items = together.advance([text.writing for text, _, _ in chosen])
        for entry, item in zip(chosen, items, strict=True):
            assert isinstance(item, Step)
            if item.finish or rng.random() < 0.02:
                entry[0].writing.close()
                writing.remove(entry)
                over.append(entry)
    assert len(over) > 6
    assert sum(text.sent for text, _, _ in over) > 200
    for text, adapter, length in over:
        verify_alone(text, base, adapter, prompt=PROMPT[:length])


def test_a_text_by_itself_is_read_as_ever(base: DecoderBase) -> None:
    adapter = adapter_of(factors(base.manifest, 1), base, source="x")
    together, text = Together(base), Text(base, adapter, count=20)
    for _ in range(20):
        together.advance([text.writing])
    alone = Text(base, adapter, count=20).alone()
    assert text.sent == 0
    assert all((a == b).all() for a, b in zip(text.logits, alone.logits, strict=True))


def test_rows_under_one_adapter_and_rows_under_none(base: DecoderBase) -> None:
    x = adapter_of(factors(base.manifest, 1), base, source="x")
    for adapters in ([x, x], [None, None], [x, None, x]):
        together, texts = Together(base), [Text(base, adapter, count=12) for adapter in adapters]
        for _ in range(12):
            together.advance([text.writing for text in texts])
        for text, adapter in zip(texts, adapters, strict=True):
            assert text.sent == 11
            verify_alone(text, base, adapter)


def test_a_text_that_is_given_up_holds_no_row(base: DecoderBase) -> None:
    together, texts = Together(base), [Text(base, None, count=60) for _ in range(3)]
    for _ in range(5):
        together.advance([text.writing for text in texts])
    left = texts.pop(0)
    memory = weakref.ref(left.cache.memory)
    left.writing.close()
    del left
    gc.collect()
    assert memory() is None
    for _ in range(5):
        together.advance([text.writing for text in texts])
    for text in texts:
        verify_alone(text, base, None)


def test_factors_that_overflow_are_no_others(base: DecoderBase) -> None:
    """Zero times infinity is no number: fails if a row takes the others' ranks times zero."""
    good = adapter_of(factors(base.manifest, 1), base, source="good")
    bad = adapter_of(factors(base.manifest, 2, size=5e37), base, source="bad")
    together, adapters = Together(base), [good, None]
    texts = [Text(base, adapter, count=8) for adapter in adapters]
    # Its prompt is read without its adapter: a text that begins well.
    odd = Text(base, None, count=9)
    odd.writing.advance()
    odd.cache._adapter = bad
    for name, value in bad.values.items():
        odd.cache.memory._binding.bind_ortvalue_input(name, value)
    for _ in range(8):
        together.advance([text.writing for text in (*texts, odd)])
    assert not np.isfinite(odd.logits[-1]).all()
    for text, adapter in zip(texts, adapters, strict=True):
        verify_alone(text, base, adapter)


def tokens(items: list[Step | Exception]) -> list[int]:
    assert all(isinstance(item, Step) for item in items)
    return [item.token for item in items if isinstance(item, Step)]


def test_a_list_of_requests_is_answered_as_each_is(base: DecoderBase) -> None:
    generator = Generator(base)
    for number, name in enumerate("ab"):
        generator.adapters.put(name, factors(base.manifest, number))
    varied = Sampling(temperature=2.0, top_p=0.95)
    requests = [
        Request(adapter="a", max_tokens=9),
        Request(max_tokens=30, sampling=varied, seed=3, logprobs=2),
        Request(adapter="b", max_tokens=25, sampling=varied, seed=3),
        Request(adapter="a", max_tokens=60, stops=("w17",)),
        Request(adapter="b", max_tokens=40, sampling=varied, seed=4),
    ]
    asked = [(PROMPT[: 5 + number], request) for number, request in enumerate(requests)]
    written: dict[int, list[Any]] = {number: [] for number in range(len(asked))}
    order = []
    for number, item in generator.together(asked, most=3):
        written[number].append(item)
        order.append(number)
    assert order[:6] == [0, 1, 2, 0, 1, 2]
    assert order.index(3) > order.index(0)
    for number, (prompt, request) in enumerate(asked):
        alone = list(generator.generate(prompt, request))
        assert tokens(written[number]) == tokens([*alone])
        for step, other in zip(written[number], alone, strict=True):
            assert (step.text, step.finish) == (other.text, other.finish)
            assert [token for token, _ in step.top] == [token for token, _ in other.top]
            assert step.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_what_begins_under_a_name_ends_with_its_adapter(base: DecoderBase) -> None:
    generator, manifest = Generator(base), base.manifest
    generator.adapters.put("a", factors(manifest, 1))
    before = tokens([*generator.generate(PROMPT, Request(adapter="a", max_tokens=30))])
    request = Request(adapter="a", max_tokens=30)
    begun: dict[int, list[Any]] = {0: [], 1: []}
    for number, item in generator.together([(PROMPT, request), (PROMPT, Request(max_tokens=30))]):
        begun[number].append(item)
        if len(begun[0]) == 10:
            generator.adapters.put("a", factors(manifest, 2))
    assert tokens(begun[0]) == before
    assert tokens([*generator.generate(PROMPT, request)]) != before


def test_what_is_out_of_bounds_is_said_before_anything_runs(base: DecoderBase) -> None:
    generator = Generator(base)
    good = (PROMPT, Request(max_tokens=2))
    for odd in (([], Request()), (PROMPT, Request(adapter="x")), (PROMPT, Request(max_tokens=0))):
        with pytest.raises(DataError):
            generator.together([good, odd])
    with pytest.raises(DataError, match="0 texts at the same time"):
        generator.together([good], most=0)
    assert list(generator.together([])) == []


def test_a_graph_of_before_runs_the_texts_of_one_adapter_together(decoder: DecoderBase) -> None:
    assert not decoder.manifest.is_ranked
    tensors = {"a": lora(3), "b": lora(4), "p": soft_prompt(3)}
    adapters: dict[str, Any] = {n: adapter_of(t, decoder, source=n) for n, t in tensors.items()}
    adapters["none"] = None
    names = ["a", "b", "a", "p", "none", "a", "none"]
    texts = [Text(decoder, adapters[name], prompt=PROMPT[:5], count=20) for name in names]
    together = Together(decoder)
    for _ in range(20):
        together.advance([text.writing for text in texts])
    # A prompt is behind a text that has begun: its row is like one without an adapter.
    assert [text.sent for text in texts] == [19, 0, 19, 19, 19, 19, 19]
    for text, name in zip(texts, names, strict=True):
        verify_alone(text, decoder, adapters[name], prompt=PROMPT[:5])


def test_a_graph_whose_rows_see_what_is_padded_runs_each_by_itself(tmp_path: Path) -> None:
    folder = write_tiny_decoder(tmp_path / "odd")
    model = onnx.load(str(folder / "graph.onnx"))
    summing = next(node for node in model.graph.node if node.op_type == "ReduceSum")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "nought"))
    model.graph.node.insert(0, helper.make_node("Pow", ["attention_mask", "nought"], ["ones"]))
    summing.input[0] = "ones"
    onnx.save(model, str(folder / "graph.onnx"))
    write_manifest(folder)
    base = DecoderBase.open(folder, threads=1)
    assert base.in_place
    assert not base.runs_rows
    together = Together(base)
    texts = [Text(base, None, prompt=PROMPT[:length], count=9) for length in (2, 6)]
    for _ in range(9):
        together.advance([text.writing for text in texts])
    for text, length in zip(texts, (2, 6), strict=True):
        assert text.sent == 0
        verify_alone(text, base, None, prompt=PROMPT[:length])


def test_an_error_ends_its_own_text(base: DecoderBase) -> None:
    def fails() -> Any:
        yield Step(token=1, text="")
        raise ZeroDivisionError

    together, text, odd = Together(base), Text(base, None, count=5), Writing(fails())
    items = [together.advance([odd, text.writing]) for _ in range(2)]
    assert isinstance(items[1][0], ZeroDivisionError)
    assert isinstance(items[1][1], Step)


@pytest.mark.parametrize(("bits", "level", "fewest"), [(4, 32, 4), (4, 8, 2)])
def test_codes_that_are_widened_for_more_than_a_row_want_more_of_them(
    tmp_path: Path, bits: int, level: int, fewest: int
) -> None:
    base = built_base(tmp_path, bits=bits, level=level)
    assert fewest_rows(base.manifest) == fewest
    for rows in (fewest - 1, fewest):
        together, texts = Together(base), [Text(base, None, count=3) for _ in range(rows)]
        for _ in range(3):
            together.advance([text.writing for text in texts])
        assert {text.sent for text in texts} == {2 if rows == fewest else 0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"joined": {}}, "the graph's slots are not the manifest's"),
        ({"joined": {"a": ["model.layers.0.mlp.up_proj", "b"]}}, "joined: a linear is part of"),
        ({"inputs": ["input_ids", "attention_mask"]}, "first difference: ranks.1"),
    ],
)
def test_a_manifest_that_says_otherwise_than_the_graph_is_refused(
    coded: DecoderBase, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    folder = Path(shutil.copytree(coded.folder, tmp_path / "copy"))
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    whose = manifest["graph"] if "inputs" in changes else manifest
    whose |= changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=says):
        DecoderBase.open(folder, threads=1)
