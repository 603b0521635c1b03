"""Texts are those that plain runs of the graph give, whatever caches, adapters and stops do."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.decoder.adapters import adapter_of
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Generator, Request, generate
from edge_runtime.decoder.sampling import Sampling, log_probabilities
from protocol.errors import ArtefactError, DataError
from tests.tiny_decoder import (
    CONTEXT,
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    lora,
    prefix,
    soft_prompt,
    write_tiny_decoder,
)

PROMPT = [1, 12, 15, 22, 10, 30, 11]
LONG = Request(max_tokens=CONTEXT)
FORMS = {
    "base": None,
    "low rank": lora(3),
    "prompt": soft_prompt(3),
    "prefix": prefix(3),
    "all": lora(4) | soft_prompt(4) | prefix(4),
}
VARIED = Request(max_tokens=20, sampling=Sampling(temperature=2.0, top_p=0.95), seed=7)


def plain_logits(session, tokens, tensors=None) -> np.ndarray:
    """Of all tokens at once, in one run: (vocabulary,) behind the last."""
    slots = dict(tensors or {})
    before = slots.pop("prefix", np.zeros((0, LAYERS * 2 * KV_HEADS * HEAD_SIZE), np.float32))
    heads = np.split(before, LAYERS * 2 * KV_HEADS, axis=1)  # (tokens, head_size) each
    parts = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    past = {
        f"past_key_values.{part}": np.stack(heads[number * KV_HEADS :][:KV_HEADS])[None]
        for number, part in enumerate(parts)
    }
    prompt = [len(VOCABULARY) + row for row in range(len(slots.get("soft_prompt", ())))]
    ids = np.array([[*prompt, *tokens]])
    total = len(before) + ids.shape[1]
    feeds = {"input_ids": ids, "attention_mask": np.ones((1, total), int), **past}
    return session.run(["logits"], feeds | slots)[0][0, -1]


def positions_of(tensors) -> int:
    """Those that a prompt and a prefix take."""
    tensors = tensors or {}
    return len(tensors.get("soft_prompt", ())) + len(tensors.get("prefix", ()))


def plain_text(decoder: DecoderBase, prompt, count: int, tensors=None) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(np.argmax(plain_logits(decoder.session, tokens, tensors))))
        if tokens[-1] in decoder.manifest.ends:
            break
    return tokens[len(prompt) :]


def tokens_of(steps) -> list[int]:
    return [step.token for step in steps]


@pytest.fixture(params=[True, False], ids=["in place", "growing"])
def either(decoder: DecoderBase, request: pytest.FixtureRequest) -> DecoderBase:
    return dataclasses.replace(decoder, in_place=request.param)


@pytest.mark.parametrize("tensors", FORMS.values(), ids=FORMS)
def test_a_text_is_that_of_plain_runs(either: DecoderBase, tensors) -> None:
    adapter = adapter_of(tensors, either, source="t") if tensors else None
    steps = list(generate(Cache(either, adapter), PROMPT, LONG))
    room = CONTEXT - positions_of(tensors)
    expected = plain_text(either, PROMPT, room - len(PROMPT) + 1, tensors)
    assert tokens_of(steps) == expected
    assert len(expected) >= 4
    shown = expected[:-1] if steps[-1].finish == "end" else expected
    assert "".join(step.text for step in steps) == either.tokenizer.decode(shown)
    assert {step.finish for step in steps[:-1]} == {""}


def test_a_file_does_what_its_tensors_do_in_plain_runs(
    decoder: DecoderBase, tmp_path: Path
) -> None:
    from edge_runtime.edge_adapter import write_edge_adapter

    write_edge_adapter(lora(3), tmp_path / "a.onnx_adapter")
    generator = Generator(decoder)
    generator.adapters.load("a", tmp_path / "a.onnx_adapter")
    generator.adapters.put("b", lora(4))
    for name, seed in (("a", 3), ("b", 4), ("a", 3)):
        steps = generator.generate(PROMPT, Request(adapter=name, max_tokens=12))
        assert tokens_of(steps) == plain_text(decoder, PROMPT, 12, lora(seed))
    assert tokens_of(generator.generate(PROMPT, Request(max_tokens=12))) == plain_text(
        decoder, PROMPT, 12
    )


def test_a_cache_of_one_adapter_is_not_used_under_another(either: DecoderBase) -> None:
    """Fails if keys and values that one adapter made are read under another: their logits differ."""
    generator = Generator(either)
    for name, seed in (("a", 1), ("b", 2)):
        generator.adapters.put(name, lora(seed))
    conversation = generator.conversation()
    turn = Request(max_tokens=1, logprobs=0)
    tokens = list(PROMPT)
    for name, tensors in (("a", lora(1)), ("b", lora(2)), (None, None), ("a", lora(1))):
        (step,) = conversation.steps(tokens, dataclasses.replace(turn, adapter=name))
        expected = log_probabilities(plain_logits(either.session, tokens, tensors))
        assert step.token == int(np.argmax(expected))
        assert step.logprob == pytest.approx(float(expected.max()), abs=1e-4)
        tokens += [step.token, 13]


def test_the_test_above_can_fail(decoder: DecoderBase) -> None:
    """A cache read under one adapter and continued under another does give other logits."""
    one, two = (adapter_of(lora(seed), decoder, source="t") for seed in (1, 2))
    mixed, pure = Cache(decoder, one), Cache(decoder, two)
    mixed.read(PROMPT)
    for name, value in two.values.items():
        mixed._memory._binding.bind_ortvalue_input(name, value)
    pure.read(PROMPT)
    assert abs(mixed.read([13]) - pure.read([13])).max() > 0.1


def test_a_name_that_stands_for_another_adapter_begins_anew(decoder: DecoderBase) -> None:
    generator = Generator(decoder)
    generator.adapters.put("a", lora(1))
    conversation = generator.conversation()
    request = Request(adapter="a", max_tokens=3)
    list(conversation.steps(PROMPT, request))
    assert conversation.held == len(PROMPT) + 2
    generator.adapters.put("a", lora(2))
    steps = tokens_of(conversation.steps(PROMPT, request))
    assert steps == plain_text(decoder, PROMPT, 3, lora(2))


def test_an_adapter_of_another_base_is_refused(decoder: DecoderBase, tmp_path: Path) -> None:
    folder = write_tiny_decoder(tmp_path / "other")
    (folder / "config.json").write_text('{"model_type": "other"}')
    from tests.tiny_decoder import write_manifest

    write_manifest(folder)
    other = DecoderBase.open(folder, threads=1)
    with pytest.raises(ArtefactError, match="was loaded for base"):
        Cache(decoder, adapter_of(lora(), other, source="t"))


def test_what_turns_share_is_read_once(either: DecoderBase) -> None:
    conversation = Generator(either).conversation()
    first = tokens_of(conversation.steps(PROMPT, Request(max_tokens=4)))
    held = conversation.held
    assert held == len(PROMPT) + 3
    turn = [*PROMPT, *first, 20, 21]
    again = tokens_of(conversation.steps(turn, Request(max_tokens=4)))
    assert again == plain_text(either, turn, 4)
    assert conversation._cache.tokens[: len(turn)] == tuple(turn)
    for other in (PROMPT[:4], [*PROMPT[:3], 40, *PROMPT[4:], 41], [9]):  # shorter, and edited
        steps = conversation.steps(other, Request(max_tokens=4))
        assert tokens_of(steps) == plain_text(either, other, 4)


TURN = st.tuples(
    st.sampled_from([None, "a", "b", "prompt", "prefix", "all"]),
    st.integers(0, 20),  # tokens that are kept of the text so far
    st.lists(st.integers(0, 57), min_size=1, max_size=5),
    st.integers(1, 4),  # tokens that are asked for
    st.integers(1, 4),  # and taken, before the answer is closed
    st.booleans(),  # whether another adapter gets the name `a` before
)


@settings(max_examples=60)
@given(st.lists(TURN, max_size=6))
def test_whatever_a_conversation_goes_through_its_answers_are_plain_ones(decoder, turns) -> None:
    generator = Generator(decoder)
    adapters = {"a": lora(1), "b": lora(2)} | {n: FORMS[n] for n in ("prompt", "prefix", "all")}
    others = [soft_prompt(5), prefix(5), lora(3)]
    for name, tensors in adapters.items():
        generator.adapters.put(name, tensors)
    conversation, text = generator.conversation(), []
    for name, kept, more, asked, taken, renamed in turns:
        if renamed:
            others.append(adapters["a"])
            adapters["a"] = others.pop(0)
            generator.adapters.put("a", adapters["a"])
        text = [*text[:kept], *more]
        steps = conversation.steps(text, Request(adapter=name, max_tokens=asked))
        tokens = [step.token for step in islice(steps, taken)]
        steps.close()
        tensors = adapters[name] if name else None
        assert tokens == plain_text(decoder, text, min(asked, taken), tensors)
        text += tokens


def test_only_what_is_new_runs(decoder: DecoderBase) -> None:
    cache = Cache(decoder)
    runs: list[int] = []
    read = cache._memory.read
    cache._memory.read = lambda ids: runs.append(len(ids)) or read(ids)  # type: ignore[method-assign]
    tokens = tokens_of(generate(cache, PROMPT, Request(max_tokens=3)))
    list(generate(cache, [*PROMPT, *tokens, 9], Request(max_tokens=2)))
    assert runs == [len(PROMPT), 1, 1, 2, 1]


@pytest.mark.parametrize("tensors", FORMS.values(), ids=FORMS)
def test_a_cache_that_outgrows_its_room_keeps_what_it_holds(
    either: DecoderBase, tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.decoder.key_values.BLOCK", 4)
    tokens = [1, *range(4, 4 + CONTEXT - 1 - positions_of(tensors))]
    cache = Cache(either, adapter_of(tensors, either, source="t") if tensors else None)
    for start in range(0, len(tokens), 3):
        logits = cache.read(tokens[start : start + 3])
    assert abs(logits - plain_logits(either.session, tokens, tensors)).max() < 1e-4


@pytest.mark.parametrize("tensors", FORMS.values(), ids=FORMS)
def test_a_long_prompt_is_read_in_pieces(either: DecoderBase, tensors, monkeypatch) -> None:
    adapter = adapter_of(tensors, either, source="t") if tensors else None
    whole = Cache(either, adapter).follow(range(5, 40))
    for size in (2, 7):  # also pieces within a soft prompt, and with its end in them
        monkeypatch.setattr("edge_runtime.decoder.cache.PIECE", size)
        assert abs(Cache(either, adapter).follow(range(5, 40)) - whole).max() < 1e-4


def test_a_prompt_that_was_read_in_part_is_not_read_again(
    either: DecoderBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading may fail between two pieces, for lack of memory."""
    monkeypatch.setattr("edge_runtime.decoder.cache.PIECE", 3)
    tensors = FORMS["all"]
    cache = Cache(either, adapter_of(tensors, either, source="t"))
    read, runs = cache._memory.read, []

    def failing(ids):
        runs.append(len(ids))
        if len(runs) == 2:
            raise ArtefactError("no memory", "give it some")
        return read(ids)

    cache._memory.read = failing  # type: ignore[method-assign]
    with pytest.raises(ArtefactError, match="no memory"):
        cache.follow(PROMPT)
    assert cache.tokens == ()
    logits = cache.follow(PROMPT)
    assert sum(runs[2:]) == len(tensors["soft_prompt"]) - 3 + len(PROMPT)
    assert abs(logits - plain_logits(either.session, PROMPT, tensors)).max() < 1e-4


@pytest.mark.parametrize("name", ["prompt", "prefix", "all"])
def test_what_a_text_may_have_is_less_by_a_prompt(decoder: DecoderBase, name: str) -> None:
    adapter = adapter_of(FORMS[name], decoder, source="t")
    cache = Cache(decoder, adapter)
    taken = positions_of(FORMS[name])
    assert cache.room == CONTEXT - taken == CONTEXT - adapter.positions
    with pytest.raises(DataError, match=rf"{cache.room + 1} tokens.*{cache.room} at most.*{taken}"):
        generate(cache, [1] * (cache.room + 1), LONG)
    (step,) = generate(cache, [1] + [12] * (cache.room - 1), LONG)
    assert step.finish in ("context", "end")
    with pytest.raises(DataError, match="the base knows 0 to"):  # its own ids are nobody's to say
        cache.follow([len(VOCABULARY)])


def test_the_same_seed_writes_the_same_text(decoder: DecoderBase) -> None:
    one, two = (tokens_of(Generator(decoder).generate(PROMPT, VARIED)) for _ in range(2))
    assert one == two
    others = [
        tokens_of(Generator(decoder).generate(PROMPT, dataclasses.replace(VARIED, seed=seed)))
        for seed in range(3)
    ]
    assert any(other != one for other in others)


def test_log_probabilities_are_of_the_models_own_distribution(decoder: DecoderBase) -> None:
    request = dataclasses.replace(VARIED, logprobs=3)
    tokens = list(PROMPT)
    for step in generate(Cache(decoder), PROMPT, request):
        logs = log_probabilities(plain_logits(decoder.session, tokens))
        assert step.logprob == pytest.approx(logs[step.token], abs=1e-4)
        assert [token for token, _ in step.top] == np.argsort(-logs, kind="stable")[:3].tolist()
        tokens.append(step.token)


def test_a_text_ends_where_it_should(decoder: DecoderBase) -> None:
    ends = dataclasses.replace(decoder, manifest=decoder.manifest.model_copy(update={"ends": []}))
    every = list(generate(Cache(ends), PROMPT, LONG))
    assert every[-1].finish == "context"
    assert len(every) == CONTEXT - len(PROMPT) + 1
    text = "".join(step.text for step in every)
    few = list(generate(Cache(ends), PROMPT, Request(max_tokens=3)))
    assert (len(few), few[-1].finish) == (3, "length")
    third = every[2].token
    ended = dataclasses.replace(
        decoder, manifest=decoder.manifest.model_copy(update={"ends": [third]})
    )
    steps = list(generate(Cache(ended), PROMPT, LONG))
    first = [step.token for step in every].index(third)
    assert tokens_of(steps) == [step.token for step in every[: first + 1]]
    assert steps[-1].finish == "end"
    stop = text[5:8]
    steps = list(generate(Cache(ends), PROMPT, Request(max_tokens=CONTEXT, stops=("zzz", stop))))
    assert steps[-1].finish == "stop"
    assert "".join(step.text for step in steps) == text[: text.index(stop)]


def test_a_full_context_leaves_one_token(decoder: DecoderBase) -> None:
    prompt = [1] + [12] * (CONTEXT - 1)
    (step,) = generate(Cache(decoder), prompt, LONG)
    assert step.finish in ("context", "end")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [([], "no text"), ([1] * (CONTEXT + 1), "49 tokens.*48"), ([1, 58], "token 1 is 58")],
)
def test_prompts_that_cannot_be_read_are_refused_before_anything_runs(
    decoder: DecoderBase, prompt: list[int], said: str
) -> None:
    cache = Cache(decoder)
    with pytest.raises(DataError, match=said):
        generate(cache, prompt, LONG)
    with pytest.raises(DataError, match=said):
        cache.follow(prompt)
    assert cache.tokens == ()


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"seed": -1}, {"logprobs": 101}, {"stops": ("",)}]
)
def test_requests_out_of_bounds_are_refused(decoder: DecoderBase, wrong) -> None:
    with pytest.raises(DataError):
        generate(Cache(decoder), PROMPT, Request(**wrong))


def test_closing_ends_the_work_and_frees_the_cache(decoder: DecoderBase) -> None:
    cache = Cache(decoder)
    steps = generate(cache, PROMPT, LONG)
    next(steps)
    assert cache.tokens == tuple(PROMPT)  # the first token has not been read
    second = generate(cache, PROMPT, LONG)
    with pytest.raises(DataError, match="still being written"):
        next(second)
    steps.close()
    assert cache.tokens == tuple(PROMPT)
    assert next(generate(cache, PROMPT, LONG)).token == plain_text(decoder, PROMPT, 1)[0]


def test_many_conversations_run_side_by_side(decoder: DecoderBase) -> None:
    from concurrent.futures import ThreadPoolExecutor

    generator = Generator(decoder)
    for seed in range(3):
        generator.adapters.put(str(seed), lora(seed))

    def write(seed: int) -> list[int]:
        return tokens_of(generator.generate(PROMPT, Request(adapter=str(seed), max_tokens=10)))

    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(write, [0, 1, 2] * 4))
    assert texts == [plain_text(decoder, PROMPT, 10, lora(seed)) for seed in (0, 1, 2)] * 4


def test_onnx_runtime_leaves_out_adapters_where_inputs_are_bound(
    decoder: DecoderBase, tmp_path: Path
) -> None:
    """Why adapters are bound as inputs here. Fails once ONNX Runtime mends or refuses it."""
    from edge_runtime.edge_adapter import write_edge_adapter

    write_edge_adapter(lora(3), tmp_path / "a.onnx_adapter")
    loaded = ort.LoraAdapter()
    loaded.Load(str(tmp_path / "a.onnx_adapter"))
    cache = Cache(decoder)
    cache._memory._options.add_active_adapter(loaded)
    logits = cache.read(PROMPT)
    assert abs(logits - plain_logits(decoder.session, PROMPT)).max() < 1e-4
