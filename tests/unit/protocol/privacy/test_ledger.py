"""The budget is kept, whatever was spent before; a damaged ledger is no empty one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.ledger import Account, FileLedger
from protocol.errors import ArtefactError, MachineError, PrivacyError
from protocol.plan_sections import Privacy
from protocol.privacy.accounting import epsilon
from protocol.privacy.distributed import Mechanism
from protocol.privacy.ledger import (
    Entry,
    Tally,
    client_epsilon,
    distributed_numbers,
    parse_entries,
    verify_affordable,
)
from protocol.start import SpentBefore
from server.ledger import RunLedger

NOISE = Mechanism(size=100, clip=1.0, multiplier=4.0, honest=8, summands=10, rotation=bytes(32))


def entry(sequence: int, *participants: str, **changes: Any) -> Entry:
    document = {
        "plan": "a" * 64,
        "run": "b" * 64,
        "sequence": sequence,
        "round": sequence,
        "attempt": 1,
        "participants": list(participants),
        **distributed_numbers(NOISE),
    }
    return Entry.model_validate(document | changes)


def anything(account: Account) -> None:
    """Any number of entries may be there."""


def test_what_is_not_allowed_is_not_written(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "ledger.jsonl")

    def only_one(account: Account) -> None:
        if account.plans:
            raise PrivacyError("enough", "stop")

    ledger.spend(entry(1, "a"), only_one)
    with pytest.raises(PrivacyError, match="enough"):
        ledger.spend(entry(2, "a"), only_one)
    assert [each.sequence for each in ledger.entries()] == [1]


def test_each_client_pays_for_its_own_sums() -> None:
    entries = [entry(1, "a", "b"), entry(2, "a"), entry(3, "b", "a")]
    privacy = Privacy(mechanism="distributed")
    cost = NOISE.spent()
    assert Tally(entries).spent("a").rho == pytest.approx(3 * cost.rho)
    assert Tally(entries).spent("b").rho == pytest.approx(2 * cost.rho)
    assert client_epsilon(Tally(entries), "c", privacy) == 0
    assert client_epsilon(Tally(entries), "a", privacy) == epsilon(
        Tally(entries).spent("a"), delta=1e-6
    )


def test_the_sum_that_would_exceed_the_budget_is_refused_and_not_one_before() -> None:
    cost = NOISE.spent()
    entries = [entry(number, "a") for number in range(1, 6)]
    enough = epsilon(Tally([*entries, entry(6, "a")]).spent("a"), delta=1e-6)
    verify_affordable(
        Tally(entries), "a", Privacy(mechanism="distributed", epsilon=enough * 1.001), cost
    )
    tight = Privacy(mechanism="distributed", epsilon=enough * 0.999)
    with pytest.raises(PrivacyError, match="would bring a to epsilon"):
        verify_affordable(Tally(entries), "a", tight, cost)
    verify_affordable(Tally(entries), "newcomer", tight, cost)


def test_what_was_spent_before_counts_for_everybody() -> None:
    """As if the sums of the runs before were lines of one ledger; also for who has no line yet."""
    cost, privacy = NOISE.spent(), Privacy(mechanism="distributed")
    entries = [entry(number, "a") for number in range(1, 6)]
    three = SpentBefore(mechanism="distributed", rho=3 * cost.rho, xi=3 * cost.xi)
    whole = client_epsilon(Tally(entries), "a", privacy)
    assert client_epsilon(Tally(entries[:2]), "a", privacy, three) == pytest.approx(
        whole, rel=1e-12
    )
    assert client_epsilon(Tally(entries[:2]), "newcomer", privacy, three) > 0
    tight = Privacy(mechanism="distributed", epsilon=whole * 1.0001)
    verify_affordable(Tally(entries[:1]), "a", tight, cost, three)
    for name in ("a", "newcomer"):
        with pytest.raises(PrivacyError, match=f"would bring {name} to epsilon"):
            verify_affordable(
                Tally(entries[:2] if name == "a" else []),
                name,
                tight,
                cost,
                three if name == "a" else three.model_copy(update={"rho": 6 * cost.rho}),
            )


def test_rounds_of_central_noise_before_count_as_rounds() -> None:
    privacy = Privacy(mechanism="central", noise_multiplier=2.0, sampling=0.5)
    before = SpentBefore(mechanism="central", sums=3, noise_multiplier=2.0, sampling=0.5)
    entries = [entry(number, "a") for number in range(1, 6)]
    both = client_epsilon(Tally(entries[:2]), "", privacy, before)
    assert both == client_epsilon(Tally(entries), "", privacy)


def test_a_rota_bounds_the_rounds_of_a_client() -> None:
    privacy = Privacy(mechanism="distributed", rounds_per_client=2)
    verify_affordable(Tally([entry(1, "a")]), "a", privacy, NOISE.spent())
    with pytest.raises(PrivacyError, match="took part in 2"):
        verify_affordable(Tally([entry(1, "a"), entry(2, "a")]), "a", privacy, NOISE.spent())


def test_a_file_keeps_every_entry_and_for_its_owner_alone(tmp_path: Path) -> None:
    ledger = FileLedger(tmp_path / "ledger.jsonl")
    assert ledger.entries() == []
    for number in (1, 1, 2):  # the same numbers again are another sum
        ledger.spend(entry(number, "a"), anything)
    again = FileLedger(tmp_path / "ledger.jsonl")
    assert [each.sequence for each in again.entries()] == [1, 1, 2]
    assert again.entries()[0] == entry(1, "a")
    assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("line", ["{}", "not json", '{"format": 2}', ""])
def test_a_damaged_ledger_is_not_an_empty_one(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(entry(1, "a").model_dump_json() + "\n")
    FileLedger(path).account()
    with path.open("a") as file:
        file.write(line + "\n")
    for read in (FileLedger(path).entries, FileLedger(path).account, lambda: RunLedger(path)):
        with pytest.raises(ArtefactError, match="line 2"):
            read()


def test_a_ledger_that_cannot_be_written_stops_the_reveal(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="ledger"):
        FileLedger(tmp_path / "absent" / "ledger.jsonl").spend(entry(1, "a"), anything)


def test_an_unknown_field_is_refused() -> None:
    text = entry(1, "a").model_dump_json()[:-1] + ', "note": "x"}'
    with pytest.raises(ArtefactError, match="line 1"):
        parse_entries(text, source="ledger")
