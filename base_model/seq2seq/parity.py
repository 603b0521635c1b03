"""Parity of an adapter on a base that turns a text into another: torch on the codes, and a device. (P-5.3)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from base_model.decoder.parity import (
    PROMPTS,
    TOKENS,
    WRITTEN,
    Logits,
    tokens_alike,
    written_by_device,
)
from base_model.decoder.torch_model import opened_adapter
from base_model.parity import Bounds, compare
from base_model.seq2seq.torch_model import torch_seq2seq
from edge_runtime.decoder.adapters import load_decoder_adapter
from edge_runtime.decoder.cache import Cache
from edge_runtime.seq2seq.base import Seq2SeqBase, memory_of
from protocol.errors import ArtefactError
from protocol.peft_format import Parity


def seq2seq_parity(
    base: Path, adapter: Path, edge_adapter: Path, sources: Sequence[str], bounds: Bounds
) -> Parity:
    """As :func:`base_model.decoder.parity.decoder_parity`, for texts that are read and written anew.

    Raises ArtefactError without a source that fits the base.
    """
    device = Seq2SeqBase.open(base, verify=False)
    loaded = load_decoder_adapter(edge_adapter, device)
    most = device.manifest.max_positions
    prompts = [
        tokens for text in sources[:PROMPTS] if 0 < len(tokens := device.encode(text)) <= most
    ]
    if not prompts:
        raise ArtefactError("no row fits the base's context", "pass rows with shorter sources")
    model = opened_adapter(torch_seq2seq(base), adapter)
    start, expected, answers, compared = device.manifest.start, [], [], []
    for number, source in enumerate(prompts):
        memory = memory_of(device.reader, device.manifest, source, loaded.values)
        count = min(TOKENS, most - 1) if number < WRITTEN else 0
        tokens, logits = written_by_device(Cache(device, loaded, memory), [start], count)
        followed = _followed_by_torch(model, source, [start, *tokens[:-1]])
        expected += followed
        answers += logits
        if count:
            compared.append(tokens_alike(tokens, followed))
    parity = compare(np.stack(expected), np.stack(answers), bounds)
    return parity.model_copy(update={"tokens": min(compared, default=None)})


def _followed_by_torch(model: Any, source: Sequence[int], written: Sequence[int]) -> list[Logits]:
    ids = torch.tensor([list(source)])
    with torch.no_grad():
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            decoder_input_ids=torch.tensor([list(written)]),
            use_cache=False,
        )
    return list(output.logits[0].numpy())
