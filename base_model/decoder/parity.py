"""Parity of an adapter on a base that writes text: torch on the codes, and what a device writes. (P-5.3)

Both read the prompts of the same rows; of some both write on, greedily, each its own text. Compared are the
logits behind every prompt, and behind every token of what torch writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from base_model.decoder.torch_model import torch_adapted
from base_model.parity import Bounds, compare
from edge_runtime.decoder.adapters import load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.chat import chat_prompt
from protocol.chat.messages import ASSISTANT, Chat
from protocol.errors import ArtefactError
from protocol.peft_format import Parity

PROMPTS = 16  # rows whose prompts are read
WRITTEN = 2  # of them, so many are written on
TOKENS = 64  # by so many tokens
Logits = npt.NDArray[np.float32]


def decoder_parity(
    base: Path, adapter: Path, edge_adapter: Path, rows: Sequence[str | Chat], bounds: Bounds
) -> Parity:
    """Of a PEFT folder and the file of the same adapter for devices.

    ``tokens`` of the result are those that both write alike before the first difference, in the worst row,
    and how many were written. Raises ArtefactError without a prompt that fits the base.
    """
    device = DecoderBase.open(base, verify=False)
    prompts = list(_prompts(device, rows))
    if not prompts:
        raise ArtefactError(
            "no row has a prompt that fits the base's context", "pass rows with shorter prompts"
        )
    loaded = load_decoder_adapter(edge_adapter, device)
    model = torch_adapted(base, adapter)
    expected: list[Logits] = []
    answers: list[Logits] = []
    alike: list[tuple[int, int]] = []
    for number, prompt in enumerate(prompts):
        count = min(TOKENS, device.manifest.max_positions - len(prompt)) if number < WRITTEN else 0
        tokens, logits = written_by_torch(model, prompt, count)
        cache = Cache(device, loaded)
        followed = [
            cache.follow(prompt),
            *(cache.read([token]) for token in tokens[: len(logits) - 1]),
        ]
        expected += logits
        answers += followed
        if count:
            alike.append(_alike(tokens, written_by_device(Cache(device, loaded), prompt, count)))
    parity = compare(np.stack(expected), np.stack(answers), bounds)
    return parity.model_copy(update={"tokens": min(alike, default=None)})


def written_by_torch(
    model: Any, prompt: Sequence[int], count: int
) -> tuple[list[int], list[Logits]]:
    """``count`` tokens, the likeliest each time, and the logits that led to them; of none, of the prompt."""
    tokens: list[int] = []
    seen: list[Logits] = []
    ids, past = torch.tensor([list(prompt)]), None
    with torch.no_grad():
        for _ in range(max(count, 1)):
            output = model(input_ids=ids, past_key_values=past, use_cache=True)
            seen.append(output.logits[0, -1].numpy().copy())
            tokens.append(int(seen[-1].argmax()))
            ids, past = torch.tensor([tokens[-1:]]), output.past_key_values
    return tokens[:count], seen


def written_by_device(cache: Cache, prompt: Sequence[int], count: int) -> list[int]:
    """The same by the device's graph."""
    logits, tokens = cache.follow(prompt), list[int]()
    while len(tokens) < count:
        tokens.append(int(logits.argmax()))
        if len(tokens) < count:
            logits = cache.read(tokens[-1:])
    return tokens


def _alike(expected: Sequence[int], tokens: Sequence[int]) -> tuple[int, int]:
    same = next(
        (at for at, (a, b) in enumerate(zip(expected, tokens, strict=True)) if a != b), len(tokens)
    )
    return same, len(tokens)


def _prompts(base: DecoderBase, rows: Sequence[str | Chat]) -> Iterator[list[int]]:
    """Of a chat what stands before its last answer, of a text its first half."""
    for row in rows[:PROMPTS]:
        tokens = prompt_of(base, row)
        if 0 < len(tokens) < base.manifest.max_positions:
            yield tokens


def prompt_of(base: DecoderBase, row: str | Chat) -> list[int]:
    """Tokens of the prompt of a row; none of a chat that asks nothing."""
    if not isinstance(row, Chat):
        tokens = base.encode(row)
        return tokens[: max(1, len(tokens) // 2)]
    asked = leading(row)
    if not asked.messages:
        return []
    if base.template is None:
        return base.encode("".join(message["content"] for message in asked.messages))
    return chat_prompt(base, asked)


def leading(chat: Chat) -> Chat:
    """What stands before its last answer."""
    last = max(at for at, message in enumerate(chat.messages) if message["role"] == ASSISTANT)
    return Chat(messages=chat.messages[:last])
