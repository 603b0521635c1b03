"""Texts and chats over HTTP, asked for by OpenAI's own client: its answers, streams and exceptions."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.generation import Generator, Request
from edge_runtime.decoder.sampling import Sampling
from tests.text_server import HI, OTHER, SEEDS, Serving, alone, serving_texts, tiny_base, until
from tests.tiny_decoder import lora
from tests.writing_together import PROMPT, built_base, factors
from tests.writing_together import prompt as soft_prompt

GREEDY: dict[str, Any] = {"messages": HI, "temperature": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    return tiny_base(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def shared(base: DecoderBase) -> Iterator[Serving]:
    """One for tests that leave its adapters as they are."""
    with serving_texts(base) as serving:
        yield serving


@pytest.fixture
def served(base: DecoderBase) -> Iterator[Serving]:
    with serving_texts(base) as serving:
        yield serving


def streamed(client: openai.OpenAI, model: str, **options: Any) -> str:
    chunks = client.chat.completions.create(
        **{"model": model, **GREEDY, "stream": True, "max_tokens": 99, **options}
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_models_are_the_base_and_its_adapters(shared: Serving) -> None:
    client = shared.client()
    assert [model.id for model in client.models.list()] == ["tiny", *SEEDS]
    assert client.models.retrieve("b").owned_by == "fedge"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("bb")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "nearest is `b`" in caught.value.message


def test_a_chat_is_what_the_generator_writes(shared: Serving, base: DecoderBase) -> None:
    client = shared.client()
    for model, seed in (("tiny", None), *SEEDS.items()):
        answer = client.chat.completions.create(model=model, **GREEDY)
        (choice,) = answer.choices
        assert choice.message.content == alone(base, seed)
        assert choice.finish_reason == ("stop" if model == "tiny" else "length")
        assert answer.model == model
        usage = answer.usage
        assert usage is not None
        assert usage.prompt_tokens == 5
        assert usage.total_tokens == 5 + usage.completion_tokens
        assert usage.completion_tokens == (15 if model == "tiny" else 44)
        assert streamed(client, model) == choice.message.content


def test_a_completion_is_what_the_generator_writes(shared: Serving, base: DecoderBase) -> None:
    client = shared.client()
    asked = Request(adapter="a", max_tokens=16, logprobs=2, joins=True)
    prompt = base.encode("hello")
    steps = list(shared.service.generator.generate(prompt, asked))
    text = "".join(step.text for step in steps)
    options: dict[str, Any] = {"model": "a", "temperature": 0, "logprobs": 2}
    for form in ("hello", ["hello"], prompt):
        answer = client.completions.create(prompt=form, **options)
        assert answer.choices[0].text == text
        assert answer.choices[0].finish_reason == "length"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs == [step.logprob for step in steps]
    assert logprobs.top_logprobs is not None
    assert all(logprob <= 0 for table in logprobs.top_logprobs for logprob in table.values())
    chunks = list(client.completions.create(prompt="hello", stream=True, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [part.tokens[0] for part in parts] == logprobs.tokens
    assert [part.text_offset[0] for part in parts] == logprobs.text_offset


def test_seeds_stops_and_usage(shared: Serving) -> None:
    client = shared.client()
    sampled: dict[str, Any] = {"temperature": 1.3, "top_p": 0.9, "max_tokens": 20}
    once, again, other = (
        streamed(client, "a", **sampled, seed=seed) for seed in (2**62, 2**62, -1)
    )
    assert once == again != other
    whole = streamed(client, "a")
    assert "'" not in whole
    cut = client.chat.completions.create(model="a", stop=["6v", "'"], **GREEDY)
    assert cut.choices[0].message.content == whole.split("6v")[0]
    assert cut.choices[0].finish_reason == "stop"
    chunks = list(
        client.chat.completions.create(
            model="a", max_completion_tokens=7, stream=True, **GREEDY,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[0].choices[0].delta.role == "assistant"


def test_log_probabilities_of_a_chat(shared: Serving, base: DecoderBase) -> None:
    client = shared.client()
    answer = client.chat.completions.create(
        model="tiny", logprobs=True, top_logprobs=3, messages=HI, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content
    assert content is not None
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens - 1  # the token that ends the text
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert (entry.bytes is None) == ("\ufffd" in entry.token)
    assert content[0].token == (answer.choices[0].message.content or "")[0]


def test_messages_as_clients_write_them(shared: Serving) -> None:
    client = shared.client()
    plain: Any = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    expected = streamed(client, "a", messages=plain)
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    same: Any = [{"role": "developer", "content": "be"}, {"role": "user", "content": parts}]
    assert streamed(client, "a", messages=same) == expected
    answer = client.chat.completions.create(model="a", max_tokens=3, **GREEDY)
    turns: Any = [*HI, answer.choices[0].message, {"role": "user", "content": "you"}]
    assert streamed(client, "a", messages=turns)


def test_chats_at_once_while_adapters_are_swapped(served: Serving, base: DecoderBase) -> None:
    """Each text is to the letter that of its own adapter alone, whatever is swapped meanwhile."""
    texts = {name: alone(base, seed) for name, seed in SEEDS.items()}
    others = {alone(base, OTHER), alone(base, OTHER + 1)}
    assert len({*texts.values(), *others}) == len(texts) + 2
    stop = threading.Event()

    def swap() -> int:
        count = 0
        while not stop.wait(0.002):
            count += 1
            served.service.replace("third", lora(OTHER + count % 2))
        return count

    def ask(turn: int) -> tuple[str, str]:
        name = [*SEEDS, "third"][turn % 5]
        return name, streamed(served.client(), name)

    served.service.replace("third", lora(OTHER))
    with ThreadPoolExecutor(9) as pool, served.slow_neighbour(0.001):
        swapping = pool.submit(swap)
        try:
            answers = list(pool.map(ask, range(40)))
        finally:
            stop.set()
        assert swapping.result() > 20
    for name, text in answers:
        assert text in others if name == "third" else text == texts[name]
    assert until(lambda: served.service.turns.places == 0)


def test_what_has_begun_ends_with_its_adapter(served: Serving, base: DecoderBase) -> None:
    client = served.client()
    with served.slow_neighbour(0.02):
        streams = {
            name: client.chat.completions.create(model=name, stream=True, **GREEDY)
            for name in ("a", "b")
        }
        begun = {
            name: "".join(next(stream).choices[0].delta.content or "" for _ in range(3))
            for name, stream in streams.items()
        }
        served.service.replace("a", lora(OTHER))
        assert served.service.turns.places == 3  # both are still being written
        assert streamed(client, "a") == alone(base, OTHER)
        for name, stream in streams.items():
            rest = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            assert begun[name] + rest == alone(base, SEEDS[name])


def test_two_chats_of_one_event_loop(served: Serving, base: DecoderBase) -> None:
    async def chat(client: openai.AsyncOpenAI, model: str, order: list[str]) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(model=model, stream=True, **GREEDY):
            order.append(model)
            text += chunk.choices[0].delta.content or ""
        return text

    async def both() -> tuple[list[str | None], list[str]]:
        order: list[str] = []
        url = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as client:
            swap = asyncio.to_thread(served.service.replace, "third", lora(OTHER))
            chats = (chat(client, name, order) for name in ("a", "b"))
            first, second, _ = await asyncio.gather(*chats, swap)
            third = await chat(client, "third", [])
        return [first, second, third], order

    with served.slow_neighbour(0.01):
        texts, order = asyncio.run(both())
    assert texts == [alone(base, seed) for seed in (SEEDS["a"], SEEDS["b"], OTHER)]
    turns = sum(before != after for before, after in pairwise(order))
    assert turns > 3  # they were written at the same time


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(served: Serving, stream: bool) -> None:
    turns = served.service.turns
    with served.slow_neighbour(0.1):
        client = served.client()
        if stream:
            chunks: Any = client.chat.completions.create(model="a", stream=True, **GREEDY)
            next(chunks)
            assert turns.places == 2
            chunks.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.5).chat.completions.create(model="a", **GREEDY)
        client.close()
        assert until(lambda: turns.places == 1, 2.0)  # the whole text would take 4 s
    assert until(lambda: turns.places == 0)


def test_a_neighbour_that_leaves_is_closed(served: Serving) -> None:
    with served.slow_neighbour() as ended:
        streamed(served.client(), "a")  # took turns with it
        assert ended == []
    assert until(lambda: ended == ["closed"])


def test_a_full_queue_says_so(base: DecoderBase) -> None:
    with serving_texts(base, queue=1, at_once=4) as served:
        client = served.client()
        with ThreadPoolExecutor(1) as pool:
            with served.slow_neighbour(0.1):
                streams = [
                    client.chat.completions.create(model="a", stream=True, **GREEDY)
                    for _ in range(3)
                ]
                waiting = pool.submit(streamed, served.client(), "b")
                assert until(lambda: served.service.turns.places == 5)
                with pytest.raises(openai.RateLimitError) as caught:
                    client.chat.completions.create(model="a", **GREEDY)
                assert caught.value.response.headers["retry-after"] == "1"
                assert caught.value.code == "queue_full"
                for stream in streams:
                    stream.close()
            assert waiting.result() == alone(base, SEEDS["b"])
        assert until(lambda: served.service.turns.places == 0)
        assert streamed(client, "a") == alone(base, SEEDS["a"])


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"n": True}, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", None),
        ({"response_format": {"type": "json_object"}}, "response_format", None),
        ({"logit_bias": {"1": 5}}, "logit_bias", None),
        ({"presence_penalty": 0.5}, "presence_penalty", None),
        ({"store": True}, "store", None),
        ({"extra_body": {"top_k": 4}}, "top_k", "unknown_parameter"),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", None),
        ({"messages": [{"role": "user", "content": "a" * 50}]}, "messages",
         "context_length_exceeded"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_parameter(
    shared: Serving, options: dict[str, Any], param: str, code: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        shared.client().chat.completions.create(**{"model": "a", **GREEDY, **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert code is None or caught.value.code == code
    assert shared.service.turns.places == 0


def test_what_changes_nothing_is_accepted(shared: Serving, base: DecoderBase) -> None:
    text = streamed(
        shared.client(), "a", user="me", metadata={"a": "b"}, store=False, n=1, tools=[],
        logit_bias={}, presence_penalty=0, frequency_penalty=0.0, tool_choice="none",
        response_format={"type": "text"}, parallel_tool_calls=False, service_tier="auto",
    )  # fmt: skip
    assert text == alone(base, SEEDS["a"])


def test_completions_refuse_by_their_own_names(shared: Serving) -> None:
    completions = shared.client().completions
    for options in ({"echo": True}, {"best_of": 2}, {"suffix": "x"}, {"logprobs": 6}):
        with pytest.raises(openai.BadRequestError) as caught:
            completions.create(model="a", prompt="x", **options)
        assert caught.value.param == next(iter(options))
    for prompt in (["a", "b"], [], [10**6], [-1], "a" * 48):
        with pytest.raises(openai.BadRequestError):
            completions.create(model="a", prompt=prompt)
    assert completions.create(model="a", prompt="a" * 47, temperature=0).usage is not None
    assert completions.create(model="a", prompt="", temperature=0).usage is not None


def test_a_base_that_does_not_run_is_a_server_error(served: Serving) -> None:
    served.service.replace("d", lora(1, size=1e30))  # finite, but not what comes of it
    for stream in (True, False):
        with pytest.raises(openai.InternalServerError):
            served.client().chat.completions.create(model="d", stream=stream, **GREEDY)
    assert streamed(served.client(), "a") == alone(served.service.generator.base, SEEDS["a"])


def test_models_of_several_adapters_are_written_in_one_run(tmp_path: Path) -> None:
    """Streams that are begun together, one of which is left half way: each is its own model's text."""
    base = built_base(tmp_path)
    tensors = {name: factors(base.manifest, number) for number, name in enumerate("xyz")}
    tensors["p"] = soft_prompt(base.manifest, 9)
    generator = Generator(base)
    for name, value in tensors.items():
        generator.adapters.put(name, value)
    with serving_texts(base, adapters=tensors) as served:
        asked: dict[str, Any] = {"prompt": PROMPT, "temperature": 1.2, "seed": 5, "max_tokens": 40}
        sampling = Sampling(temperature=1.2)
        together = served.service.turns._together
        assert together is not None
        with served.slow_neighbour(0.005):
            client = served.client()
            streams = {
                name: client.completions.create(model=name, stream=True, **asked)
                for name in ("base", *tensors)
            }
            left = client.completions.create(model="x", stream=True, **asked)
            assert until(lambda: bool(together._batches))
            next(left)
            left.close()
            texts = {
                name: "".join(chunk.choices[0].text for chunk in stream)
                for name, stream in streams.items()
            }
        assert until(lambda: served.service.turns.places == 0)
    for name, text in texts.items():
        request = Request(
            adapter=None if name == "base" else name,
            max_tokens=40, sampling=sampling, seed=5, joins=True,
        )  # fmt: skip
        assert text == "".join(step.text for step in generator.generate(PROMPT, request))
    assert len(set(texts.values())) == len(texts)
