"""Mixes that no run begins with: derived from what methods, tasks, rules and bases say of themselves.

Each is well spelled and may not be run; `test_matrix.py` tries all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from base_model.verify import read_manifest
from protocol.errors import PlanError
from protocol.initial import ONES
from protocol.legality import verify_legal
from protocol.methods import METHODS
from protocol.methods.base import Method
from protocol.plan import Plan, plan_from
from protocol.rules import RULES
from tests.contracts.matrix import COLUMNS, SORTS, TASKS, Reasons
from tests.methods import adapter_of
from tests.unit.audit.small_bases import small_layered
from tests.witnesses import witnessed_by

CODES_OF_TINY = f"{'AQID' * 10}AQI="  # as many as the tiny encoder's vectors have numbers, 32
WIDE, FAR, LONG = 4000, 900, 5000  # a rank, a layer and a length that no tiny base has
PLAIN: dict[str, Any] = {"secrecy": {"exchange": "plain"}}
NOISE: dict[str, Any] = {"mechanism": "distributed"}
WITNESSED = witnessed_by("w.example")
CENTRAL: dict[str, Any] = {"mechanism": "central", "sampling": 0.1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """What is mixed in words; tables of the plan on the base of a task; the field that is refused."""

    words: str
    refused: str
    task: str = SORTS[0]
    sections: dict[str, Any] = field(default_factory=dict)


def mixes(reasons: Reasons) -> list[Mix]:
    """All, in the order of the page; ``reasons`` say which method a task's base does not take."""
    return [
        *_methods_on_tasks(reasons),
        *_settings_of_methods(reasons),
        *_members_of_hybrids(),
        *_tasks_on_bases(),
        *_secrecy(),
        *_late_updates(),
        *_groups(),
        *_privacy(),
        *_heads(),
    ]


def plan_of_mix(mix: Mix, base: Path) -> Plan:
    """Raises PlanError for one that cannot even be read."""
    document = {
        "name": "mix",
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": COLUMNS[mix.task],
    }
    return plan_from(document | mix.sections, source="the mix")


def refusal_of(mix: Mix, base: Path) -> PlanError | None:
    """What a plan's reader, or whoever would begin the run, says; None where it begins."""
    try:
        verify_legal(plan_of_mix(mix, base), read_manifest(base))
    except PlanError as error:
        return error
    return None


def refusals(reasons: Reasons, base_of: Callable[[str], Path]) -> list[tuple[Mix, PlanError]]:
    """Every mix with its error. Raises AssertionError for one that is not refused, or with another field."""
    rows = []
    for mix in mixes(reasons):
        error = refusal_of(mix, base_of(mix.task))
        assert error is not None, mix.words
        assert f"`{mix.refused}" in error.cause, (mix.words, error.cause)
        assert error.remedy, mix.words
        rows.append((mix, error))
    return rows


def page(rows: list[tuple[Mix, PlanError]]) -> str:
    """The section of docs/methods.md."""
    lines = ["| mix | refused with |", "|---|---|"]
    for mix, error in rows:
        cause = error.cause.removeprefix("the mix: ").replace("|", "\\|")
        lines.append(f"| {mix.words} | {cause} |")
    head = (
        f"## Mixes that are refused\n\n{len(rows)} mixes, derived from the contracts of methods, tasks and rules "
        "(`tests/contracts/illegal.py`): `fedge plan check`, the coordinator\nbefore round 0 and every client before it "
        "opens its rows say the same of each.\n\n"
    )
    return head + "\n".join(lines)


def _methods_on_tasks(reasons: Reasons) -> Iterator[Mix]:
    for (method, task), reason in reasons.items():
        if reason:
            sections = {"adapter": adapter_of(method, targets="all-linear")}
            words = f"method `{method}`, task `{task}`"
            place = "adapter.members" if method == "hybrid" else "adapter.method"
            yield Mix(words=words, refused=place, task=task, sections=sections)


def _settings_of_methods(reasons: Reasons) -> Iterator[Mix]:
    """A rank above a layer's width, linears and layers that are not there, no room for a text."""
    for method, contract in METHODS.items():
        keys = contract.settings.model_fields
        task = next(task for task in TASKS if not reasons[method, task])
        odd: dict[str, tuple[str, dict[str, Any]]] = {
            "rank": ("a rank above a layer's width", {"rank": WIDE}),
            "targets": ("linears that the base has not", {"targets": ["nothing"]}),
            "layers": ("layers that the base has not", {"layers": [FAR]}),
            "tokens": ("more tokens than the base has positions", {"tokens": WIDE}),
        }
        for key, (words, settings) in odd.items():
            if key not in keys:
                continue
            adapter = adapter_of(method, targets="all-linear") | settings
            if "target_rank" in keys:
                adapter |= {"target_rank": 1}
            refused = "task.max_length" if key == "tokens" else f"adapter.{key}"
            words = f"method `{method}`, {words}"
            yield Mix(words=words, refused=refused, task=task, sections={"adapter": adapter})
        for rule in (rule for rule in RULES.values() if not rule.takes(contract)):
            ruled = {"adapter": adapter_of(method), "rule": {"name": rule.name}}
            words = f"method `{method}`, rule `{rule.name}`"
            yield Mix(words=words, refused="rule.name", task=task, sections=ruled)
        if not reasons[method, SORTS[0]] and _stays_whole(contract, adapter_of(method)):
            cut: dict[str, Any] = {"adapter": adapter_of(method), "release": {"keep": 0.5}}
            words = f"method `{method}`, half of it published"
            yield Mix(words=words, refused="release.keep", sections=cut)
        if "encoder_width" in keys:
            adapter = adapter_of(method) | {"encoder": "mlp"}
            controlled: dict[str, Any] = {"adapter": adapter, "local": {"scaffold": 1.0}}
            words = f"method `{method}`, an encoder and control variates"
            yield Mix(words=words, refused="local.scaffold", task=task, sections=controlled)
            adapter = adapter_of(method) | {"encoder_width": 4}
            words = f"method `{method}`, a width of no encoder"
            yield Mix(
                words=words,
                refused="adapter.encoder_width",
                task=task,
                sections={"adapter": adapter},
            )
        foreign = next(key for key in ("rank", "tokens", "width") if key not in keys)
        adapter = adapter_of(method) | {foreign: 4}
        words = f"method `{method}`, another's key `{foreign}`"
        yield Mix(words=words, refused=f"adapter.{foreign}", sections={"adapter": adapter})


def _stays_whole(method: Method[Any], adapter: dict[str, Any]) -> bool:
    """It publishes a head alone, or factors of which 1 leaves the base as it is, and 0 nothing."""
    manifest = small_layered()
    settings = method.settings.model_validate(adapter)
    specs = list(method.published_specs(list(method.specs(settings, manifest)), manifest))
    return not specs or any(spec.law == ONES for spec in specs)


def _members_of_hybrids() -> Iterator[Mix]:
    lora, prompt = adapter_of("lora"), adapter_of("prompt")
    rows: list[tuple[str, str, str, list[dict[str, Any]]]] = [
        ("of one member", "adapter.members", SORTS[0], [lora]),
        ("within a hybrid", "adapter.members.1.method", SORTS[0], [lora, {"method": "hybrid"}]),
        ("two on one linear", "adapter.members", SORTS[0], [lora, adapter_of("loha")]),
        (
            "a linear scaled and shifted",
            "adapter.members",
            SORTS[0],
            [adapter_of("ia3"), adapter_of("bias")],
        ),
        ("a prompt and a prefix", "adapter.members", "causal-lm", [prompt, adapter_of("prefix")]),
        (
            "a rank above a layer's width",
            "adapter.members.1.rank",
            SORTS[0],
            [prompt, lora | {"rank": WIDE}],
        ),
    ]
    for words, refused, task, members in rows:
        sections = {"adapter": {"method": "hybrid", "members": members}}
        yield Mix(words=f"method `hybrid`, {words}", refused=refused, task=task, sections=sections)


def _tasks_on_bases() -> Iterator[Mix]:
    for task, settings in TASKS.items():
        for base in TASKS:
            if (base != SORTS[1] and (task in SORTS) != (base in SORTS)) or _writes_apart(
                task, base
            ):
                words = f"task `{task}`, a base for `{base}`"
                yield Mix(words=words, refused="task.kind", task=base, sections={"task": settings})
        long = {"task": settings | {"max_length": LONG}}
        words = f"task `{task}`, texts beyond the base's positions"
        yield Mix(words=words, refused="task.max_length", task=task, sections=long)


def _writes_apart(task: str, base: str) -> bool:
    return task not in SORTS and base not in SORTS and task != base


def _secrecy() -> Iterator[Mix]:
    rows: list[tuple[str, str, dict[str, Any]]] = [
        (
            "secret sums, weights by examples",
            "cohort.weighting",
            {"cohort": {"weighting": "examples"}},
        ),
        ("secret sums of two", "cohort.quorum", {"cohort": {"size": 10, "quorum": 2}}),
        (
            "secret sums of more than 2,000",
            "cohort.size",
            {"cohort": {"size": 5000, "quorum": 4000}},
        ),
        (
            "secret sums of more than 10,000 under witnesses",
            "cohort.size",
            {"audit": WITNESSED, "cohort": {"size": 10_001, "quorum": 9000}},
        ),
        (
            "hybrid secret sums of more than 2,000 under witnesses",
            "cohort.size",
            {
                "audit": WITNESSED,
                "secrecy": {"keys": "x25519+ml-kem-768"},
                "cohort": {"size": 2001, "quorum": 1800},
            },
        ),
        (
            "a sum of 500 with noise",
            "cohort.size",
            {
                "cohort": {"size": 500, "quorum": 400},
                "rule": {"name": "first"},
                "privacy": {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0},
            },
        ),
        (
            "secret sums of 100 clients in 20 groups, beyond the log's leaf",
            "cohort.size",
            {"secrecy": {"groups": 20}, "cohort": {"size": 2000, "quorum": 1600}},
        ),
        (
            "secret sums that close without a third of their clients",
            "cohort.spare",
            {"cohort": {"size": 10, "spare": 5}},
        ),
        (
            "a quorum of witnesses, no witnesses",
            "audit.witnesses",
            {"audit": {"witness_quorum": 1}},
        ),
    ]
    for words, refused, sections in rows:
        yield Mix(words=words, refused=refused, sections=sections)


def _late_updates() -> Iterator[Mix]:
    rows: list[tuple[str, str, dict[str, Any]]] = [
        (
            "late updates, rounds that train one factor after the other",
            "cohort.late_rounds",
            {"cohort": {"late_rounds": 3}, "rule": {"name": "alternating"}},
        ),
        (
            "late updates, sums in clear",
            "cohort.late_rounds",
            PLAIN | {"cohort": {"late_rounds": 3}, "rule": {"name": "mean"}},
        ),
        (
            "late updates, control variates",
            "cohort.late_rounds",
            {"cohort": {"late_rounds": 3}, "rule": {"name": "mean"}, "local": {"scaffold": 0.2}},
        ),
    ]
    for words, refused, sections in rows:
        yield Mix(words=words, refused=refused, sections=sections)


def _groups() -> Iterator[Mix]:
    rows: list[tuple[str, str, dict[str, Any]]] = [
        (
            "two groups",
            "secrecy.groups",
            {"secrecy": {"groups": 2}, "cohort": {"size": 20, "quorum": 16}},
        ),
        ("three groups, a quorum of two each", "cohort.quorum", {"secrecy": {"groups": 3}}),
        (
            "a plain exchange, groups",
            "secrecy.groups",
            {"secrecy": {"exchange": "plain", "groups": 3}},
        ),
        (
            "four groups, two trimmed at either end",
            "secrecy.trim",
            {
                "secrecy": {"groups": 4, "combination": "trimmed-mean", "trim": 2},
                "cohort": {"size": 20, "quorum": 16},
            },
        ),
        (
            "a plain exchange, a trimmed mean of groups",
            "secrecy.trim",
            {"secrecy": {"exchange": "plain", "combination": "trimmed-mean"}},
        ),
        (
            "a geometric median, two trimmed",
            "secrecy.trim",
            {"secrecy": {"groups": 5, "trim": 2}, "cohort": {"size": 20, "quorum": 16}},
        ),
    ]
    for words, refused, sections in rows:
        yield Mix(words=words, refused=refused, sections=sections)


def _privacy() -> Iterator[Mix]:
    one = {"size": 10, "quorum": 1}
    rows: list[tuple[str, str, dict[str, Any]]] = [
        (
            "clients' noise, control variates",
            "local.scaffold",
            {"privacy": NOISE, "local": {"scaffold": 0.5}},
        ),
        ("clients' noise, a plain exchange", "privacy.mechanism", PLAIN | {"privacy": NOISE}),
        ("clients' noise, sampling", "privacy.sampling", {"privacy": NOISE | {"sampling": 0.5}}),
        (
            "clients' noise, groups",
            "secrecy.groups",
            {
                "privacy": NOISE,
                "secrecy": {"groups": 3},
                "cohort": {"size": 30, "quorum": 24},
            },
        ),
        (
            "clients' noise, most clients corrupt",
            "privacy.corrupt",
            {"privacy": NOISE | {"corrupt": 7}},
        ),
        (
            "clients' noise, rows held out",
            "evaluation.holdout",
            {"privacy": NOISE, "evaluation": {"holdout": 0.1}},
        ),
        ("clients' noise, rule `mean`", "rule.name", {"privacy": NOISE, "rule": {"name": "mean"}}),
        (
            "the coordinator's noise, a secret sum",
            "privacy.mechanism",
            {"privacy": CENTRAL},
        ),
        (
            "the coordinator's noise, no sampling",
            "privacy.sampling",
            PLAIN | {"privacy": {"mechanism": "central"}, "cohort": one},
        ),
        (
            "the coordinator's noise, a quorum",
            "cohort.quorum",
            PLAIN | {"privacy": CENTRAL},
        ),
        (
            "the coordinator's noise, clients to spare",
            "cohort.spare",
            PLAIN | {"privacy": CENTRAL, "cohort": one | {"spare": 2}},
        ),
    ]
    for words, refused, sections in rows:
        yield Mix(words=words, refused=refused, sections=sections)


def _heads() -> Iterator[Mix]:
    rows = ["AQI=", "AwQ=", "BQY="]
    short = {"head": {"rows": rows, "scale": 0.1}}
    yield Mix(words="a head of another base", refused="head.rows", sections=short)
    for task in TASKS:
        if task != SORTS[0]:
            words = f"task `{task}`, a head of labels' names"
            yield Mix(words=words, refused="head", task=task, sections=short)
    directions = {"rows": ["AQID", "BAUG"], "scale": 0.1}
    low = {"head": {"rows": rows, "scale": 0.1, "directions": directions}}
    words = "a head of low rank of another base"
    yield Mix(words=words, refused="head.directions.rows", sections=low)
    vectors = {"rows": [CODES_OF_TINY] * 7, "scale": 0.1, "turns": 7}
    many = {"rows": [f"{start}IDBAUGBw==" for start in ("AQ", "Ag", "Aw")], "scale": 0.1}
    words = "seven turns of a head, four of method `loha`"
    mixed = {"head": many | {"directions": vectors}, "adapter": adapter_of("loha")}
    yield Mix(words=words, refused="head.directions.turns", sections=mixed)
    fixed = {"head": low["head"] | {"trained": False}}
    yield Mix(words="a head of low rank that stays", refused="head", sections=fixed)
