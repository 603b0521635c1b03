"""What a device writes before and after: answers of the base and of the released adapter to test prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from base_model.decoder.parity import prompt_of
from client.data import Rows
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.generation import Generator, Request
from protocol.chat.messages import Chat
from protocol.peft_format import EDGE_FILE
from simulations.files import read_json, write_json
from simulations.prepare import Prepared
from simulations.progress import Progress
from simulations.records import adapter_folder

SAMPLES = "samples.json"
ROWS = 4
TOKENS = 48  # of an answer at most
LONGEST = 400  # tokens of a prompt that is shown
ADAPTER = "federated"
Json = dict[str, Any]


def write_samples(prepared: Prepared, rows: Rows, progress: Progress) -> list[Json]:
    """The likeliest answers to a few test prompts, unless they are on file.

    Each has ``prompt``, ``reference``, ``before``, and ``federated`` where the last round was released.
    """
    known: list[Json] | None = read_json(prepared.out / SAMPLES)
    if known is not None:
        return known
    edge = adapter_folder(prepared.out, prepared.plan.rounds) / EDGE_FILE
    generator = Generator(DecoderBase.open(prepared.base, verify=False))
    if edge.is_file():
        generator.adapters.load(ADAPTER, edge)
    samples: list[Json] = []
    for number, (row, tokens, reference) in enumerate(islice(_prompts(generator.base, rows), ROWS)):
        progress.update("samples", number, ROWS)
        answers = {"before": _answer(generator, tokens, None)}
        if edge.is_file():
            answers[ADAPTER] = _answer(generator, tokens, ADAPTER)
        samples.append(
            {"prompt": _shown(row, generator.base, tokens), "reference": reference} | answers
        )
    write_json(prepared.out / SAMPLES, samples)
    return samples


def _prompts(base: DecoderBase, rows: Rows) -> Any:
    """(row, tokens, reference) of those that are short enough to be read."""
    for row, reference in zip(rows.texts, rows.targets, strict=True):
        tokens = prompt_of(base, row)
        if 0 < len(tokens) <= min(LONGEST, base.manifest.max_positions - TOKENS):
            yield row, tokens, reference


def _shown(row: str | Chat, base: DecoderBase, tokens: Sequence[int]) -> str:
    """What was asked last, or the beginning that is to be continued."""
    if isinstance(row, Chat):
        return row.messages[-2]["content"] if len(row.messages) > 1 else ""
    return str(base.tokenizer.decode(list(tokens)))


def _answer(generator: Generator, tokens: Sequence[int], adapter: str | None) -> str:
    steps = generator.generate(tokens, Request(adapter=adapter, max_tokens=TOKENS))
    return "".join(step.text for step in steps).strip()
