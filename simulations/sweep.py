"""An experiment over a grid of settings, or a random part of it: which cells there are, and their table.

A cell is one value for each key that is varied; its runs differ by their seed alone. Whether a cell may be
run is seen before any is: what is illegal stays in the table, with the reason.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protocol.documents import OddError, parse_toml
from protocol.encoding import seed_from
from protocol.errors import PlanError
from protocol.tasks import TASKS
from simulations.compare import spread
from simulations.experiment import Experiment, load_experiment
from simulations.experiment_text import toml
from simulations.files import SUMMARY, read_json
from simulations.identity import Identities
from simulations.overrides import value_of

SWEEP, PAGE = "sweep.json", "sweep.html"
MOST_CELLS = 10_000
Json = dict[str, Any]
NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf|nan)"
SPAN = re.compile(rf"{NUMBER}\s*\.\.\s*{NUMBER}")
QUALITIES = {task.QUALITY.name: task.QUALITY for task in TASKS.values()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A key that is varied: its ``values`` as they are typed, or ``span``, low and high of a real number."""

    key: str
    values: tuple[str, ...] = ()
    span: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value for each key, and the runs of it by seed; ``reason``: why there are none."""

    settings: Mapping[str, str]
    runs: Mapping[int, tuple[Experiment, Path]] = field(default_factory=dict)
    reason: str = ""


def axis_of(text: str) -> Axis:
    """``key=a,b,c``, ``key=[a, [b, c]]`` in TOML, or ``key=low..high``. Raises PlanError."""
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise PlanError(f"--over {text}: not of the form key=a,b", "--over plan.adapter.rank=2,4,8")
    if values.startswith("["):
        return _listed(text, key, values)
    if ends := SPAN.fullmatch(values):
        return Axis(key=key, span=_span(text, *ends.groups()))
    return _distinct(text, key, [part.strip() for part in values.split(",")])


def _listed(text: str, key: str, values: str) -> Axis:
    try:
        listed = parse_toml(f"value = {values}")["value"]
    except OddError as odd:
        raise PlanError(f"--over {text}: {odd}", 'a list as in TOML: [["a"], ["b"]]') from None
    for value in listed:
        _verify_plain(text, value)
    return _distinct(text, key, [toml(value) for value in listed])


def _verify_plain(text: str, value: Any) -> None:
    """A value that an experiment may have. Raises PlanError."""
    if isinstance(value, list):
        for inner in value:
            _verify_plain(text, inner)
    elif isinstance(value, dict):
        raise PlanError(
            f"--over {text}: `{toml(value)}` is a table", "vary its keys one by one: --over a.b=1,2"
        )
    elif not isinstance(value, str | int | float):
        raise PlanError(
            f"--over {text}: `{value}` is a date or a time, which no key takes",
            f'as a text it has quotes: "{value}"',
        )


def _distinct(text: str, key: str, parts: list[str]) -> Axis:
    """An axis of values of which no two mean the same. Raises PlanError."""
    spelled: dict[Any, str] = {}
    for part in parts:
        if not part:
            raise PlanError(f"--over {text}: a value is empty", "write one between two commas")
        value = value_of(part)
        _verify_plain(text, value)
        if (before := spelled.get(_compared(value))) is not None:
            pair = f"`{part}` stands there twice" if before == part else f"`{before}` is `{part}`"
            raise PlanError(f"--over {text}: {pair}", "name each value once")
        spelled[_compared(value)] = part
    if not spelled:
        raise PlanError(f"--over {text}: an empty list", "name one value at least")
    return Axis(key=key, values=tuple(parts))


def _compared(value: Any) -> Any:
    """Equal for what a plan takes as equal: 1 and 1.0, but not 1 and true."""
    if isinstance(value, list):
        return tuple(map(_compared, value))
    return (isinstance(value, bool), value)


def _span(text: str, low: str, high: str) -> tuple[float, float]:
    span = float(low), float(high)
    if not 0 < span[0] < span[1] < math.inf:
        raise PlanError(
            f"--over {text}: not two numbers above 0, the smaller first",
            "--over plan.local.learning_rate=1e-4..1e-2, with --random",
        )
    return span


def combinations(axes: Sequence[Axis], *, random: int, seed: int) -> list[dict[str, str]]:
    """All of a grid, or ``random`` different ones of it; a span is drawn evenly in its logarithm.

    The same arguments give the same ones, and more of them begin with the same. Raises PlanError.
    """
    keys = [axis.key for axis in axes]
    if len(set(keys)) < len(keys):
        raise PlanError("--over: a key stands there twice", "name all values of a key at once")
    if not random:
        if spans := [axis.key for axis in axes if axis.span]:
            raise PlanError(
                f"--over {spans[0]}: a span has no end of values", "say how many: --random 20"
            )
        if math.prod(len(axis.values) for axis in axes) > MOST_CELLS:
            raise PlanError(f"more than {MOST_CELLS} cells", "vary less, or take some: --random 20")
        rows = itertools.product(*(axis.values for axis in axes))
        return [dict(zip(keys, row, strict=True)) for row in rows]
    rng = np.random.default_rng(seed_from("sweep", seed))
    chosen: dict[tuple[str, ...], None] = {}
    for _ in range(100 * random):  # of a small grid there may be fewer
        chosen[tuple(_drawn(axis, rng) for axis in axes)] = None
        if len(chosen) == random:
            break
    return [dict(zip(keys, row, strict=True)) for row in chosen]


def _drawn(axis: Axis, rng: np.random.Generator) -> str:
    if axis.span is None:
        return axis.values[int(rng.integers(len(axis.values)))]
    low, high = (math.log(end) for end in axis.span)
    return f"{math.exp(rng.uniform(low, high)):.4g}"


def cells(
    path: Path,
    overrides: Sequence[str],
    settings: Sequence[Mapping[str, str]],
    seeds: Sequence[int],
    out: Path,
) -> list[Cell]:
    """Each with its experiments, or the reason why it may not be run. Nothing is written.

    A run's folder is named by what it hangs on (:mod:`simulations.identity`) and the seed: a wider sweep
    finds it again, one of a changed experiment does not.
    """
    swept, identities = [], Identities()
    for each in settings:
        own = [f"{key}={value}" for key, value in each.items()]
        try:
            experiments = {
                seed: load_experiment(path, [*overrides, *own, f"plan.seed={seed}"])
                for seed in seeds
            }
        except PlanError as error:
            swept.append(Cell(settings=each, reason=error.cause))
            continue
        runs = {
            seed: (experiment, out / f"{identities.of(experiment)[:16]}-seed-{seed}")
            for seed, experiment in experiments.items()
        }
        swept.append(Cell(settings=each, runs=runs))
    return swept


def outcome_of(run: Path) -> Json | None:
    """The summary of a run that is through; None while there is none, or not yet the report that it names."""
    summary = read_json(run / SUMMARY)
    return summary if summary and summary.get("report") else None


def table(swept: Sequence[Cell]) -> list[Json]:
    """A row per cell, the best first: ``settings``, ``reason`` of what was not run, ``figures`` of what was.

    Of a figure ``mean``, ``spread`` (sd, or None) and ``values``. A run whose adapter may not be released
    has figures, and a reason.
    """
    rows = [_row(cell) for cell in swept]
    name, higher = quality_name(rows), higher_is_better(rows)
    worst = -math.inf if higher else math.inf

    def quality(row: Json) -> float:
        figure = row["figures"].get(name)
        return float(figure["mean"]) if figure else worst

    return sorted(rows, key=quality, reverse=higher)


def quality_name(rows: Sequence[Json]) -> str:
    """What the rows are sorted by: the task's own measure, or the loss."""
    known = [name for name in QUALITIES if any(name in row["figures"] for row in rows)]
    return known[0] if known else "loss"


def higher_is_better(rows: Sequence[Json]) -> bool:
    """Of what the rows are sorted by; of a loss it is not."""
    quality = QUALITIES.get(quality_name(rows))
    return quality is not None and quality.higher_is_better


def _row(cell: Cell) -> Json:
    summaries = {
        seed: summary
        for seed, (_, folder) in cell.runs.items()
        if (summary := outcome_of(folder)) is not None
    }
    refusals = [refusal for each in summaries.values() if (refusal := each.get("refused"))]
    figures: Json = {}
    for name in (*QUALITIES, "loss"):
        figures |= _figure(name, [s.get(f"{name}_federated") for s in summaries.values()])
    for name in ("upload_bytes_per_client_round", "adapter_sent_bytes", "seconds"):
        figures |= _figure(name, [s.get(name) for s in summaries.values()])
    return {
        "settings": dict(cell.settings),
        "reason": cell.reason or next(iter(refusals), ""),
        "seeds": sorted(summaries),
        "runs": [str(cell.runs[seed][1]) for seed in sorted(summaries)],
        "figures": figures,
    }


def _figure(name: str, values: Sequence[Any]) -> Json:
    numbers = [float(value) for value in values if value is not None]
    return {name: spread(numbers)} if numbers else {}
