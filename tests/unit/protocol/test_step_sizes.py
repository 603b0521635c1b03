"""A plan whose steps can teach nothing is warned of; those that people use are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.legality import warnings_of
from protocol.plan import Plan, plan_from
from simulations.experiment import load_experiment, shipped

SHIPPED = Path("simulations/experiments")


def plan_of(**sections: Any) -> Plan:
    document: dict[str, Any] = {"name": "p", "base": {"fingerprint": "0" * 64}}
    document["task"] = {"labels": ["a", "b"]}
    return plan_from(document | sections, source="test")


@pytest.mark.parametrize(
    ("section", "settings", "field"),
    [
        ("local", {"learning_rate": 2000.0}, "local.learning_rate"),
        ("local", {"head_learning_rate": 2000.0}, "local.head_learning_rate"),
        ("local", {"learning_rate": 1e-9}, "local.learning_rate"),
        ("local", {"optimizer": "sgd", "learning_rate": 2000.0}, "local.learning_rate"),
        ("local", {"optimizer": "sgd", "clip_norm": 1e9}, "local.learning_rate"),
        ("local", {"optimizer": "sgd", "clip_norm": 1e-9}, "local.learning_rate"),
        ("local", {"weight_decay": 1e4}, "local.weight_decay"),
        ("local", {"optimizer": "sgd", "proximal_mu": 1e4}, "local.proximal_mu"),
        ("local", {"optimizer": "sgd", "l2_sp": 1e4}, "local.l2_sp"),
        ("server", {"learning_rate": 2000.0}, "server.learning_rate"),
        ("server", {"learning_rate": 1e-9}, "server.learning_rate"),
        ("server", {"optimizer": "fedavgm", "learning_rate": 2000.0}, "server.learning_rate"),
        ("server", {"optimizer": "fedadam", "learning_rate": 1.0}, "server.learning_rate"),
        ("server", {"optimizer": "fedyogi", "learning_rate": 2000.0}, "server.learning_rate"),
        ("server", {"optimizer": "fedadam", "learning_rate": 0.01, "beta1": 1.0}, "server.beta1"),
        ("server", {"optimizer": "fedyogi", "learning_rate": 0.01, "beta2": 1.0}, "server.beta2"),
    ],
)
def test_it_is_warned_of_by_its_field(section: str, settings: dict[str, Any], field: str) -> None:
    assert field in [finding.field for finding in warnings_of(plan_of(**{section: settings}))]


def test_momentum_that_never_fades_is_warned_of_in_a_long_run() -> None:
    server = {"optimizer": "fedavgm", "beta1": 1.0}
    fields = [finding.field for finding in warnings_of(plan_of(server=server, rounds=100))]
    assert "server.learning_rate" in fields


@pytest.mark.parametrize("name", shipped())
def test_no_experiment_that_ships_is_warned_of(name: str) -> None:
    experiment = load_experiment(SHIPPED / f"{name}.toml")
    plan = experiment.plan_for(fingerprint="0" * 64, labels=["a", "b"])
    sections = {finding.field.partition(".")[0] for finding in warnings_of(plan)}
    assert sections <= {"secrecy", "cohort"}
