"""A plan and data for the tiny base: three kinds of sentence, told apart by their words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.store import OpenBase, open_base
from base_model.verify import open_tokenizer, read_manifest
from client.batches import Encoded, encode
from client.data import Rows
from client.engine.choice import engine_for
from client.engine.interface import Engine
from client.opened_base import opened_base
from client.worker import Worker
from protocol.encoding import vector_digest
from protocol.layout import Tensors, Vector
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe, initial_adapter
from protocol.wire import Instruction
from tests.methods import sections_of
from tests.unit.client.chats import build_chat_bases, plan_for

LABELS = ["light", "music", "timer"]
PlanMaker = Callable[..., Plan]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def words(tiny_base: Path) -> list[str]:
    """Plain words of the tiny tokenizer's vocabulary."""
    vocabulary = json.loads((tiny_base / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(word for word in vocabulary if word.isalpha())


@pytest.fixture(scope="session")
def make_plan(tiny_base: Path) -> PlanMaker:
    """Plans for the tiny base; keyword arguments replace whole sections."""
    fingerprint = read_manifest(tiny_base).fingerprint

    def make(name: str = "mean", **sections: Any) -> Plan:
        """``name`` is a rule's, or a method's under the default rule."""
        document = {
            "name": "test",
            "seed": 7,
            "base": {"fingerprint": fingerprint},
            "task": {"labels": LABELS, "max_length": 16},
            **sections_of(name),
            "local": {"batch_size": 8},
            "cohort": {"weighting": "examples"},
            "secrecy": {"exchange": "plain"},
        }
        return plan_from(document | sections, source="test")

    return make


@pytest.fixture
def base(tiny_base: Path) -> OpenBase:
    """A base of the test's own: peft has not touched it."""
    return open_base(tiny_base, labels=len(LABELS), verify=False)


@pytest.fixture(scope="session")
def rows(words: list[str]) -> Rows:
    """90 rows of 3 to 12 words; the label is the third of the vocabulary they come from."""
    rng = np.random.default_rng(0)
    texts, labels = [], []
    third = len(words) // 3
    for number in range(90):
        label = number % 3
        chosen = rng.choice(words[label * third : (label + 1) * third], int(rng.integers(3, 13)))
        texts.append(" ".join(chosen))
        labels.append(label)
    return Rows(texts=texts, targets=labels)


@pytest.fixture(scope="session")
def encoded(tiny_base: Path, rows: Rows) -> Encoded:
    return encode(open_tokenizer(tiny_base), rows.texts, rows.targets, 16)


@pytest.fixture(scope="session")
def engine_of(tiny_base: Path) -> Callable[[Plan], Engine]:
    """The engine that a client of a plan has on the tiny base; it can train every set of parts."""

    def make(plan: Plan) -> Engine:
        recipe = Recipe(plan=plan, manifest=read_manifest(tiny_base))
        known = frozenset(spec.part for spec in recipe.layout.specs)
        sets = [known, recipe.trainable, *recipe.phases, frozenset({"lora_B", "head"})]
        wanted = list(dict.fromkeys(parts for parts in sets if parts <= known))
        return engine_for(recipe, opened_base(plan, tiny_base), threads=1, parts=wanted)

    return make


@pytest.fixture(scope="session")
def random_adapter(tiny_base: Path) -> Callable[..., Tensors]:
    """A full adapter whose every tensor is non-zero."""
    manifest = read_manifest(tiny_base)

    def make(plan: Plan, *, seed: int = 0) -> Tensors:
        rng = np.random.default_rng(seed)
        layout = Recipe(plan=plan, manifest=manifest).layout
        return {s.name: rng.normal(0, 0.3, s.shape).astype(np.float32) for s in layout.specs}

    return make


@pytest.fixture(scope="session")
def instruct(tiny_base: Path) -> Callable[..., tuple[Instruction, Vector]]:
    """What a coordinator would send: an instruction and the vector that goes with it."""
    manifest = read_manifest(tiny_base)

    def make(
        plan: Plan, *, tensors: Tensors | None = None, **fields: Any
    ) -> tuple[Instruction, Vector]:
        recipe = Recipe(plan=plan, manifest=manifest)
        layout, sent = recipe.layout, recipe.sent_layout
        start = initial_adapter(layout, seed=plan.seed)
        moved = {name: value for name, value in (tensors or {}).items() if name in sent.slices}
        full = start | moved
        vector = sent.flatten({name: full[name] for name in sent.slices})
        instruction = {
            "round": 1,
            "attempt": 1,
            "plan_digest": plan.digest,
            "base": manifest.fingerprint,
            "adapter_digest": vector_digest(layout.flatten(full)),
            "evaluate": False,
        }
        return Instruction(**(instruction | fields)), vector

    return make


@pytest.fixture(scope="session")
def frozen_hash() -> Callable[[torch.nn.Module], dict[str, str]]:
    """sha256 of every tensor of a base, parameters and buffers, adapters left out."""

    def make(model: torch.nn.Module) -> dict[str, str]:
        mine = ("lora_", "modules_to_save", "prompt_encoder")
        return {
            name.replace(".base_layer", "").replace(".original_module", ""): hashlib.sha256(
                tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
            ).hexdigest()
            for name, tensor in model.state_dict().items()
            if not any(part in name for part in mine)
        }

    return make


@pytest.fixture(scope="session")
def chat_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: ``chat`` has a template, ``plain`` has none."""
    return build_chat_bases(tmp_path_factory.mktemp("decoders"))


@pytest.fixture(scope="session")
def chat_site(chat_bases: dict[str, Path]) -> Callable[..., Worker]:
    """A site on one of the bases, with settings of its task."""

    def make(base: str = "chat", **task: Any) -> Worker:
        return Worker(plan_for(chat_bases[base], **task), chat_bases[base])

    return make
