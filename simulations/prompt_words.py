"""A soft prompt in words: for each of its rows the tokens whose embeddings point the same way.

It shows where a row lies among words, not what the model reads in it. Nearest words are Lester et al.'s
(arXiv 2104.08691); Khashabi et al. (arXiv 2112.08348) have prompts that do one task while these say another.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from base_model.nearest_words import nearest_words
from protocol.forms import SOFT_PROMPT
from simulations.files import read_json, write_json
from simulations.prepare import Prepared
from simulations.records import published_adapter

PROMPT_WORDS = "prompt_words.json"
COUNT = 5  # tokens of a row
Json = dict[str, Any]


def explain_prompt(prepared: Prepared) -> list[Json] | None:
    """Write the nearest tokens of the last round's prompt, unless they are on file; None without a prompt.

    Of each row ``row``, from 1 on, and ``nearest``: ``token``, ``id`` and ``similarity`` of each.
    """
    known: list[Json] | None = read_json(prepared.out / PROMPT_WORDS)
    if known is not None:
        return known
    prompt = published_adapter(prepared.out, prepared.plan.rounds).get(SOFT_PROMPT)
    if prompt is None:
        return None
    rows = nearest_words(prepared.base, np.asarray(prompt, np.float32), count=COUNT)
    words = [
        {"row": number, "nearest": [asdict(near) for near in row]}
        for number, row in enumerate(rows, 1)
    ]
    write_json(prepared.out / PROMPT_WORDS, words)
    return words
