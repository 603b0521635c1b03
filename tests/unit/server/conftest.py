"""A real coordinator over a small real Grid in memory; clients are functions that answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol import PROTOCOL_VERSION, wire
from protocol.encoding import seed_from
from protocol.exchange import Contribution
from protocol.exchange.plain import PlainClient
from protocol.manifest import FileEntry, Graph, Head, Linear, Manifest, TensorEntry, fingerprint_of
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rules import RULES
from protocol.tasks.classification import METRICS
from server.coordinator import Outcome, run_rounds
from server.store import RunStore
from simulations.clock import VirtualClock
from simulations.grid import InProcessGrid


@pytest.fixture
def manifest() -> Manifest:
    """A base that nobody needs to open: two layers, 6 by 5."""
    listed = Manifest(
        fingerprint="a" * 64,
        source="none",
        task="sequence-classification",
        family="bert",
        pooling="mean",
        bits=4,
        block=32,
        hidden_size=5,
        embedding_size=5,
        layers=1,
        vocab_size=9,
        max_positions=64,
        embedding_std=0.05,
        parameters=1,
        linears=[Linear(path=f"m.{i}.query", in_features=5, out_features=6) for i in range(2)],
        head=Head(path="classifier", in_features=5, labels=2),
        graph=Graph(
            file="graph.onnx", opset=20, accuracy_level=0, inputs=["i"], output="logits", slots=[]
        ),
        tensors={"w": TensorEntry(dtype="float32", shape=[1], sha256="0" * 64)},
        files={
            name: FileEntry(sha256="0" * 64, bytes=1)
            for name in ("graph.onnx", "config.json", "tokenizer.json")
        },
        made_with={},
    )
    return listed.model_copy(update={"fingerprint": fingerprint_of(listed)})


@pytest.fixture
def make_plan(manifest: Manifest) -> Callable[..., Plan]:
    def make(rule: str = "alternating", **sections: Any) -> Plan:
        """``rule`` may also be ``lora-sb``."""
        document: dict[str, Any] = {
            "name": "t",
            "seed": 3,
            "rounds": 3,
            "base": {"fingerprint": manifest.fingerprint},
            "task": {"labels": ["a", "b", "c"]},
            "adapter": {"rank": 2, "alpha": 4.0, "targets": ["query"]},
            "rule": {"name": rule if rule in RULES else "alternating"},
            "cohort": {"size": 4, "quorum": 2, "deadline_s": 30.0},
        }
        if rule not in RULES:
            document["adapter"]["method"] = rule
        document |= sections
        document["cohort"] = {"weighting": "examples", **document["cohort"]}
        return plan_from({"secrecy": {"exchange": "plain"}} | document, source="t")

    return make


def reply_with(message: Message, data: bytes) -> Message:
    array = Array(np.frombuffer(data, np.uint8))
    return Message(RecordDict({wire.MASKED: ArrayRecord({"masked": array})}), reply_to=message)


Behaviour = Callable[[Message, bytes], Message]


class Population:
    """Named clients with random, reproducible updates; ``odd`` ones behave as told."""

    def __init__(self, plan: Plan, manifest: Manifest, names: Iterable[str]) -> None:
        self.plan, self.manifest, self.names = plan, manifest, list(names)
        self.odd: dict[str, Behaviour] = {}
        self.asked: list[tuple[int, str]] = []

    def contribution(self, client: str, number: int) -> Contribution:
        size = Recipe(plan=self.plan, manifest=self.manifest).round_layout(number).size
        rng = np.random.default_rng(seed_from(client, number))
        update = rng.normal(0, 0.1, size).astype(np.float32)
        return Contribution(
            update=update, weight=1 + len(client) % 3, metrics=dict.fromkeys(METRICS, 1.0)
        )

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("hello")
        def hello(message: Message, context: Context) -> Message:
            name = self.names[int(context.node_config["partition-id"])]
            content = wire.to_record(
                wire.Hello(client=name, base=self.manifest.fingerprint, protocol=PROTOCOL_VERSION)
            )
            return Message(RecordDict({wire.REPLY: ConfigRecord(content)}), reply_to=message)

        @app.train("mask")
        def mask(message: Message, context: Context) -> Message:
            name = self.names[int(context.node_config["partition-id"])]
            number = int(message.content.config_records[wire.INSTRUCTION]["round"])
            self.asked.append((number, name))
            data = PlainClient().mask(self.contribution(name, number))
            if name in self.odd:
                return self.odd[name](message, data)
            return reply_with(message, data)

        return app


@pytest.fixture
def populate(manifest: Manifest) -> Callable[..., Population]:
    def make(
        plan: Plan, names: Iterable[str] = ("ann", "bo", "cyd", "dora", "eve", "flo")
    ) -> Population:
        return Population(plan, manifest, names)

    return make


@pytest.fixture
def run(manifest: Manifest) -> Callable[..., Outcome]:
    def go(population: Population, folder: Path, listener: Any = None) -> Outcome:
        clock = VirtualClock()
        grid = InProcessGrid(population.app(), len(population.names), clock=clock, deadline_s=30.0)
        store = RunStore(folder)
        try:
            return run_rounds(
                plan=population.plan,
                manifest=manifest,
                grid=grid,
                store=store,
                clock=clock,
                listener=listener,
            )
        finally:
            store.close()

    return go
