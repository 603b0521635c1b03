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
    loaded = load_decoder_adapter(edge_adapter, device)
    prompts = list(_prompts(device, rows, room=Cache(device, loaded).room))
    if not prompts:
        raise ArtefactError(
            "no row has a prompt that fits the base's context", "pass rows with shorter prompts"
        )
    model = torch_adapted(base, adapter)
    expected: list[Logits] = []
    answers: list[Logits] = []
    alike: list[tuple[int, int]] = []
    for number, prompt in enumerate(prompts):
        cache = Cache(device, loaded)
        count = min(TOKENS, cache.room - len(prompt)) if number < WRITTEN else 0
        tokens, logits = written_by_device(cache, prompt, count)
        followed = followed_by_torch(model, prompt, tokens)
        expected += followed
        answers += logits
        if count:
            alike.append(tokens_alike(tokens, followed))
    parity = compare(np.stack(expected), np.stack(answers), bounds)
    return parity.model_copy(update={"tokens": min(alike, default=None)})


def written_by_device(
    cache: Cache, prompt: Sequence[int], count: int
) -> tuple[list[int], list[Logits]]:
    """``count`` tokens, the likeliest each time, and the logits that led to them; of none, of the prompt."""
    seen, tokens = [cache.follow(prompt)], list[int]()
    while len(tokens) < count:
        tokens.append(int(seen[-1].argmax()))
        if len(tokens) < count:
            seen.append(cache.read(tokens[-1:]))
    return tokens, seen


def followed_by_torch(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[Logits]:
    """What torch has in the places of :func:`written_by_device`, in one run of the whole text.

    Without a cache: peft puts a prompt, or a prefix, before whatever it is given, also before what goes on.
    """
    text = torch.tensor([[*prompt, *tokens[:-1]]])
    with torch.no_grad():
        output = model(input_ids=text, attention_mask=torch.ones_like(text))
    return list(output.logits[0, -max(1, len(tokens)) :].numpy())


def tokens_alike(tokens: Sequence[int], followed: Sequence[Logits]) -> tuple[int, int]:
    """How many tokens torch would have written too, before the first that it would not."""
    likeliest = [int(logits.argmax()) for logits in followed]
    same = next(
        (at for at, (a, b) in enumerate(zip(tokens, likeliest, strict=True)) if a != b), len(tokens)
    )
    return same, len(tokens)


def _prompts(base: DecoderBase, rows: Sequence[str | Chat], *, room: int) -> Iterator[list[int]]:
    """Of a chat what stands before its last answer, of a text its first half."""
    for row in rows[:PROMPTS]:
        tokens = prompt_of(base, row)
        if 0 < len(tokens) < room:
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
