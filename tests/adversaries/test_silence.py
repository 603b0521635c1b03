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
from audit.report import Report, Uncovered
from audit.sources import Folder
from audit.sums import Effort
from audit.verify import audit
from protocol.errors import FedgeError, printable
from protocol.transparency.leaves import decode_leaf, sha256
from protocol.transparency.note import sign_note
from protocol.transparency.tiles import pack_entries
from tests.adversaries.forger import Forger, kind_of, linked
from tests.adversaries.rich_runs import KINDS, make_kind

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
    if report.failed or any(name in each.what for one in report.rounds for each in one.unverified):
        return False
    return not any(
        each.name == name and (not each.parts or part in each.parts) for each in report.not_covered
    )


def audit_fails(run: Path) -> bool:
    try:
        return audit(Folder(run), Trust()).failed
    except FedgeError:
        return True


def named_in(run: Path) -> tuple[Uncovered, ...]:
    return audit(Folder(run), Trust()).not_covered


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
    [("secret", False), *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in KINDS)],
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
    ["secret", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "secret")],
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
    ["secret", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "secret")],
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
        ("secret", "2", 1),
        *(pytest.param(kind, "0123", 3, marks=pytest.mark.slow) for kind in KINDS),
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


# -- what the issue was about, one by one ---------------------------------------------------------


def test_participants_of_a_record(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    """Its own digest is in the log, and who is in the sum is what the log says."""
    run = linked(kinds("secret"), tmp_path / "copy")
    name = "rounds/0002/record.json"
    record = json.loads((run / name).read_text())
    record["used"][0], record["dropped"][0]["client"] = record["dropped"][0]["client"], "site-0"
    text = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    (run / name).unlink()
    (run / name).write_bytes(text)
    assert audit_fails(run)
    forger = Forger(linked(kinds("secret"), tmp_path / "forged"))
    forger.republish(name, text)
    faults = audit(Folder(forger.sign_all()), Trust()).rounds[2].faults
    assert faults == (
        "its record: `used` of rounds/0002/record.json is not what log and plan give",
    )


def test_a_card_that_claims_another_epsilon(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    forger = Forger(linked(kinds("private"), tmp_path / "forged"))
    name = "rounds/0002/adapter/README.md"
    text = (forger.run / name).read_text()
    spent = re.search(r"epsilon ([0-9.]+)", text)
    assert spent
    card = text.replace(f"epsilon {spent[1]}", "epsilon 0.100").encode()
    forger.republish(name, card)
    release = forger.run / "rounds/0002/adapter/release.json"
    note = json.loads(release.read_text())
    note["files"]["README.md"] = sha256(card)
    forger.republish(
        "rounds/0002/adapter/release.json", (json.dumps(note, indent=1) + "\n").encode()
    )
    faults = audit(Folder(forger.sign_all()), Trust()).rounds[2].faults
    assert faults == (
        "its model card: rounds/0002/adapter/README.md is not the card of this round",
    )


def test_a_program_in_the_folder_that_is_not_fedges(
    kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    """Users run it: whoever publishes may not choose it, also where the log covers it."""
    forger = Forger(linked(kinds("secret"), tmp_path / "forged"))
    name = "rounds/0002/adapter/open_adapter.py"
    program = (forger.run / name).read_bytes() + b"import os\n"
    forger.republish(name, program)
    release = forger.run / "rounds/0002/adapter/release.json"
    note = json.loads(release.read_text())
    note["files"]["open_adapter.py"] = sha256(program)
    forger.republish(
        "rounds/0002/adapter/release.json", (json.dumps(note, indent=1) + "\n").encode()
    )
    faults = audit(Folder(forger.sign_all()), Trust()).rounds[2].faults
    assert any("a program of somebody else's" in fault for fault in faults), faults


def test_parity_against_a_bound_of_its_own(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    for change in ({"bound": 1.0}, {"bound": 1.0, "max_relative": 0.5}, {"max_relative": 0.5}):
        forger = Forger(linked(kinds("secret"), tmp_path / "forged"))
        name = "rounds/0002/adapter/release.json"
        note = json.loads((forger.run / name).read_text())
        note["parity"] |= change
        forger.republish(name, (json.dumps(note, indent=1) + "\n").encode())
        faults = audit(Folder(forger.sign_all()), Trust()).rounds[2].faults
        assert any("not within the plan's bound" in fault for fault in faults), faults


def test_a_temperature_before_a_release_or_out_of_its_bounds(
    kinds: Callable[[str], Path], tmp_path: Path
) -> None:
    shares = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.5)
    honest = {"temperature": 1.5, "rows": 1} | shares
    for number, fit, cause in (
        (1, honest, "without a release"),
        (2, honest | {"temperature": 0.0}, "temperature"),
        (2, honest | {"rows": 0}, "rows"),
        (2, honest | {"ece_after": 1.5}, "ece_after"),
        (2, honest | {"bias": 1.0}, "bias"),
    ):
        forger = Forger(linked(kinds("secret"), tmp_path / "forged"))
        name = f"rounds/{number:04d}/adapter/release.json"
        note = json.loads((forger.run / name).read_text())
        note["calibration"] = fit
        forger.republish(name, (json.dumps(note, indent=1) + "\n").encode())
        faults = audit(Folder(forger.sign_all()), Trust()).rounds[number].faults
        assert any(cause in fault for fault in faults), (fit, faults)


def test_the_manifest_against_an_own_base(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    """Without a base its other fields are named; with one they are compared, and the files too."""
    honest, base = kinds("secret"), tmp_path / "base"
    base.mkdir()
    (base / "manifest.json").write_bytes((honest / "manifest.json").read_bytes())
    for name in ("graph.onnx", "config.json", "tokenizer.json"):
        (base / name).write_bytes(b"x")
    (fault,) = audit(Folder(honest), Trust(), base=base).faults
    assert "config.json is not the file of the manifest" in fault
    forger = Forger(linked(honest, tmp_path / "forged"))
    manifest = json.loads((honest / "manifest.json").read_text())
    manifest["graph"]["slots"] = [{"name": "x", "dtype": "float32", "shape": [1]}]
    text = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    forger.republish("manifest.json", text)
    run = forger.sign_all()
    assert not audit_fails(run)
    (named,) = [each for each in named_in(run) if each.name == "manifest.json"]
    assert {"graph", "files", "linears"} <= set(named.parts)
    faults = audit(Folder(run), Trust(), base=base).faults
    assert any("manifest.json is not that of" in fault for fault in faults), faults


def test_a_vector_that_is_gone_too_early(kinds: Callable[[str], Path], tmp_path: Path) -> None:
    """Round 1's expired with a leaf; round 2's has no leaf: that is a fault, but in a smaller copy."""
    run = linked(kinds("secret"), tmp_path / "copy")
    assert audit(Folder(run), Trust()).rounds[1].verdict == "unverifiable"
    min((run / "rounds/0002/vectors/0").glob("?" * 32)).unlink()
    (fault,) = audit(Folder(run), Trust()).rounds[2].faults
    assert "no `retention` leaf says" in fault
    smaller = audit(Folder(run), Trust(), effort=Effort(vectors=False))
    assert (smaller.rounds[2].verdict, smaller.failed) == ("unverifiable", False)
