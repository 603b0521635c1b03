"""Bounds of documents that others wrote, and of what a plan may ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.documents import MOST_LEVELS, OddError, parse_json, parse_toml
from protocol.errors import MOST_SHOWN, FedgeError, PlanError
from protocol.legality import check
from protocol.misspelling import nearest
from protocol.plan import plan_from, plan_from_text
from protocol.privacy.accounting import Spent, epsilon
from protocol.privacy.planned import mechanism_of, planned_epsilon, round_sizes
from protocol.recipe import Recipe
from tests.unit.audit.runs import PLAN, small_plan
from tests.unit.audit.small_bases import small_manifest

LONG = "9" * 5000


@pytest.mark.parametrize(
    "text",
    [
        LONG,
        f'{{"a": {LONG}}}',
        f"0.{LONG}",
        "1e999",
        "NaN",
        "-Infinity",
        r'"\ud800"',
        r'{"\udc00": 1}',
        '{"a": 1, "a": 2}',
        "[" * 40 + "]" * 40,
        "[" * 100_000,
        '{"a":' * 100_000,
        "\ud800",
        "",
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        "[" + "1," * 2**18 + "1]",
        '"' + "a" * 2**24 + '"',
    ],
)
def test_json_beyond_bounds(text: str | bytes) -> None:
    with pytest.raises(OddError):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        f"a = {LONG}",
        "a = 0x" + "f" * 5000,
        "a = inf",
        "a = nan",
        "a = 1e400",
        "a = " + "[" * 40 + "]" * 40,
        "a = " + "[" * 5000,
        ".".join("a" * 33) + " = 1",
        ".".join("a" * 100_000) + " = 1",
        "[" + ".".join("a" * 100_000) + "]",
        "b = {" + " . ".join("a" * 100_000) + " = 1}",
        '"a"' + '."a"' * 50_000 + " = 1",
        b"a = '\xff'",
        "a = '" + "a" * 2**20 + "'",
    ],
)
def test_toml_beyond_bounds(text: str | bytes) -> None:
    with pytest.raises(OddError):
        parse_toml(text)


def test_what_is_within_bounds_is_taken() -> None:
    deep = "[" * MOST_LEVELS + "]" * MOST_LEVELS
    for text in (deep, r'"😀"', "18446744073709551615", "1.5e300", '"\\u0000"'):
        assert parse_json(text) == json.loads(text)
    assert parse_toml('a.b.c = 1\n[x."y z"]\nd = "a.b.c.d.e.f"') == {
        "a": {"b": {"c": 1}},
        "x": {"y z": {"d": "a.b.c.d.e.f"}},
    }


def test_an_error_is_one_short_line_whatever_it_quotes() -> None:
    error = FedgeError("a\x1b[2J\u202e\ud800" * 10_000, "b\n" * 10_000)
    for line in (error.cause, error.remedy):
        assert line.isprintable()
        assert len(line) <= MOST_SHOWN


# -- plans ----------------------------------------------------------------------------------------

HUGE: list[tuple[str, str, Any]] = [
    ("", "rounds", 10**9),
    ("cohort", "size", 10**9),
    ("cohort", "attempts", 10**9),
    ("cohort", "deadline_s", 1e300),
    ("adapter", "rank", 10**9),
    ("adapter", "tokens", 10**9),
    ("adapter", "alpha", 1e300),
    ("adapter", "alpha", 1e-300),
    ("adapter", "targets", ["query"] * 10_000),
    ("local", "epochs", 10**9),
    ("local", "max_steps", 10**12),
    ("local", "batch_size", 10**9),
    ("evaluation", "every", 10**9),
    ("release", "every", 10**9),
    ("secrecy", "clip", 1e300),
    ("privacy", "rounds_per_client", 10**9),
    ("privacy", "corrupt", 10**9),
    ("privacy", "delta", 1e-300),
    ("task", "max_length", 10**9),
    ("task", "labels", [str(n) for n in range(10_000)]),
    ("task", "labels", ["a", "b" * 1000]),
    ("task", "labels", ["a", "\x1b[2J"]),
    ("task", "labels", ["a", ""]),
    ("task", "text", "a" * 1000),
    ("audit", "witnesses", ["w"] * 1000),
    ("audit", "log", "a" * 1000),
    ("audit", "witness_quorum", 10**9),
    ("rule", "name", "a" * 1000),
]


@pytest.mark.parametrize(("section", "key", "value"), HUGE)
def test_a_number_that_no_plan_needs(section: str, key: str, value: Any) -> None:
    document = {**PLAN, "base": {"fingerprint": "0" * 64}}
    table = {**document.get(section, {}), key: value}
    document |= {section: table} if section else {key: value}
    with pytest.raises(PlanError, match=key):
        plan_from(document, source="plan")


@pytest.mark.parametrize("log", [r"\ud800", "é+00000000+AA==", "\\u0007+0+0"])
def test_a_witnessed_plan_with_an_odd_key_is_a_wrong_plan(log: str) -> None:
    text = json.dumps(
        {
            **PLAN,
            "base": {"fingerprint": "0" * 64},
            "audit": {"log": "LOG", "witnesses": ["LOG"], "witness_quorum": 1},
        }
    )
    text = text.replace("LOG", log)
    try:
        found = check(plan_from_text(text, source="plan.json"))
    except PlanError:
        return
    assert any(one.severity == "error" and one.field == "audit.log" for one in found)


def test_repeated_labels_are_named_among_thousands() -> None:
    labels = [str(n) for n in range(4000)]
    document = {**PLAN, "base": {"fingerprint": "0" * 64}, "task": {"labels": [*labels, "7", "9"]}}
    with pytest.raises(PlanError, match="repeated: 7, 9"):
        plan_from(document, source="plan")


def test_a_misspelling_is_looked_for_among_few_and_short_names() -> None:
    assert nearest("rouns", ["rounds", "seed"]) == "rounds"
    assert nearest("a" * 65, ["a" * 65]) is None
    assert nearest("zzz", (str(n) for n in range(10**9))) is None, "an endless list ends"


def test_planned_spending_is_of_every_round_by_its_phase() -> None:
    privacy = {"mechanism": "distributed", "noise_multiplier": 8.0, "epsilon": 1e6}
    plan, manifest = small_plan(privacy=privacy, rounds=7)
    sizes = round_sizes(plan, manifest)
    assert len(sizes) == 2, "alternating has two phases"
    one_by_one = Spent()
    for number in range(7):
        one_by_one += mechanism_of(plan, size=sizes[number % 2]).spent()
    assert planned_epsilon(plan, sizes) == pytest.approx(
        epsilon(one_by_one, delta=plan.privacy.delta), rel=1e-9
    )


def test_a_layout_of_the_largest_plan_is_arithmetic() -> None:
    plan, _ = small_plan(adapter={"rank": 4096, "targets": "all-linear"}, rounds=100_000)
    assert Recipe(plan=plan, manifest=small_manifest()).layout.size == 2 * 4096 * 11 + 3 * 5 + 3
