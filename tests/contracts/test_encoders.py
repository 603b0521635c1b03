"""A plan with an encoder trains and releases; whoever gets what it made sees a prompt or a prefix like another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.release import release_adapter
from base_model.verify import read_manifest
from client.data import load_rows
from client.training import train
from client.worker import Worker
from edge_runtime.backends import open_backend
from edge_runtime.backends.writing import WritingBackend
from edge_runtime.decoder.generation import Request
from protocol.encoding import vector_digest
from protocol.forms import PREFIX, SOFT_PROMPT
from protocol.layout import Tensors
from protocol.peft_format import CONFIG_FILE, WEIGHTS_FILE
from protocol.plan import Plan
from protocol.recipe import Recipe
from server.peft_folder import write_peft_folder
from tests.contracts.matrix import SORTS, build, plan_of
from tests.contracts.test_matrix import ROWS, SENTENCES
from tests.methods import adapter_of
from tests.tiny_model import TEXTS

ENCODER = {"encoder": "mlp", "encoder_width": 16}
CELLS = [("prompt", "classification"), ("prompt", "causal-lm"), ("prefix", "causal-lm")]


@pytest.fixture(scope="module")
def base_of(
    tiny_base: Path, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    bases = {SORTS[0]: tiny_base}

    def base(task: str) -> Path:
        if task not in bases:
            bases[task] = build(task, 4, tmp_path_factory.mktemp("bases"), tiny_source)
        return bases[task]

    return base


def written(folder: Path, tensors: Tensors, recipe: Recipe) -> Path:
    digest = vector_digest(recipe.published_layout.flatten(recipe.published(tensors)))
    write_peft_folder(
        folder,
        tensors,
        recipe=recipe,
        round_number=1,
        adapter_digest=digest,
        exchange="plain",
        secure=False,
        metrics={},
    )
    return folder


def answered(base: Path, folder: Path) -> Any:
    backend = open_backend(base, threads=1)
    adapter = backend.load(folder)
    if isinstance(backend, WritingBackend):
        prompt = backend.writer.base.prompt(SENTENCES[0])
        steps = backend.writer.text(prompt, Request(max_tokens=6, logprobs=0), adapter).steps
        return [(step.token, step.logprob) for step in steps if step is not None]
    return list(backend.runtime.infer(TEXTS, adapter))


@pytest.mark.parametrize(("method", "task"), CELLS)
def test_it_trains_and_releases(
    base_of: Callable[[str], Path], tmp_path: Path, method: str, task: str
) -> None:
    base = base_of(task)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))

    def plan(**adapter: Any) -> Plan:
        return plan_of(base, task, method, adapter=adapter_of(method) | adapter)

    site = Worker(plan(**ENCODER), base, threads=1)
    encoded = site.encode(load_rows(path, site.plan.task))
    start, parts = site.recipe.start(), site.recipe.parts(1)
    local = site.plan.local.model_copy(update={"batch_size": 2})
    after = train(
        site.engine,
        start,
        encoded,
        local=local,
        parts=parts,
        seed=0,
        epochs=3,
        recipe=site.recipe,
    )
    for name, value in after.tensors.items():
        assert (value != start[name]).any(), name
    name = {"prompt": SOFT_PROMPT, "prefix": PREFIX}[method]
    assert (after.tensors[name] != start[name]).all()

    plain = Recipe(plan=plan(), manifest=read_manifest(base))
    ours = written(tmp_path / "encoded", after.tensors, site.recipe)
    theirs = written(tmp_path / "plain", after.tensors, plain)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    texts = TEXTS if task in SORTS else SENTENCES
    note = release_adapter(ours, base, texts=texts, bound=1e-4)
    assert note.parity is not None
    assert note.parity.max_relative <= 1e-4
    begun = written(tmp_path / "begun", dict(start), site.recipe)
    release_adapter(begun, base, texts=texts, bound=1e-4)
    assert answered(base, ours) != answered(base, begun)


@pytest.mark.parametrize(("method", "task"), CELLS)
def test_round_0_and_what_is_sent_are_as_without(
    base_of: Callable[[str], Path], method: str, task: str
) -> None:
    base = base_of(task)
    encoded, plain = (
        Recipe(
            plan=plan_of(base, task, method, adapter=adapter_of(method) | adapter),
            manifest=read_manifest(base),
        )
        for adapter in (ENCODER, {})
    )
    assert encoded.layout == plain.layout
    assert encoded.sent_layout == plain.sent_layout
    assert encoded.phases == plain.phases
    vectors = [recipe.layout.flatten(recipe.start()) for recipe in (encoded, plain)]
    assert np.array_equal(*vectors)
    assert encoded.tokens == plain.tokens
