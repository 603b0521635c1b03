"""Data that ships with the project: short commands to an assistant at home and in the office.

Thirty intents, some of them opposites (lights on and off). The phrasings lie in
``data/home_commands.toml``. Half of the test's sentences are new ones in phrasings that some device
has heard, half are phrasings that no device ever hears. Twenty devices, each of which knows only a
few intents.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from protocol.encoding import seed_from

DEVICES = 20
LEARN_ROWS, HEARD_ROWS, UNHEARD_ROWS = 40, 10, 10  # per intent; the last two are the test
TYPO_RATE = 0.12  # of rows
Row = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """``train`` rows have text, label and device; ``test`` rows text and label."""

    train: list[Row]
    test: list[Row]


def home_commands(seed: int) -> Generated:
    """The demo's data: the same for the same seed, on every platform."""
    grammar = _grammar()
    owners = _owners(sorted(grammar["intents"]), seed)
    train: list[Row] = []
    test: list[Row] = []
    for intent, phrasings in sorted(grammar["intents"].items()):
        rng = np.random.default_rng(seed_from("home-commands", seed, intent))
        heard = _texts(grammar, phrasings["learn"], LEARN_ROWS + HEARD_ROWS, rng)
        devices = owners[intent]
        train += [
            {"text": text, "label": intent, "device": devices[number % len(devices)]}
            for number, text in enumerate(heard[:LEARN_ROWS])
        ]
        unheard = _texts(grammar, phrasings["test"], UNHEARD_ROWS, rng)
        test += [{"text": text, "label": intent} for text in heard[LEARN_ROWS:] + unheard]
    return Generated(train=train, test=test)


def _grammar() -> dict[str, Any]:
    text = resources.files("simulations").joinpath("data", "home_commands.toml").read_text("utf-8")
    return tomllib.loads(text)


def _owners(intents: list[str], seed: int) -> dict[str, list[str]]:
    """Five or six devices per intent, dealt so that every device gets about as many."""
    rng = np.random.default_rng(seed_from("home-commands", seed, "devices"))
    load = np.zeros(DEVICES)
    owners: dict[str, list[str]] = {}
    for index in rng.permutation(len(intents)):
        count = 5 + int(rng.integers(2))
        order = np.argsort(load + rng.uniform(0, 0.5, DEVICES), kind="stable")[:count]
        load[order] += 1
        owners[intents[index]] = [f"device-{device + 1:02d}" for device in sorted(order.tolist())]
    return owners


def _texts(
    grammar: dict[str, Any], phrasings: list[str], count: int, rng: np.random.Generator
) -> list[str]:
    """``count`` different texts, phrasings in turn."""
    texts: dict[str, None] = {}
    turn = 0
    while len(texts) < count:
        phrasing = phrasings[turn % len(phrasings)]
        turn += 1
        filled = re.sub(
            r"\{(\w+)\}", lambda slot: _pick(grammar["slots"][slot.group(1)], rng), phrasing
        )
        frames = grammar["frames"]
        text = _pick(frames["before"], rng) + filled + _pick(frames["after"], rng)
        texts[_typo(text, rng) if rng.random() < TYPO_RATE else text] = None
    return list(texts)


def _pick(choices: list[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _typo(text: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters of a longer word change places."""
    words = text.split(" ")
    long = [number for number, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    number = long[int(rng.integers(len(long)))]
    word = words[number]
    at = 1 + int(rng.integers(len(word) - 2))
    words[number] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
