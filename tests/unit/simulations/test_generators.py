from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from simulations.generators import DEVICES, _grammar, home_commands

ROOT = Path(__file__).resolve().parents[3]


def test_devices_know_few_intents_and_every_intent_is_known() -> None:
    made = home_commands(0)
    known: dict[str, set[str]] = defaultdict(set)
    for row in made.train:
        known[row["device"]].add(row["label"])
    intents = {row["label"] for row in made.train}
    assert len(known) == DEVICES
    assert len(intents) == 30
    assert {row["label"] for row in made.test} == intents
    assert max(map(len, known.values())) <= len(intents) / 3


def test_test_texts_are_held_out() -> None:
    """No text of the test is learnt from, and half of them come from phrasings nobody heard."""
    made = home_commands(0)
    assert {row["text"] for row in made.train} & {row["text"] for row in made.test} == set()
    for intent, phrasings in _grammar()["intents"].items():
        assert set(phrasings["learn"]) & set(phrasings["test"]) == set(), intent
        assert len(phrasings["test"]) >= 3


def test_every_slot_is_known() -> None:
    grammar = _grammar()
    for phrasings in grammar["intents"].values():
        for text in [*phrasings["learn"], *phrasings["test"]]:
            assert set(re.findall(r"\{(\w+)\}", text)) <= set(grammar["slots"])


def test_the_seed_alone_decides() -> None:
    assert home_commands(1) == home_commands(1)
    assert home_commands(1) != home_commands(2)
    code = "from simulations.generators import home_commands as h; print(hash(str(h(1))) and len(str(h(1))))"
    outputs = {
        subprocess.run(
            [
                sys.executable,
                "-c",
                code.replace(
                    "hash(str(h(1))) and len(str(h(1)))",
                    "__import__('hashlib').sha256(str(h(1)).encode()).hexdigest()",
                ),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
