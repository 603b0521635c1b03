"""What a site makes of its receipts: a list, and a signed complaint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protocol.errors import ProofError
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Complaint
from protocol.transparency.receipts import verify_receipt
from protocol.transparency.submissions import verify_complaint
from tests.unit.client.secret_cohort import Coordinator
from tests.unit.fedge.test_command_line import fedge


class Site:
    """site-0 after two rounds: the first round's vector is proven, the second's not yet."""

    def __init__(self, folder: Path) -> None:
        coordinator = Coordinator(folder)
        coordinator.whole()
        coordinator.at_round(2)
        coordinator.begin(2)
        coordinator.whole()
        self.coordinator = coordinator
        self.file = folder / "site-0.receipts.jsonl"
        self.key = folder / "site-0.key"
        mine = next(m for m in coordinator.members.values() if m.name == "site-0")
        self.key.write_text(mine.key.private_bytes_raw().hex() + "\n")
        self.public = mine.key.public_key().public_bytes_raw()

    def complain(self, *more: object) -> tuple[int, str, str]:
        given = ("--identity", self.key, "--about", "left out", *more)
        done = fedge("client", "complain", self.file, *given)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_receipts_are_listed_with_their_fate(site: Site) -> None:
    lines = fedge("client", "receipts", site.file).stdout.splitlines()
    assert "round 1, attempt 1: logged, leaf " in lines[0]
    assert lines[1].endswith("round 2, attempt 2: not shown yet")
    found = json.loads(fedge("client", "receipts", site.file, "--json").stdout)
    assert [(one["seq"], one["fate"]) for one in found] == [(1, "logged"), (2, "not shown yet")]
    assert fedge("client", "receipts", site.file.with_name("absent")).returncode == 5


def test_a_complaint_carries_the_receipt(site: Site, tmp_path: Path) -> None:
    code, text, _ = site.complain("--seq", 2)
    assert code == 0
    leaf = decode_leaf(text.strip().encode()).leaf
    assert isinstance(leaf, Complaint)
    verify_complaint(leaf, site.public)
    with pytest.raises(ProofError):
        verify_complaint(leaf.model_copy(update={"receipt": ""}), site.public)
    log = site.coordinator.log.key.public_key().public_bytes_raw()
    assert verify_receipt(leaf.receipt, log).seq == 2
    out = tmp_path / "complaint.json"
    assert site.complain("--seq", 2, "--out", out)[0] == 0
    assert out.read_bytes() == text.strip().encode()


def test_what_is_no_complaint_is_refused(site: Site, tmp_path: Path) -> None:
    assert "no receipt of attempt 9" in site.complain("--seq", 9)[2]
    assert "no run fits" in site.complain("--seq", 1, "--run", "another")[2]
    assert "one line" in site.complain("--seq", 1, "--about", "x" * 501)[2]
    assert "cannot be written" in site.complain("--seq", 1, "--out", tmp_path / "a" / "b")[2]
    site.key.write_text("11" * 32)
    code, _, error = site.complain("--seq", 1)
    assert (code, "not the key" in error) == (5, True)
    assert "11" * 32 not in error
