"""What docs/protocol.md says is enough to verify a run: somebody else's auditor does it."""

from __future__ import annotations

import ast
import base64
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from typer.testing import CliRunner

from audit.commands import app
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from protocol.encoding import parse_canonical
from protocol.errors import FedgeError
from protocol.merkle import leaf_hash
from protocol.transparency.offline import OfflineProof
from protocol.transparency.tree import Tree
from tests.adversaries.forger import Forger, kind_of, linked
from tests.interop import verifier
from tests.interop.runs import CONTINUED, FOUR, KINDS, OVER_SELECTED, WITHDRAWN, made
from tests.interop.verifier.run import verify_run
from tests.tiers import some_by_default
from tests.unit.audit.runs import make_run

FAULTS = (
    AssertionError,
    InvalidSignature,
    InvalidTag,
    LookupError,
    ValueError,
    OSError,
    TypeError,
)
DEFAULT = {
    "hybrid keys with losses",
    "groups with losses",
    "hybrid keys under witnesses",
    OVER_SELECTED,
}  # the others are for `make test-attacks`
VOID = {
    "a failed attempt and a void round": {3},
    "failed attempts under witnesses": {3},
    "a large cohort and a void round": {1},
}
MUTATED = {  # kinds of runs and the kinds of leaves that are changed there
    "hybrid keys with losses": "advert shares vector plan roster cohort round-open alive reveal "
    "aggregate adapter release",
    "a failed attempt and a void round": "abort",
    "a large cohort and a void round": "abort shares round-open alive reveal",
    "groups under witnesses, one without a sum": "plan pad alive cohort round-open reveal abort adapter",
    "failed attempts under witnesses": "alive advert shares vector abort",
    "noise in groups of cores": "dp cohort round-open adapter",
    WITHDRAWN: "withdrawal",
}
Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Runs by kind, each made once. Not to be changed."""
    runs: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in runs:
            runs[kind] = made(kind, tmp_path_factory.mktemp("interop") / "run")
        return runs[kind]

    return run


@pytest.mark.parametrize("kind", some_by_default(DEFAULT, [*KINDS, *CONTINUED, WITHDRAWN]))
def test_a_run_is_verified_from_the_text_alone(kind: str, run_of: Made) -> None:
    void = VOID.get(kind, set())
    planned = json.loads((run_of(kind) / "plan.json").read_text())["rounds"]
    assert verify_run(run_of(kind)) == [n for n in range(1, planned + 1) if n not in void]


def published(run: Path) -> Iterator[str]:
    """The files of P-8.4, of tiles the newest."""
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        older = path.parent.name.endswith(".p") and path != max(
            path.parent.iterdir(), key=lambda each: int(each.name)
        )
        known = ("plan.json", "manifest.json", "rosters/", "log/", "rounds/")
        parts = ("checkpoint.safetensors", "adapter", "sums", "vectors")
        if not path.is_file() or older or not name.startswith(known):
            continue
        if name.startswith("rounds/") and name.split("/")[2] not in parts:
            continue
        if not name.endswith("log.batch"):
            yield name


@pytest.mark.parametrize(
    "kind",
    some_by_default(
        DEFAULT,
        ["hybrid keys with losses", "noise in groups of cores", "prompt"],
    ),
)
def test_a_bit_of_any_published_file_is_not(kind: str, run_of: Made, tmp_path: Path) -> None:
    run = linked(run_of(kind), tmp_path / "run")
    names = list(published(run))
    assert {name.split("/")[0] for name in names} == {
        "plan.json",
        "manifest.json",
        "rosters",
        "log",
        "rounds",
    }
    believed = []
    for name in names:
        data = (run / name).read_bytes()
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        (run / name).unlink()
        (run / name).write_bytes(changed)
        if holds(run):
            believed.append(name)
        (run / name).write_bytes(data)
    assert believed == []
    assert holds(run)


def test_another_start_than_the_plans_is_not_believed(
    run_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator begins with what the seed gives, where the plan names an adapter."""
    first = run_of("goes on").parent / "before"
    monkeypatch.setattr("server.coordinator.verify_start", lambda *_: None)
    monkeypatch.setattr("client.secret.first_digest", lambda *_: "")
    start = json.loads((run_of("goes on") / "plan.json").read_text())["start"]
    with pytest.raises(FedgeError):
        make_run(tmp_path / "run", start=start, begin=first, **FOUR)
    with pytest.raises(AssertionError):
        verify_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["6" * 64, ""])
def test_a_release_of_another_program_than_the_plans_is_not_believed(
    name: str, run_of: Made, tmp_path: Path
) -> None:
    """Signed by the log's own key, in the log's own leaves, with a passport."""
    forger = Forger(linked(run_of("a named program"), tmp_path / "run"))
    path = "rounds/0001/adapter/release.json"
    note = json.loads((forger.run / path).read_text())
    assert note["program"] == "5" * 64
    forger.republish(path, json.dumps(note | {"program": name}).encode())
    run = forger.sign_all()
    assert not holds(run)
    (fault,) = audit(Folder(run), Trust()).rounds[1].faults
    assert "`program` of release.json" in fault
    forger.republish(path, json.dumps(note).encode())  # what the plan names is believed
    assert holds(forger.sign_all())
    report = audit(Folder(run), Trust())
    assert report.program == "5" * 64
    assert "program" not in str(report.rounds[1].faults)
    assert "5" * 64 in CliRunner().invoke(app, ["verify", str(run)]).stdout


def holds(run: Path) -> bool:
    try:
        verify_run(run)
    except FAULTS:
        return False
    return True


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) or value is None:
        return (value or 0) + 1
    if isinstance(value, list):
        return value[:-1] if value else [0]
    if isinstance(value, dict):
        return dict(sorted(value.items())[:-1]) if value else {"a": 0}
    digits = set(value) <= set("0123456789abcdef") and value
    return (value[:-1] + ("0" if value[-1] != "0" else "1")) if digits else value + "x"


@pytest.mark.parametrize("kind", some_by_default({"a failed attempt and a void round"}, MUTATED))
def test_a_leaf_that_says_anything_else_is_not_believed(
    kind: str, run_of: Made, tmp_path: Path
) -> None:
    """Each field of a leaf of each kind changed, left out, one more; signed anew by the log's key."""
    run, believed = run_of(kind), set()
    for leaf in MUTATED[kind].split():
        index = Forger(run).at(leaf)
        changes = [(name, change) for name in fields(run, index) for change in ("other", "gone")]
        for name, change in [*changes, ("more", "other")]:
            forger = Forger(linked(run, tmp_path / "forged"))
            forger.edit(index, changing(name, change))
            if holds(signed(forger)):
                believed.add((leaf, name, change))
    possible = {("round-open", "code", "other")} if "round-open" in MUTATED[kind] else set()
    assert believed == possible  # P-8.7: the coordinator's word


def signed(forger: Forger) -> Path:
    """The forged log under a new checkpoint, and the passport of its release made for it."""
    run, tree = forger.sign(), Tree(map(leaf_hash, forger.entries))
    for index, entry in enumerate(forger.entries):
        if kind_of(entry) == "release":
            proof = OfflineProof(
                index=index,
                path=tuple(tree.inclusion(index)),
                checkpoint=(run / "log/checkpoint").read_text(),
                extra=entry,
            )
            (passport,) = run.glob("rounds/*/adapter/passport.tlog-proof")
            passport.unlink()
            passport.write_text(proof.encode())
    return run


def fields(run: Path, index: int) -> list[str]:
    value = parse_canonical(Forger(run).entries[index])
    if "payload" in value:
        value = json.loads(base64.b64decode(value["payload"]))["predicate"]
    return sorted(set(value) - {"kind"})


def changing(name: str, change: str) -> Callable[[Any], None]:
    def edit(leaf: Any) -> None:
        if change == "gone":
            leaf.pop(name, None)
        else:
            leaf[name] = other(leaf.get(name))

    return edit


@pytest.mark.parametrize(
    "kind",
    some_by_default({"noise"}, ["noise", "failed attempts under witnesses"]),
)
def test_a_leaf_that_is_missing_doubled_or_moved_is_not_believed(
    kind: str, run_of: Made, tmp_path: Path
) -> None:
    run, believed = run_of(kind), []
    leaves = Forger(run).entries
    for index in range(len(leaves)):
        for change in ("missing", "doubled", "moved"):
            forger = Forger(linked(run, tmp_path / "forged"))
            entry = forger.entries.pop(index)
            if change == "doubled":
                forger.entries[index:index] = [entry, entry]
            if change == "moved":
                forger.entries.insert(index + 1, entry)
            if forger.entries != leaves and holds(signed(forger)):
                believed.append((index, kind_of(entry), change))
    # P-8.16: a release may be told again.
    assert [each for each in believed if each[1:] != ("release", "doubled")] == []
    assert holds(signed(Forger(linked(run, tmp_path / "forged"))))


def test_what_a_witness_has_not_signed_is_not_its_cosignature(run_of: Made, tmp_path: Path) -> None:
    run = linked(run_of("hybrid keys under witnesses"), tmp_path / "run")
    path = run / "log/checkpoint"
    note = path.read_text()
    assert note.count("w1.example") == note.count("w2.example") == 1
    head, _, last = note.removesuffix("\n").rpartition(" ")
    data = bytearray(base64.b64decode(last))
    data[11] ^= 1  # the last byte of its time
    path.unlink()
    path.write_text(f"{head} {base64.b64encode(data).decode()}\n")
    assert not holds(run)
    path.write_text(
        "\n".join(note.split("\n")[:-2]) + "\n"
    )  # without it: nobody is bound to be asked again
    assert holds(run)


def test_it_uses_nothing_of_ours() -> None:
    folder = Path(verifier.__file__).parent
    allowed = {"numpy", "cryptography", "dp_accounting", *sys.stdlib_module_names}
    for path in folder.glob("*.py"):
        assert len(path.read_text().splitlines()) < 400
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] in allowed
            elif isinstance(node, ast.ImportFrom):
                assert (folder / f"{node.module}.py").exists()
