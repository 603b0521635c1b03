"""``fedge edge generate`` and ``fedge edge chat``: write text with a base and perhaps an adapter."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.decoder_manifest import DecoderManifest
from protocol.errors import DataError
from protocol.section import MOST_THREADS
from protocol.seq2seq_manifest import is_seq2seq

if TYPE_CHECKING:
    from edge_runtime.decoder.adapters import Adapters
    from edge_runtime.decoder.generation import Generator, Request, Step
    from edge_runtime.seq2seq.generation import Translator

QUIT = "/quit"
LONGEST_LINE = 2**20  # characters of a turn
ADAPTER = "adapter"  # what the one of the command line is called
Base = Annotated[Path, typer.Option("--base", help="folder of a base that writes text")]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="folder of a released adapter, or an .onnx_adapter")
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
    base: Base,
    adapter: Adapter = None,
    trust: Trust = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Continue a text; with a base that turns a text into another, write what it makes of it."""
    request = _request(adapter, max_tokens, (temperature, top_k, top_p), seed, stop, as_json)
    generator = _open_any(base, adapter, trust, threads)
    tokens = generator.base.encode(prompt)
    if not tokens and isinstance(generator.base.manifest, DecoderManifest):
        tokens = _begin(generator.base.manifest)
    steps = generator.generate(tokens, request)
    _answer(steps, as_json)


def chat(
    base: Base,
    adapter: Adapter = None,
    trust: Trust = None,
    system: Annotated[str, typer.Option("--system", help="what the assistant is told first")] = "",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Answer line after line of standard input, up to its end or `/quit`."""
    from edge_runtime.decoder.chat import chat_prompt, verify_chats
    from protocol.chat.messages import chat_from

    request = _request(adapter, max_tokens, (temperature, top_k, top_p), seed, stop, as_json)
    generator = _open(base, adapter, trust, threads)
    verify_chats(generator.base)
    conversation = generator.conversation()
    messages = [{"role": "system", "content": system}] if system else []
    for line in _lines(prompt=not as_json):
        messages.append({"role": "user", "content": line})
        tokens = chat_prompt(generator.base, chat_from(messages))
        text = _answer(conversation.steps(tokens, request), as_json)
        messages.append({"role": "assistant", "content": text})


def _request(
    adapter: Path | None,
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
        adapter=ADAPTER if adapter else None,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        seed=seed,
        stops=tuple(stop or ()),
        logprobs=0 if as_json else None,
    )
    request.verify()
    return request


def _open(base: Path, adapter: Path | None, trust: Path | None, threads: int) -> Generator:
    from edge_runtime.decoder.base import DecoderBase
    from edge_runtime.decoder.generation import Generator

    generator = Generator(DecoderBase.open(base, threads=threads))
    _load(generator.adapters, adapter, trust)
    return generator


def _open_any(
    base: Path, adapter: Path | None, trust: Path | None, threads: int
) -> Generator | Translator:
    """What writes with this base, be it from a prompt or from another text."""
    from edge_runtime.base import manifest_text

    if not is_seq2seq(manifest_text(base)):
        return _open(base, adapter, trust, threads)
    from edge_runtime.seq2seq.base import Seq2SeqBase
    from edge_runtime.seq2seq.generation import Translator

    translator = Translator(Seq2SeqBase.open(base, threads=threads))
    _load(translator.adapters, adapter, trust)
    return translator


def _load(adapters: Adapters, adapter: Path | None, trust: Path | None) -> None:
    if adapter is not None:
        from edge_runtime.passport import read_policy

        adapters.load(ADAPTER, adapter, policy=read_policy(trust) if trust else None)


def _begin(manifest: DecoderManifest) -> list[int]:
    """The prompt that an empty text is: the token that begins texts, if the base has one."""
    return [] if manifest.begin is None else [manifest.begin]


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
