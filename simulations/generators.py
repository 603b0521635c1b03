"""Data that ships with the project: short commands to an assistant at home and in the office.

Thirty intents, some of them opposites (lights on and off). The phrasings lie in
``data/home_commands.toml``. Half of the test's sentences are new ones in phrasings that some device
has heard, half are phrasings that no device ever hears. Twenty devices, each of which knows only a
few intents.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from protocol.encoding import seed_from

DEVICES = 20
LEARN_ROWS, HEARD_ROWS, UNHEARD_ROWS = 40, 10, 10  # per intent; the last two are the test
TYPO_RATE = 0.12  # of rows
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """A sentence, its intent, and what it says of it by name."""

    text: str
    intent: str
    slots: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """``train`` rows have text and label, or messages, and device; ``test`` rows have no device."""

    train: list[Row]
    test: list[Row]


def home_commands(seed: int) -> Generated:
    """The demo's data: the same for the same seed, on every platform."""

    def row(spoken: Spoken) -> Row:
        return {"text": spoken.text, "label": spoken.intent}

    return _generated(seed, row, test=HEARD_ROWS)


def home_chats(seed: int) -> Generated:
    """The same commands as chats: the assistant answers with what a hub can carry out, as JSON."""

    def row(spoken: Spoken) -> Row:
        answer = json.dumps({"do": spoken.intent, **spoken.slots})
        return {"messages": [_message("user", spoken.text), _message("assistant", answer)]}

    return _generated(seed, row, test=1)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _generated(seed: int, row: Callable[[Spoken], Row], *, test: int) -> Generated:
    """Rows of every intent; ``test``: of an intent in phrasings that were heard, and as many unheard."""
    grammar = _grammar()
    owners = _owners(sorted(grammar["intents"]), seed)
    train: list[Row] = []
    tested: list[Row] = []
    for intent, phrasings in sorted(grammar["intents"].items()):
        rng = np.random.default_rng(seed_from("home-commands", seed, intent))
        heard = _spoken(grammar, intent, phrasings["learn"], LEARN_ROWS + HEARD_ROWS, rng)
        devices = owners[intent]
        train += [
            row(spoken) | {"device": devices[number % len(devices)]}
            for number, spoken in enumerate(heard[:LEARN_ROWS])
        ]
        unheard = _spoken(grammar, intent, phrasings["test"], UNHEARD_ROWS, rng)
        tested += map(row, heard[LEARN_ROWS : LEARN_ROWS + test] + unheard[:test])
    return Generated(train=train, test=tested)


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


def _spoken(
    grammar: dict[str, Any],
    intent: str,
    phrasings: list[str],
    count: int,
    rng: np.random.Generator,
) -> list[Spoken]:
    """``count`` different texts, phrasings in turn."""
    texts: dict[str, Spoken] = {}
    turn = 0
    while len(texts) < count:
        phrasing = phrasings[turn % len(phrasings)]
        turn += 1
        slots = {
            name: _pick(grammar["slots"][name], rng) for name in re.findall(r"\{(\w+)\}", phrasing)
        }
        frames = grammar["frames"]
        text = _pick(frames["before"], rng) + phrasing.format(**slots) + _pick(frames["after"], rng)
        text = _typo(text, rng) if rng.random() < TYPO_RATE else text
        texts[text] = Spoken(text=text, intent=intent, slots=slots)
    return list(texts.values())


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
