"""Forms: how an adapter may act on the answering graph, whatever method it is of. (P-1.11)

Each is an optional input of the graph, a *slot*, named by a module path and one of these ends. A linear with
all of them computes ``scale * (x W^T + bias + shift) + (x down) up``, one that narrows scales ``x``
instead, a norm ``scale * (norm(x) + shift)``; unfilled ones change nothing. The soft prompt and the head have
slots of their own name. A prefix is no input of a graph that answers: it is what a decoder's cache holds at
first. (P-1.13)
"""

from __future__ import annotations

from typing import Any

import numpy as np

SCALE, SHIFT = ".scale", ".shift"
DOWN, UP = ".lora_A", ".lora_B"  # (in, r), (r, out)
SOFT_PROMPT = "soft_prompt"
KEY, VALUE = "key", "value"
PREFIX = "prefix."  # a layer's, `prefix.L.key` and `prefix.L.value`: (kv_heads, tokens, head_size)
HEAD = "classifier"  # path of a base's head


def prefix_name(layer: int, part: str) -> str:
    """The keys or the values that a decoder's layer has before a text; ``part`` is KEY or VALUE."""
    return f"{PREFIX}{layer}.{part}"


def columnwise_products(left: Any, right: Any) -> Any:
    """(n, r) and (n, s) to (n, r * s): each column of ``left`` times each of ``right``, elementwise.

    The arguments are arrays, or symbols of a program, which know how to write it.
    """
    if isinstance(left, np.ndarray):
        return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
    return left.columnwise_products(right)
