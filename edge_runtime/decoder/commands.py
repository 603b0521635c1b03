"""``fedge edge generate`` and ``fedge edge chat``: write text with a base and perhaps an adapter."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_runtime.device_commands import Rank
from protocol.errors import DataError
from protocol.section import MOST_THREADS

if TYPE_CHECKING:
    from edge_runtime.decoder.adapters import Adapters, DecoderAdapter
    from edge_runtime.decoder.generation import Request, Step, Writer
    from edge_runtime.following import Follower

QUIT = "/quit"
LONGEST_LINE = 2**20  # characters of a turn
ADAPTER = "adapter"  # what the one of the command line is called
Base = Annotated[Path | None, typer.Option("--base", help="folder of a base that writes text")]
DeviceOption = Annotated[
    Path | None, typer.Option("--device", help="device.toml: what is in use on the device")
]
Adapter = Annotated[
    Path | None,
    typer.Option("--adapter", help="folder of a release or a blend, or an .onnx_adapter"),
]
Trust = Annotated[
    Path | None, typer.Option("--trust", help="the log's policy: run released adapters only")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="most tokens to write")]
Temperature = Annotated[
    float, typer.Option("--temperature", help="0: the likeliest token; more: more variety")
]
TopK = Annotated[int, typer.Option("--top-k", help="choose among so many tokens; 0: among all")]
TopP = Annotated[float, typer.Option("--top-p", help="choose among tokens of this share together")]
Seed = Annotated[int | None, typer.Option("--seed", help="the same one gives the same text")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="text that ends the answer; may be given again")
]
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=MOST_THREADS, help="0 = as ONNX Runtime thinks best")
]
Json = Annotated[bool, typer.Option("--json", help="machine-readable output")]


def generate(
    prompt: Annotated[str, typer.Argument(help="text to continue")],
    base: Base = None,
    adapter: Adapter = None,
    trust: Trust = None,
    device: DeviceOption = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = 0,
    rank: Rank = None,
    as_json: Json = False,
) -> None:
    """Continue a text; with a base that turns a text into another, write what it makes of it."""
    request = _request(
        bool(adapter or device), max_tokens, (temperature, top_k, top_p), seed, stop, as_json
    )
    opened = _open(base, adapter, trust, device, threads, rank)
    tokens = opened.writer.base.prompt(prompt)
    _answer(opened.steps(lambda: opened.writer.generate(tokens, request)), as_json)


def chat(
    base: Base = None,
    adapter: Adapter = None,
    trust: Trust = None,
    device: DeviceOption = None,
    system: Annotated[str, typer.Option("--system", help="what the assistant is told first")] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = 0,
    rank: Rank = None,
    as_json: Json = False,
) -> None:
    """Answer line after line of standard input, up to its end or `/quit`.

    With --device each turn is written under the release that is in use then.
    """
    from edge_runtime.decoder.chat import chat_prompt, chatting_base
    from edge_runtime.decoder.generation import Conversation
    from protocol.chat.messages import chat_from

    request = _request(
        bool(adapter or device), max_tokens, (temperature, top_k, top_p), seed, stop, as_json
    )
    opened = _open(base, adapter, trust, device, threads, rank)
    chatting = chatting_base(opened.writer.base)
    conversation = Conversation(chatting, opened.writer.adapters)
    messages = [{"role": "system", "content": system}] if system else []
    for line in _lines(prompt=not as_json):
        messages.append({"role": "user", "content": line})
        tokens = chat_prompt(chatting, chat_from(messages))
        begin = partial(conversation.steps, tokens, request)
        text = _answer(opened.steps(begin), as_json)
        messages.append({"role": "assistant", "content": text})


def _request(
    adapted: bool,
    max_tokens: int,
    sampling: tuple[float, int, float],
    seed: int | None,
    stop: list[str] | None,
    as_json: bool,
) -> Request:
    """What the options ask for, verified before a base is opened. Raises DataError."""
    from edge_runtime.decoder.generation import Request
    from edge_runtime.decoder.sampling import Sampling

    temperature, top_k, top_p = sampling
    request = Request(
        adapter=ADAPTER if adapted else None,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        seed=seed,
        stops=tuple(stop or ()),
        logprobs=0 if as_json else None,
    )
    request.verify()
    return request


class Opened:
    """What writes, and whose adapter: the one that was named, or whichever is in use on a device."""

    def __init__(self, writer: Writer, follower: Follower[DecoderAdapter] | None = None) -> None:
        self.writer, self._follower = writer, follower

    def steps(self, begin: Callable[[], Iterator[Step]]) -> Iterator[Step]:
        """A text, under the adapter of now. Raises DeliveryError where a device has no release in use."""
        if self._follower is None:
            return begin()
        self._follower.follow()
        serving = self._follower.serving
        self.writer.adapters.keep(ADAPTER, serving.adapter)
        return self._follower.watched(serving, begin())


def _open(
    base: Path | None,
    adapter: Path | None,
    trust: Path | None,
    device: Path | None,
    threads: int,
    rank: int | None,
) -> Opened:
    """Open what the options name. Raises ArtefactError, ProofError, DataError."""
    from edge_runtime.backends.writing import open_writing

    if (base is None) == (device is None):
        raise typer.BadParameter("give either --base or --device")
    if base is not None:
        backend = open_writing(base, threads=threads)
        _load(backend.writer.adapters, adapter, trust, rank)
        return Opened(backend.writer)
    if adapter or trust or threads or rank:
        raise typer.BadParameter("--adapter, --trust, --threads and --rank go with --base")
    assert device is not None
    from edge_runtime.following import Follower
    from edge_runtime.settings import read_device

    settings = read_device(device)
    backend = open_writing(settings.base, threads=settings.threads)
    return Opened(backend.writer, Follower(settings, backend.load, clock=time.monotonic))


def _load(adapters: Adapters, adapter: Path | None, trust: Path | None, rank: int | None) -> None:
    from edge_runtime.lower_rank import verify_ranked

    verify_ranked(adapter, rank)
    if adapter is None:
        return
    from edge_runtime.passport import read_policy

    policy = read_policy(trust) if trust else None
    loaded = adapters.load(ADAPTER, adapter, policy=policy, rank=rank)
    if loaded.caution:
        typer.echo(f"warning: {loaded.caution}", err=True)
    say_blends([adapter])


def say_blends(files: Iterable[Path]) -> None:
    """A line about each that no log vouches for, since it is a blend. Raises ArtefactError."""
    from edge_runtime.blends.note import is_blend, read_blend

    for folder in filter(is_blend, files):
        typer.echo(f"warning: {read_blend(folder).caution}", err=True)


def _lines(*, prompt: bool) -> Iterator[str]:
    """Lines of standard input that hold something. Raises DataError for one that is no text."""
    if sys.stdin is None:  # closed by whoever started this process
        return
    asks = prompt and sys.stdin.isatty()
    while True:
        if asks:
            typer.echo("> ", nl=False, err=True)
        try:
            line = sys.stdin.readline(LONGEST_LINE)
        except UnicodeDecodeError:
            raise DataError("a line of standard input is not UTF-8", "send it as UTF-8") from None
        if not line or line.strip() == QUIT:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _answer(steps: Iterator[Step], as_json: bool) -> str:
    """Show an answer, while it is written or as one line of JSON; its text."""
    written: list[Step] = []
    for step in steps:
        written.append(step)
        if not as_json:
            typer.echo(shown(step.text), nl=False)
    text = "".join(step.text for step in written)
    if as_json:
        form: dict[str, Any] = {
            "text": text,
            "finish": written[-1].finish,
            "tokens": [step.token for step in written],
            "logprobs": [step.logprob for step in written],
        }
        typer.echo(json.dumps(form))
    else:
        typer.echo()
    return text


def shown(text: str) -> str:
    """Text in which nothing steers a terminal: but for lines and tabs, what is not printable is escaped."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1]
        for letter in text
    )
