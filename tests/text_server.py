"""A server of texts in this process: a tiny decoder, adapters that write texts unlike each other, a slow neighbour."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from uvicorn.server import Server

from edge_runtime.adapter import Tensors
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.chat import chat_prompt
from edge_runtime.decoder.generation import Generator, Request, Step
from edge_runtime.decoder.http.app import TextApp
from edge_runtime.decoder.http.service import TextService
from edge_runtime.http_server import settings_of
from protocol.chat.messages import chat_from
from tests.tiny_decoder import lora, write_tiny_decoder

SEEDS = {"a": 2, "b": 3, "c": 4, "d": 6}  # of adapters whose texts fill the context
HI: list[Any] = [{"role": "user", "content": "hi"}]
OTHER = 8  # seed of one that takes another's place


@dataclass(frozen=True, kw_only=True)
class Serving:
    service: TextService
    server: Server
    port: int

    def client(self) -> OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20)

    @contextmanager
    def slow_neighbour(self, seconds: float = 0.004) -> Iterator[list[str]]:
        """A text that takes turns like any other, and its time; the list says how it ended."""
        ended: list[str] = []

        def steps() -> Iterator[Step]:
            try:
                while True:
                    time.sleep(seconds)
                    yield Step(token=1, text="")
            finally:
                ended.append("closed")

        turns = self.service.turns
        with turns.place() as turn:
            turns.begin(turn, steps(), lambda _: None)
            yield ended


@contextmanager
def serving_texts(
    base: DecoderBase,
    *,
    queue: int = 16,
    at_once: int = 8,
    adapters: Mapping[str, Tensors] | None = None,
) -> Iterator[Serving]:
    service = TextService(base, {}, queue=queue, at_once=at_once)
    own = {name: lora(seed) for name, seed in SEEDS.items()} if adapters is None else adapters
    for name, tensors in own.items():
        service.replace(name, tensors)
    config = settings_of(TextApp(service))
    config.port = 0
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Serving(service=service, server=server, port=port)
    finally:
        service.end()
        server.should_exit = True
        thread.join(20)


def alone(base: DecoderBase, seed: int | None, request: Mapping[str, Any] | None = None) -> str:
    """What the answer to `hi` is when nobody else asks."""
    generator = Generator(base)
    if seed is not None:
        generator.adapters.put("x", lora(seed))
    asked = Request(adapter=None if seed is None else "x", **{"max_tokens": 99, **(request or {})})
    prompt = chat_prompt(base, chat_from(HI))
    return "".join(step.text for step in generator.generate(prompt, asked))


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def tiny_base(folder: Path) -> DecoderBase:
    return DecoderBase.open(write_tiny_decoder(folder / "tiny"), threads=1)
