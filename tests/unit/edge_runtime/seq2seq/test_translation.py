"""A device turns a text into another as transformers does on the same codes, whatever adapter is in."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.families import shape_of
from base_model.seq2seq.folder import seq2seq_source
from edge_runtime.commands import app
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Request, Step
from edge_runtime.decoder.sampling import Sampling, log_probabilities
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.seq2seq.base import Seq2SeqBase, memory_of
from edge_runtime.seq2seq.generation import Translator
from protocol.errors import ArtefactError, DataError
from protocol.forms import DOWN, PREFIX, SOFT_PROMPT, UP
from tests.unit.base_model.decoder.models import apart, float_weights, stored_of
from tests.unit.base_model.seq2seq.models import KINDS, oracle, torch_greedy, write_model

TOKENS, BOUND = 64, 1e-4
SOURCE = [5, 9, 13, 22, 40, 7, 33, 21, 60, 3, 4, 1]
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(kw_only=True)
class Both:
    """A base as a device opens it, without tokens that end a text, and transformers' model of its codes."""

    base: Seq2SeqBase
    model: Any

    @cached_property
    def alone(self) -> tuple[list[int], list[Any]]:
        return self.expected()

    def expected(
        self, tensors: Tensors | None = None, count: int = TOKENS
    ) -> tuple[list[int], list[Any]]:
        model = self.model
        if tensors:
            model = copy.deepcopy(model)
            for name, down in tensors.items():
                if name.endswith(DOWN):
                    path = name.removesuffix(DOWN)
                    change = (down @ tensors[path + UP]).T
                    model.get_submodule(path).weight += torch.from_numpy(change.copy())
        return torch_greedy(model, SOURCE, self.base.manifest.start, count)


def lora(base: Seq2SeqBase, seed: int) -> Tensors:
    """Factors beside every linear of both stacks, each with a rank of its own."""
    rng, tensors = np.random.default_rng(seed), Tensors()
    for number, linear in enumerate(base.manifest.linears):
        rank = 1 + number % 3
        tensors[linear.path + DOWN] = rng.normal(0, 0.1, (linear.in_features, rank))
        tensors[linear.path + UP] = rng.normal(0, 0.1, (rank, linear.out_features))
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def without_ends(base: Seq2SeqBase) -> Seq2SeqBase:
    return dataclasses.replace(base, manifest=base.manifest.model_copy(update={"ends": []}))


@pytest.fixture(scope="module", params=sorted(KINDS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp(request.param)
    source = seq2seq_source(str(write_model(folder / "source", request.param)))
    build_seq2seq(source, bits=4, out=folder / "base")
    shape = shape_of(source.config)
    stored = stored_of(shape, source, bits=4, embedding_bits=8)
    return Both(
        base=without_ends(Seq2SeqBase.open(folder / "base", threads=1)),
        model=oracle(folder / "source", float_weights(shape, stored)),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqBase:
    folder = tmp_path_factory.mktemp("base")
    source = seq2seq_source(str(write_model(folder / "source")))
    build_seq2seq(source, bits=4, out=folder / "base", context=24)
    return Seq2SeqBase.open(folder / "base", threads=1)


def tokens_of(steps: Iterable[Step]) -> list[int]:
    return [step.token for step in steps]


def test_sixty_four_tokens_and_their_logits_are_transformers_under_any_adapter(both: Both) -> None:
    """With one, without, with another, and after swapping back to the first."""
    translator = Translator(both.base)
    adapters = {name: lora(both.base, seed) for name, seed in (("a", 1), ("b", 2))}
    texts = {None: both.alone, **{n: both.expected(t) for n, t in adapters.items()}}
    for name, other in ((None, "a"), ("a", "b"), ("b", None)):
        assert apart(texts[name][1][0], texts[other][1][0]) > 100 * BOUND
    for name, tensors in adapters.items():
        translator.adapters.put(name, tensors)
    for name in ("a", None, "b", "a", None):
        expected, reference = texts[name]
        assert tokens_of(translator.generate(SOURCE, Request(adapter=name, max_tokens=TOKENS))) == (
            expected
        )
        adapter = translator.adapters.named(name)
        memory = memory_of(
            both.base.reader, both.base.manifest, SOURCE, adapter.values if adapter else {}
        )
        cache = Cache(both.base, adapter, memory)
        logits = cache.read([both.base.manifest.start])
        for token, want in zip(expected, reference, strict=True):
            assert apart(want, logits) < BOUND
            logits = cache.read([token])


def test_a_cache_that_grows_says_what_one_in_place_says(both: Both) -> None:
    assert both.base.in_place
    growing = dataclasses.replace(both.base, in_place=False)
    one, two = (
        tokens_of(Translator(each).generate(SOURCE, Request(max_tokens=TOKENS)))
        for each in (both.base, growing)
    )
    assert one == two == both.alone[0]


def test_adapters_of_one_stack_alone(both: Both) -> None:
    """What only the encoder's graph has a slot for is not handed to the decoder's, and the other way."""
    tensors = lora(both.base, 3)
    for stack in ("encoder.", "decoder."):
        part = {name: value for name, value in tensors.items() if stack in name}
        translator = Translator(both.base)
        translator.adapters.put("a", part)
        steps = translator.generate(SOURCE, Request(adapter="a", max_tokens=12))
        assert tokens_of(steps) == both.expected(part, 12)[0]


def test_a_file_does_what_its_tensors_do(base: Seq2SeqBase, tmp_path: Path) -> None:
    write_edge_adapter(lora(base, 1), tmp_path / "a.onnx_adapter")
    translator = Translator(base)
    translator.adapters.load("file", tmp_path / "a.onnx_adapter")
    translator.adapters.put("tensors", lora(base, 1))
    one, two, three = (
        tokens_of(translator.generate(SOURCE, Request(adapter=name, max_tokens=12)))
        for name in ("file", "tensors", None)
    )
    assert one == two != three


def test_sampling_follows_the_models_own_distribution_by_its_seed(base: Seq2SeqBase) -> None:
    request = Request(max_tokens=20, sampling=Sampling(temperature=2.0), seed=7, logprobs=2)
    translator = Translator(without_ends(base))
    steps = list(translator.generate(SOURCE, request))
    assert tokens_of(steps) == tokens_of(translator.generate(SOURCE, request))
    other = dataclasses.replace(request, seed=8)
    assert tokens_of(steps) != tokens_of(translator.generate(SOURCE, other))
    memory = memory_of(base.reader, base.manifest, SOURCE, {})
    cache, token = Cache(base, None, memory), base.manifest.start
    for step in steps:
        logs = log_probabilities(cache.read([token]))
        token = step.token
        assert step.logprob == pytest.approx(logs[token], abs=1e-4)


def test_a_text_ends_where_it_should(base: Seq2SeqBase) -> None:
    endless = without_ends(base)
    every = list(Translator(endless).generate(SOURCE, Request(max_tokens=100)))
    assert (len(every), every[-1].finish) == (24, "context")
    third = every[2].token
    ended = dataclasses.replace(base, manifest=base.manifest.model_copy(update={"ends": [third]}))
    steps = list(Translator(ended).generate(SOURCE, Request(max_tokens=100)))
    assert tokens_of(steps) == tokens_of(every)[: tokens_of(every).index(third) + 1]
    assert steps[-1].finish == "end"
    text = "".join(step.text for step in every)
    stop = text[4:7]
    steps = list(Translator(endless).generate(SOURCE, Request(max_tokens=100, stops=(stop,))))
    assert steps[-1].finish == "stop"
    assert "".join(step.text for step in steps) == text[: text.index(stop)]


@pytest.mark.parametrize(
    ("source", "request_", "cause"),
    [
        ([], Request(), "no text"),
        ([3] * 25, Request(), "25 tokens.*24"),
        ([3, 67], Request(), "token 1 is 67"),
        (SOURCE, Request(max_tokens=0), "0 tokens"),
        (SOURCE, Request(adapter="a"), "no adapter `a`"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_runs(
    base: Seq2SeqBase, source: list[int], request_: Request, cause: str
) -> None:
    with pytest.raises(DataError, match=cause):
        Translator(base).generate(source, request_)


def test_adapters_that_do_not_fit_are_refused(base: Seq2SeqBase) -> None:
    translator, tensors = Translator(base), lora(base, 1)
    name = "decoder.block.0.layer.1.EncDecAttention.k"
    with pytest.raises(ArtefactError, match=f"{name}{UP} is missing"):
        translator.adapters.put("a", {name + DOWN: tensors[name + DOWN]})
    with pytest.raises(ArtefactError, match="has no slot shared"):
        translator.adapters.put("a", {"shared" + DOWN: tensors[name + DOWN]})
    table = np.zeros((3, base.manifest.hidden_size), np.float32)
    with pytest.raises(ArtefactError, match=r"it holds a soft prompt.*train an adapter of linears"):
        translator.adapters.put("a", {SOFT_PROMPT: table})
    with pytest.raises(ArtefactError, match=f"has no slot {PREFIX}"):
        translator.adapters.put("a", {PREFIX: table})


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "tokenizer.json"])
def test_a_damaged_file_is_not_opened(base: Seq2SeqBase, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(base.folder, tmp_path / "base"))
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{name} is damaged"):
        Seq2SeqBase.open(folder)


def test_graphs_in_each_others_place_are_noticed(base: Seq2SeqBase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base.folder, tmp_path / "base"))
    document = json.loads((folder / "manifest.json").read_text())
    document["encoder"]["file"], document["graph"]["file"] = "decoder.onnx", "encoder.onnx"
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match="the graph is not the manifest's"):
        Seq2SeqBase.open(folder)


def test_the_command(base: Seq2SeqBase, tmp_path: Path) -> None:
    write_edge_adapter(lora(base, 1), tmp_path / "a.onnx_adapter")
    words = base.tokenizer.decode(SOURCE[:6])
    options = ["generate", words, "--base", str(base.folder), "--json", "--max-tokens", "9"]
    said = []
    for extra in ([], ["--adapter", str(tmp_path / "a.onnx_adapter")]):
        done = CliRunner().invoke(app, [*options, *extra])
        assert done.exception is None
        said.append(json.loads(done.stdout))
    translator = Translator(base)
    translator.adapters.put("a", lora(base, 1))
    ids = base.encode(words)
    assert ids == [*SOURCE[:6], 1]
    for name, answer in zip((None, "a"), said, strict=True):
        steps = list(translator.generate(ids, Request(adapter=name, max_tokens=9)))
        assert answer["tokens"] == tokens_of(steps)
        assert answer["text"] == "".join(step.text for step in steps)


def test_chats_are_refused(base: Seq2SeqBase) -> None:
    error = CliRunner().invoke(app, ["chat", "--base", str(base.folder)]).exception
    assert isinstance(error, ArtefactError)
    assert "knows neither chats nor prompts" in error.cause
