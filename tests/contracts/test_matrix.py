"""docs/methods.md: every method on a base of every task and width trains, agrees with torch, and swaps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.release import release_adapter
from client.data import load_rows
from client.training import train
from client.worker import Worker
from edge_runtime.backends import open_backend
from edge_runtime.backends.drawing import DrawingBackend
from edge_runtime.backends.writing import WritingBackend
from edge_runtime.decoder.generation import Request
from edge_runtime.drawing.sampling import Wish, drawn
from protocol.errors import PlanError
from protocol.manifest import DOCUMENTS
from protocol.media import DRAWN, IMAGE, SOUND
from protocol.methods import METHODS
from tests.contracts.illegal import page, plan_of_mix, refusals
from tests.contracts.matrix import (
    BITS,
    COLUMNS,
    SAMPLES,
    SORTS,
    build,
    document,
    plan_of,
    reason_of,
)
from tests.image_models import write_images
from tests.page_models import pages, row_of
from tests.sound_models import write_sounds
from tests.tiers import first_and_another
from tests.tiny_model import TEXTS
from tests.unit.base_model.sources import WORDS_64

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
SENTENCES = [" ".join(WORDS_64[at : at + 5]) for at in range(0, 30, 5)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "classification": [{"text": text, "label": "abc"[n % 3]} for n, text in enumerate(TEXTS[:4])],
    "regression": [{"text": text, "target": n / 4} for n, text in enumerate(TEXTS[:4])],
    IMAGE.task: [{"image": f"files/{n}.png", "label": "abc"[n % 3]} for n in range(4)],
    SOUND.task: [{"audio": f"files/{n}.wav", "label": "abc"[n % 3]} for n in range(4)],
    DRAWN.task: [{"image": f"files/{n}.png", "label": "abc"[n % 3]} for n in range(4)],
    SAMPLES: [{"audio": f"files/{n}.wav", "label": "abc"[n % 3]} for n in range(4)],
    DOCUMENTS: [row_of(page, "abc"[n % 3]) for n, page in enumerate(pages(4))],
    "causal-lm": [{"text": text} for text in SENTENCES],
    "seq2seq-lm": [{"source": text, "target": text} for text in SENTENCES],
}

FILES = {
    IMAGE.task: write_images,
    DRAWN.task: write_images,
    SOUND.task: write_sounds,
    SAMPLES: write_sounds,
}


@pytest.fixture(scope="module")
def bases(
    tmp_path_factory: pytest.TempPathFactory, tiny_source: Path
) -> Callable[[str, int], Path]:
    folder, built = tmp_path_factory.mktemp("matrix"), dict[tuple[str, int], Path]()

    def base(task: str, bits: int) -> Path:
        key = (SORTS[0] if task in SORTS else task, bits)
        if key not in built:
            built[key] = build(key[0], bits, folder, tiny_source)
        return built[key]

    return base


def answers(backend: Any, adapter: Any, rows: list[Any]) -> list[Any]:
    """What a device says under an adapter."""
    if isinstance(backend, WritingBackend):
        prompt = backend.writer.base.prompt(SENTENCES[0])
        steps = backend.writer.text(prompt, Request(max_tokens=6, logprobs=0), adapter).steps
        return [(step.token, step.logprob) for step in steps if step is not None]
    if isinstance(backend, DrawingBackend):
        return [drawn(backend.base, adapter, Wish(label="b", steps=4)).tobytes()]
    return list(backend.runtime.infer(rows, adapter))


@pytest.mark.parametrize(("task", "bits"), first_and_another(list(COLUMNS), BITS))
def test_every_cell(
    bases: Callable[[str, int], Path],
    write_adapter: Callable[..., Path],
    tmp_path: Path,
    task: str,
    bits: int,
) -> None:
    base = bases(task, bits)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    texts: list[Any] = list(TEXTS if task in SORTS else SENTENCES)
    if task in FILES:
        texts = list(FILES[task](tmp_path / "files", 5))
    elif task == DOCUMENTS:
        texts = list(pages(5, seed=9))
    backend, first = open_backend(base, threads=1), None
    for seed, method in enumerate(METHODS):  # of one seed, lora and dylora have the same numbers
        if reason_of(base, task, method):
            with pytest.raises(PlanError):
                Worker(plan_of(base, task, method), base)
            continue
        moves(Worker(plan_of(base, task, method), base, threads=1), path)
        folder = write_adapter(
            tmp_path / method,
            method=method,
            base=base,
            task=COLUMNS[task],
            deviation=0.1,
            seed=seed,
        )
        loose = "lm" in task and bits == 8  # products of whole numbers, in two parts
        note = release_adapter(folder, base, texts=texts, bound=1e-3 if loose else 1e-4)
        assert note.parity is not None
        loaded = backend.load(folder)
        said = answers(backend, loaded, texts)
        if first is None:
            first = (loaded, said)
        else:
            assert said != first[1], method
            assert answers(backend, first[0], texts) == first[1], method


def moves(site: Worker, rows: Path) -> None:
    """Steps change each tensor of a phase, and no other."""
    encoded = site.encode(load_rows(rows, site.plan.task))
    start = dict(site.recipe.start())
    rng = np.random.default_rng(0)
    for spec in site.recipe.layout.specs:  # of a start of zeros, half the gradients are
        start[spec.name] = start[spec.name] + rng.normal(0, 0.05, spec.shape).astype(np.float32)
    for parts in site.recipe.phases:
        how: dict[str, Any] = {"local": site.plan.local, "parts": parts, "seed": 0, "epochs": 2}
        after = train(site.engine, start, encoded, **how)
        for spec in site.recipe.layout.specs:
            same = after.tensors[spec.name].tobytes() == start[spec.name].tobytes()
            assert same == (spec.part not in parts), (site.plan.adapter.method, spec.name)


def test_the_page_is_what_is_legal(bases: Callable[[str, int], Path]) -> None:
    """The same at every width; and nothing is blank."""
    reasons = {
        bits: {
            (method, task): reason_of(bases(task, bits), task, method)
            for method in METHODS
            for task in COLUMNS
        }
        for bits in BITS
    }
    assert all(reasons[bits] == reasons[4] for bits in BITS)
    rows = refusals(reasons[4], lambda task: bases(task, 4))
    assert len({mix.words for mix, _ in rows}) == len(rows) >= 40
    assert (ROOT / "docs" / "methods.md").read_text("utf-8") == document(reasons[4], page(rows))


def test_a_mix_that_is_refused_stops_a_client(bases: Callable[[str, int], Path]) -> None:
    """One of each field; what nobody can even read is left out."""
    reasons = {(m, t): reason_of(bases(t, 4), t, m) for m in METHODS for t in COLUMNS}
    tried = set()
    for mix, error in refusals(reasons, lambda task: bases(task, 4)):
        if error.cause.startswith("the mix: ") or mix.refused in tried:
            continue
        tried.add(mix.refused)
        base = bases(mix.task, 4)
        with pytest.raises(PlanError, match=re.escape(f"`{mix.refused}")):
            Worker(plan_of_mix(mix, base), base)
    assert len(tried) >= 8
