"""Whatever is changed in a run is found by the auditor, or it is named as not covered: nothing is silent.

The liar has the log's key: it changes one field of one leaf, or of one file with all digests about it,
signs everything anew and publishes. A report that neither faults the run nor names that very field is a
silent one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import FedgeError
from protocol.transparency.leaves import (
    decode_leaf,
)
from tests.adversaries.forger import Forger, kind_of, linked
from tests.adversaries.rich_runs import KINDS, make_kind

Path_ = tuple[str | int, ...]
JSON = (".json", ".batch")


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_kind(kind, tmp_path_factory.mktemp("silence") / "run")
        return made[kind]

    return of


def silent(run: Path, name: str, part: str = "") -> bool:
    """Whether an audit has nothing against the run and does not name ``part`` of ``name`` as uncovered."""
    try:
        report: Report = audit(Folder(run), Trust())
    except FedgeError:
        return False
    if report.failed:
        return False
    return not any(
        each.name == name and (not each.parts or part in each.parts)
        for each in getattr(report, "not_covered", ())
    )


def others(value: Any) -> list[Any]:
    """Other values of the same form."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1] if not value else [value + 1, 0]
    if isinstance(value, float):
        return [value * 1.25 + 0.125]
    if value is None:
        return [1]
    if isinstance(value, list):
        return [value[:-1], [*value, value[-1]]] if value else [["a"]]
    if isinstance(value, dict):
        return [dict(list(value.items())[1:]), {**value, "x": 1}] if value else [{"x": 1}]
    if value and set(value) <= set("0123456789abcdef"):
        return [value[:-1] + ("0" if value[-1] != "0" else "1"), ""]
    return {"": ["00"], "secagg": ["plain"], "plain": ["secagg"]}.get(value, [f"{value}x"])


def changes(value: Any, path: Path_ = (), depth: int = 4) -> Iterator[tuple[Path_, Any]]:
    """Every change of a document, a value at a time; of lists their last."""
    if path:
        for other in others(value):
            yield path, other
    if isinstance(value, dict) and depth:
        keys = list(value) if len(value) <= 20 else [min(value), max(value)]
        for key in keys:
            yield from changes(value[key], (*path, key), depth - 1)
    if isinstance(value, list) and value and depth:
        yield from changes(value[-1], (*path, len(value) - 1), depth - 1)
    if not path:
        yield ("",), None  # a field that nobody knows


def apply(document: Any, path: Path_, other: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = other


def of_each_kind(entries: list[bytes], most: int = 3) -> dict[int, str]:
    """Some leaves of each kind: the first, one in the middle, the last."""
    places: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        places.setdefault(kind_of(entry), []).append(index)
    chosen: dict[int, str] = {}
    for kind, at in places.items():
        for index in {at[0], at[len(at) // 2], at[-1]}:
            chosen[index] = kind
    return dict(sorted(chosen.items()))


# -- leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_every_kind_of_leaf(
    kind: str, kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    honest = kinds(kind)
    audit(Folder(honest), Trust())
    missed = []
    for index, leaf in of_each_kind(Forger(honest).entries).items():
        document = decode_leaf(Forger(honest).entries[index]).leaf.model_dump(mode="json")
        for path, other in changes(document):
            forger = Forger(linked(honest, tmp_path / "forged"))
            forger.edit(index, lambda value, p=path, o=other: apply(value, p, o))
            if forger.entries == Forger(honest).entries:
                continue
            if silent(forger.sign_all(), f"leaf {index} `{leaf}`", str(path[0])):
                missed.append((index, leaf, path, other))
    print("MISSED", len(missed), *missed, sep="\n")
    assert missed == []
