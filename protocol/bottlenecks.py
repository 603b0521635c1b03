"""Where a bottleneck may stand in an encoder: at attention outputs, feed-forwards, word embeddings. (P-1.11)

Hugging Face's families call them differently; what is listed here is what P-1.11 lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Place = Literal["attention", "output", "beside"]
WORDS = ".word_embeddings"  # end of the path of what gives a word its vector, in every family
# Trailing components of module paths; of a feed-forward its first and its second linear.
ATTENTION_OUTPUTS = (
    "attention.output.dense",
    "attention.out_lin",
    "attention.attn.o",
    "attention.dense",
    "attention.o_proj",
    "self_attn.out_proj",
    "attention.out_proj",
)
FEED_FORWARDS = (
    ("intermediate.dense", "output.dense"),
    ("ffn.lin1", "ffn.lin2"),
    ("ffn", "ffn_output"),
    ("fc1", "fc2"),
    ("feed_forward.intermediate_dense", "feed_forward.output_dense"),
)


def feed_forwards(paths: Iterable[str]) -> dict[str, str]:
    """Paths of the second linears by those of the first ones, sorted."""
    every, pairs = frozenset(paths), dict[str, str]()
    for path in sorted(every):
        for first, second in FEED_FORWARDS:
            partner = path.removesuffix(first) + second
            if path.endswith(f".{first}") and partner in every:
                pairs[path] = partner
    return pairs


def bottleneck_places(paths: Iterable[str]) -> dict[str, Place]:
    """What a bottleneck at a linear's path does, sorted by path.

    Behind the output of an ``attention`` or of a feed-forward (``output``); at the path of a feed-forward's
    first linear it lies ``beside`` the two, from the input of the first to the output of the second.
    """
    every = tuple(paths)
    pairs, places = feed_forwards(every), dict[str, Place]()
    for first, second in pairs.items():
        places |= {first: "beside", second: "output"}
    for path in every:
        if path.endswith(tuple(f".{end}" for end in ATTENTION_OUTPUTS)):
            places[path] = "attention"
    return {path: places[path] for path in sorted(places)}
