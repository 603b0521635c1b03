"""Whatever is changed in a run is found by the auditor, or it is named as not covered: nothing is silent.

The liar has the log's key: it changes one field of one leaf, or of one file with all digests about it,
signs everything anew and publishes. A report that neither faults the run nor names that very field is a
silent one.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from audit.commands import app
from audit.coverage import Watched
from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import FedgeError, printable
from protocol.transparency.leaf_codec import decode_leaf, sha256
from protocol.transparency.note import sign_note
from protocol.transparency.tiles import pack_entries
from tests.adversaries.forger import Forger, kind_of, linked
from tests.adversaries.rich_runs import KINDS
from tests.adversaries.silent import audit_fails, named_in
from tests.tiers import EXHAUSTIVE

Path_ = tuple[str | int, ...]


JSON = (".json", ".batch")


# The coordinator's own files and those that only simulated runs have: without them nothing is said of them.
OPTIONAL = {
    ".lock",
    "log.key",
    "sequence.json",
    "privacy.jsonl",
    "summary.json",
    "evaluations.json",
    "metrics.jsonl",
    "rounds/0002.attempt1.json",
}


TILE = re.compile(r"log/tile/.*\.p/[0-9]+")  # of an earlier checkpoint


def silent(run: Path, name: str, part: str = "") -> bool:
    """Whether an audit has nothing against the run and does not name ``part`` of ``name`` as uncovered."""
    try:
        report: Report = audit(Folder(run), Trust())
    except FedgeError:
        return False
    if report.failed or any(name in each.what for one in report.rounds for each in one.unverified):
        return False
    return not any(
        each.name == name and (not each.parts or part in each.parts) for each in report.not_covered
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


def of_each_kind(entries: list[bytes], *, whole: bool) -> dict[int, str]:
    """The last leaf of each kind; ``whole``: also the first and one in the middle."""
    places: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        places.setdefault(kind_of(entry), []).append(index)
    chosen = {at[-1]: kind for kind, at in places.items()}
    if whole:
        for kind, at in places.items():
            chosen |= {at[0]: kind, at[len(at) // 2]: kind}
    return dict(sorted(chosen.items()))


def files_of(run: Path) -> list[str]:
    return sorted(Folder(run).names())


# -- leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        pytest.param("secret", False, marks=pytest.mark.slow),
        *(pytest.param(kind, True, marks=EXHAUSTIVE) for kind in KINDS),
    ],
)
def test_every_field_of_every_kind_of_leaf(
    kind: str, whole: bool, kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    honest = kinds(kind)
    entries = Forger(honest).entries
    missed = []
    for index, leaf in of_each_kind(entries, whole=whole).items():
        document = decode_leaf(entries[index]).leaf.model_dump(mode="json")
        for path, other in changes(document):
            forger = Forger(linked(honest, tmp_path / "forged"))
            forger.edit(index, lambda value, p=path, o=other: apply(value, p, o))
            if forger.entries != entries and silent(
                forger.sign_all(), f"leaf {index} `{leaf}`", str(path[0])
            ):
                missed.append((index, leaf, path, other))
    assert missed == []


@pytest.mark.parametrize(
    "kind",
    ["secret", *(pytest.param(kind, marks=EXHAUSTIVE) for kind in KINDS if kind != "secret")],
)
def test_what_every_statement_is_about(
    kind: str, kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    """Another digest, a subject fewer, one more that is true, and their order."""
    honest = kinds(kind)
    entries = Forger(honest).entries
    plan = sha256((honest / "plan.json").read_bytes())
    missed = []
    for index, leaf in of_each_kind(entries, whole=False).items():
        subjects = decode_leaf(entries[index]).subjects
        if not subjects or leaf == "audit":
            continue
        first = min(subjects)
        lies: list[dict[str, str]] = [
            subjects | {first: others(subjects[first])[0]},
            subjects | {"a.json": plan, "plan.json": plan},
            {name: digest for name, digest in subjects.items() if name != first} or {"x": plan},
        ]
        for lie in lies:
            forger = Forger(linked(honest, tmp_path / "forged"))
            forger.about(index, lie)
            if silent(forger.sign_all(), f"leaf {index} `{leaf}`", "subject"):
                missed.append((index, leaf, lie))
        if len(subjects) > 1:
            forger = Forger(linked(honest, tmp_path / "forged"))
            forger.about(index, dict(sorted(subjects.items(), reverse=True)), as_given=True)
            if silent(forger.sign_all(), f"leaf {index} `{leaf}`", "subject"):
                missed.append((index, leaf, "order"))
    assert missed == []


@pytest.mark.parametrize(
    "kind",
    ["secret", *(pytest.param(kind, marks=EXHAUSTIVE) for kind in KINDS if kind != "secret")],
)
def test_every_kind_of_leaf_told_twice(
    kind: str, kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    """Right behind itself, and at the end of the log."""
    honest = kinds(kind)
    entries = Forger(honest).entries
    for index in of_each_kind(entries, whole=False):
        for place in (index + 1, len(entries)):
            forger = Forger(linked(honest, tmp_path / "forged"))
            forger.entries.insert(place, entries[index])
            assert audit_fails(forger.sign_all()), (index, kind_of(entries[index]), place)


def test_a_pad_where_none_belongs(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    honest = kinds("secret")
    forger = Forger(linked(honest, tmp_path / "forged"))
    digest = decode_leaf(forger.entries[0]).leaf.model_dump()["plan"]
    forger.entries.append(forger.statement("pad", {}, {"plan": digest}))
    assert audit_fails(forger.sign_all())


def test_another_evaluation_is_named_as_somebodys_word(
    kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    forger = Forger(linked(kinds("secret"), tmp_path / "forged"))
    said = {"round": 2, "rows": 9, "metrics": {"accuracy": 999}}
    forger.entries.append(forger.statement("eval", said, {"rows": "0" * 64}))
    run, index = forger.sign_all(), len(forger.entries) - 1
    (named,) = [each for each in named_in(run) if each.name == f"leaf {index} `eval`"]
    assert "coordinator's word" in named.why


# -- files ----------------------------------------------------------------------------------------


def lies_about(run: Path, name: str, depth: int = 3) -> Iterator[tuple[str, bytes | None]]:
    """(part, other bytes) of a file; None: it is gone."""
    data = (run / name).read_bytes()
    yield "", None
    if name.endswith(JSON):
        document = json.loads(data)
        for path, other in changes(document, depth=depth):
            changed = copy.deepcopy(document)
            apply(changed, path, other)
            yield str(path[0]), json.dumps(changed, indent=1, sort_keys=True).encode() + b"\n"
        yield "spelling", json.dumps(document).encode()
        return
    for place in {0, len(data) // 3, 2 * len(data) // 3, len(data) - 1} if data else ():
        changed = bytearray(data)
        changed[place] ^= 1
        yield "", bytes(changed)
    yield "", data + b"\n"
    yield "spelling" if name == "log/key" else "", data[:-1]


def published_lie(honest: Path, folder: Path, name: str, data: bytes | None) -> Path:
    """The run with another file under this name, and every digest of it to fit."""
    run = linked(honest, folder)
    if data is None or name.startswith("log/") or name.endswith(".tlog-proof"):
        (run / name).unlink()
        if data is not None:
            (run / name).write_bytes(data)
        return run
    forger = Forger(run)
    forger.republish(name, data)
    return forger.sign_all()


@pytest.mark.parametrize(
    ("kind", "rounds", "depth"),
    [
        pytest.param("secret", "2", 1, marks=pytest.mark.slow),
        *(pytest.param(kind, "0123", 3, marks=EXHAUSTIVE) for kind in KINDS),
    ],
)
def test_every_file_of_a_run(
    kind: str, rounds: str, depth: int, kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    """A file that is gone may be a smaller copy: then the audit does not say that it was checked."""
    honest = kinds(kind)
    missed = []
    for name in files_of(honest):
        if name.startswith("rounds/") and name[10] not in rounds:
            continue
        if depth == 1 and TILE.fullmatch(name):
            continue  # several of them are in a test of their own
        for part, data in lies_about(honest, name, depth):
            run = published_lie(honest, tmp_path / "forged", name, data)
            if data is None and (name in OPTIONAL or TILE.fullmatch(name)):
                continue
            same = name == "plan.json" and not silent(run, name, "spelling")  # and the same plan
            if silent(run, name, part) and not same:
                missed.append((name, part, data and data[:200]))
    assert missed == []


BESIDE = (
    "evil.bin",
    "plan.json.bak",
    ".hidden",
    "log/other",
    "log/tile/0/000.p/255x",
    "log/tile/7/000",
    "rounds/note.txt",
    "rounds/0007/checkpoint.safetensors",
    "rounds/0001/record2.json",
    "rounds/0001/log.batch",
    "rounds/0001/adapter/adapter.bin",
    "rounds/0001/adapter/adapter.onnx_adapter",
    "rounds/0001/adapter/passport.tlog-proof",
    "rounds/0002/sums/7.sum",
    "rounds/0002/sums/0.boxes.json",
    "rounds/0002/vectors/0/00000000000000000000000000000000",
    "rounds/0002/vectors/9/x",
    "rosters/0000000000000000000000000000000000000000000000000000000000000000.json",
    "clients/a.key",
    "line\nfeed",
)


def test_files_beside_the_published_ones_are_listed(
    kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    run = linked(kinds("secret"), tmp_path / "copy")
    before = {each.name for each in named_in(run)}
    for name in BESIDE:
        assert not (run / name).exists()
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    (run / "link").symlink_to(tmp_path)
    (run / "rounds/0001/vectors-link").symlink_to(run / "rounds/0002/vectors")
    report = audit(Folder(run), Trust())
    assert not report.failed
    new = {each.name for each in report.not_covered} - before
    assert new == {printable(name) for name in (*BESIDE, "link", "rounds/0001/vectors-link")}
    shown = CliRunner().invoke(app, ["verify", str(run), "--quiet"]).stdout
    assert all(printable(name) in shown for name in BESIDE)
    listed = json.loads(CliRunner().invoke(app, ["verify", str(run), "--json"]).stdout)
    assert new <= {each["name"] for each in listed["not_covered"]}


def test_every_file_is_read_or_listed(kinds: Callable[[str], Path]) -> None:
    """By construction: what a report does not list was read to its end by a check."""
    for kind in KINDS:
        run = kinds(kind)
        source = Watched(Folder(run))
        whole = {each.name for each in audit(source, Trust()).not_covered if not each.parts}
        assert {printable(name) for name in files_of(run)} - whole <= source.seen


def test_bytes_behind_a_tile(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    """Also behind those of earlier checkpoints, which a coordinator leaves where they are."""
    honest = kinds("secret")
    tiles = [name for name in files_of(honest) if name.startswith("log/tile/")]
    assert len(tiles) > 4
    for name in {*tiles[:3], *tiles[-3:]}:
        run = linked(honest, tmp_path / "copy")
        data = (run / name).read_bytes()
        (run / name).unlink()
        (run / name).write_bytes(data + (pack_entries([b"{}"]) if "entries" in name else bytes(32)))
        assert audit_fails(run), name


def test_signatures_of_strangers_are_named(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    run = linked(kinds("secret"), tmp_path / "copy")
    stranger = sign_note("a\n", "stranger", Ed25519PrivateKey.generate())
    for name in ("log/checkpoint", "rounds/0002/adapter/passport.tlog-proof"):
        text = (run / name).read_text()
        (run / name).unlink()
        (run / name).write_text(text + stranger)
    report = audit(Folder(run), Trust())
    assert not report.failed
    named = {each.name: each.parts for each in report.not_covered}
    assert named["log/checkpoint"] == ("signatures",)
    assert named["rounds/0002/adapter/passport.tlog-proof"] == ("signatures",)
