"""A site's key and the roster, as an operator makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.settings import read_identity
from protocol.secagg.roster import parse_roster
from tests.unit.fedge.test_command_line import fedge


def test_a_key_is_private_and_its_public_half_enters_the_roster(tmp_path: Path) -> None:
    key, roster = tmp_path / "a.key", tmp_path / "roster.json"
    made = json.loads(fedge("client", "identity", "ward-3", "--out", key, "--json").stdout)
    assert key.stat().st_mode & 0o077 == 0
    public = read_identity(key).public_key().public_bytes_raw()
    assert made["public_key"] == public.hex()
    assert key.read_text().strip() not in json.dumps(made)
    done = fedge("roster", "add", roster, "ward-3", made["public_key"])
    assert done.returncode == 0, done.stderr
    assert parse_roster(roster.read_text(), source="r") == {"ward-3": public}
    again = fedge("client", "identity", "ward-3", "--out", key)
    assert again.returncode == 5
    assert "not overwritten" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("add", "a", "00"), "1 bytes"),
        (("add", "a", "xyz"), "not a roster"),
        (("add", "ward-3", "11" * 32), "listed already"),
        (("add", "other", "22" * 32), "one key"),
        (("remove", "nobody"), "no nobody"),
        (("remove", "ward-3"), "last one"),
    ],
)
def test_a_roster_stays_as_it_was_when_a_change_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], cause: str
) -> None:
    roster = tmp_path / "roster.json"
    assert fedge("roster", "add", roster, "ward-3", "22" * 32).returncode == 0
    before = roster.read_bytes()
    done = fedge("roster", arguments[0], roster, *arguments[1:])
    assert done.returncode == 3
    assert cause in done.stderr
    assert roster.read_bytes() == before


def test_a_ledger_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    done = fedge("client", "ledger", tmp_path / "absent.jsonl")
    assert done.returncode == 5
    assert "is not there" in done.stderr
