"""The coordinator's privacy ledger as a file: what is no ledger is refused, what was spent stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ArtefactError
from protocol.privacy.ledger import Entry
from server.ledger import RunLedger


def entry(number: int, sequence: int) -> Entry:
    return Entry(
        plan="0" * 64,
        run="1" * 32,
        sequence=sequence,
        group=0,
        round=number,
        attempt=1,
        participants=["a", "b"],
        mechanism="distributed",
        clip=(1.0).hex(),
        noise_multiplier=(1.0).hex(),
        honest=2,
        grid=(0.1).hex(),
        noise=(1.0).hex(),
        size=3,
        rho=(0.5).hex(),
        xi=(0.25).hex(),
    )


def test_a_line_is_added_once_whoever_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    ledger = RunLedger(path)
    for each in (entry(1, 1), entry(2, 2), entry(2, 2), entry(1, 1)):
        ledger.spend(each)
    again = RunLedger(path)
    again.spend(entry(2, 2))
    assert again.since(0) == [entry(1, 1), entry(2, 2)]
    assert again.since(1) == [entry(2, 2)]
    assert again.tally.spent("a") == ledger.tally.spent("a")


@pytest.mark.parametrize("data", [b"\n", b"{}\n", b"\xff\n"])
def test_what_is_no_ledger_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "privacy.jsonl"
    path.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"privacy\.jsonl"):
        RunLedger(path)
