"""Claims of a record, a card, a release or a manifest that are false, one by one: none is believed in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.sums import Effort
from audit.verify import audit
from protocol.transparency.leaf_codec import sha256
from tests.adversaries.forger import Forger, linked
from tests.adversaries.silent import audit_fails, named_in

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


def cheaper(card: bytes) -> bytes:
    """The card with another epsilon."""
    text = card.decode()
    spent = re.search(r"epsilon ([0-9.]+)", text)
    assert spent
    return text.replace(f"epsilon {spent[1]}", "epsilon 0.100").encode()


CARD_FAULTS = ("its model card: rounds/0002/adapter/README.md is not the card of this round",)


@pytest.mark.parametrize(
    ("kind", "name", "change", "is_found"),
    [
        ("private", "README.md", cheaper, lambda faults: faults == CARD_FAULTS),
        # Users run it: whoever publishes may not choose it, also where the log covers it.
        (
            "secret",
            "open_adapter.py",
            lambda program: program + b"import os\n",
            lambda faults: any("a program of somebody else's" in fault for fault in faults),
        ),
    ],
    ids=["a card that claims another epsilon", "a program that is not fedge's"],
)
def test_a_file_of_the_release_that_its_note_covers_too(
    kind: str,
    name: str,
    change: Callable[[bytes], bytes],
    is_found: Callable[[tuple[str, ...]], bool],
    kinds: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    forger = Forger(linked(kinds(kind), tmp_path / "forged"))
    data = change((forger.run / "rounds/0002/adapter" / name).read_bytes())
    forger.republish(f"rounds/0002/adapter/{name}", data)
    release = forger.run / "rounds/0002/adapter/release.json"
    note = json.loads(release.read_text())
    note["files"][name] = sha256(data)
    forger.republish(
        "rounds/0002/adapter/release.json", (json.dumps(note, indent=1) + "\n").encode()
    )
    faults = audit(Folder(forger.sign_all()), Trust()).rounds[2].faults
    assert is_found(faults), faults


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
