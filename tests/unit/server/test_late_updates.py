"""Updates that came too late for their sum, in later ones: each in one at most, and less the older it is. (P-4.14)"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from client.ledger import FileLedger
from protocol.exchange import Phase
from protocol.layout import Vector
from protocol.privacy.ledger import Tally
from protocol.recipe import Recipe
from protocol.wire import Instruction
from server.store import RunStore
from simulations.clients import client_name
from simulations.faults import Speeds
from tests.unit.audit.runs import Sites, make_run, small_plan

TWELVE: dict[str, Any] = {"size": 9, "spare": 3, "quorum": 6, "deadline_s": 500.0}
MEAN: dict[str, Any] = {"rule": {"name": "mean"}, "server": {"optimizer": "fedavg"}}
SLOW, SLOWNESS = (2, 5, 7), 3.0
DECAY = 0.5


class Watched(Sites):
    """Sites of which each masked contribution is known: by site and attempt the round that it was trained in."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sent: dict[tuple[int, int], int] = {}

    def _secret(self, phase: Phase, site: int, told: Instruction, content: Any) -> bytes:
        reply = super()._secret(phase, site, told, content)
        if phase is Phase.MASK:
            kept = self.kept(site, told.round).store.load()
            assert kept is not None
            self.sent[site, kept.seq] = kept.round
        return reply


def records(run: Path) -> list[dict[str, Any]]:
    """Of the published rounds, without round 0."""
    paths = sorted((run / "rounds").glob("[0-9]*/record.json"))
    return [json.loads(path.read_text()) for path in paths][1:]


def late_run(
    folder: Path, *, slow: tuple[int, ...] = SLOW, **sections: Any
) -> tuple[Path, Watched]:
    cohort = TWELVE | {"late_rounds": 4, "late_decay": DECAY} | sections.pop("cohort", {})
    sections = MEAN | {"cohort": cohort, "rounds": 9} | sections
    plan, manifest = small_plan(**{k: v for k, v in sections.items() if k != "lost"})
    sites = Watched(plan, manifest, folder / "sites", 12)
    names = frozenset(map(client_name, slow))
    speeds = Speeds(training_s=1.0, slowness=SLOWNESS, slow=names)
    return make_run(folder / "run", count=12, sites=sites, speeds=speeds, **sections), sites


def counted(run: Path, sites: Watched) -> list[dict[int, int]]:
    """Of each published round: by the sites in its sum the rounds that their updates were trained in."""
    return [
        {
            site: sites.sent[site, record["sequence"]]
            for site in (int(name.removeprefix("site-")) for name in record["used"])
        }
        for record in records(run)
    ]


def moved(run: Path, sites: Sites, number: int) -> Vector:
    """What round ``number`` moved the adapter by."""
    layout = Recipe(plan=sites.plan, manifest=sites.manifest).layout
    store = RunStore(run)
    try:
        before, after = (store.load(each)[0].adapter for each in (number - 1, number))
    finally:
        store.close()
    return layout.flatten(after) - layout.flatten(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """Twelve sites, three of them slow; not to be changed."""
    return late_run(tmp_path_factory.mktemp("late"))


def test_every_update_is_in_one_sum_at_most_and_slow_ones_are_in_some(
    run: tuple[Path, Watched],
) -> None:
    of_rounds = counted(*run)
    updates = Counter(pair for used in of_rounds for pair in used.items())
    assert max(updates.values()) == 1
    ages = {
        number - trained
        for number, used in enumerate(of_rounds, 1)
        for site, trained in used.items()
        if site in SLOW
    }
    assert max(ages) >= 1
    assert max(ages) <= 4
    assert {site for used in of_rounds for site in used} >= {*SLOW}
    # What is kept is not trained a second time, and nobody trains what it need not.
    assert max(Counter(run[1].trained).values()) == 1


def test_nobody_waits_for_the_slow(run: tuple[Path, Watched]) -> None:
    for record in records(run[0]):
        assert record["seconds"] == pytest.approx(1.0, abs=0.5)


def test_a_round_moves_by_the_mean_of_updates_each_less_the_older(
    run: tuple[Path, Watched],
) -> None:
    folder, sites = run
    for number, used in enumerate(counted(folder, sites), 1):
        updates, ages = [], []
        for site, trained in used.items():
            updates.append(Sites._contribution(sites, site, trained).update)
            ages.append(number - trained)
        weights = (1.0 + np.array(ages)) ** -DECAY
        expected = np.mean(np.array(updates) * weights[:, None], axis=0)
        error = np.linalg.norm(moved(folder, sites, number) - expected)
        alike = np.linalg.norm(np.mean(updates, axis=0) - expected)  # if age did not count
        assert error < 0.05 * np.linalg.norm(expected)
        assert not any(ages) or alike > 2 * error


def test_an_auditor_accepts_such_a_run(run: tuple[Path, Watched]) -> None:
    report = audit(Folder(run[0]), Trust())
    assert (report.verdict, report.faults) == ("ok", ())


def test_too_old_an_update_is_trained_anew(tmp_path: Path) -> None:
    run, sites = late_run(tmp_path, cohort={"late_rounds": 1})
    ages = {
        number - trained
        for number, used in enumerate(counted(run, sites), 1)
        for trained in used.values()
    }
    assert ages <= {0, 1}


def test_who_was_lost_behind_the_mask_is_not_counted_twice(tmp_path: Path) -> None:
    """Its vector is in the sum, and it has not heard of it: the log says so."""

    def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return phase in (Phase.AGREE, Phase.UNMASK) and (number + site) % 6 == 0

    run, sites = late_run(tmp_path, slow=(), lost=lost, cohort={"spare": 0, "size": 12})
    updates = Counter(pair for used in counted(run, sites) for pair in used.items())
    assert max(updates.values()) == 1
    sums = [record["metrics"]["examples"] for record in records(run)]
    assert sums == [sum(1 + site for site in used) for used in counted(run, sites)]


def test_a_failed_attempt_costs_no_second_training(tmp_path: Path) -> None:
    def lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return (number, attempt) == (2, 1) and phase is Phase.MASK and site < 8

    run, sites = late_run(tmp_path, slow=(), lost=lost, rounds=2, cohort={"spare": 0, "size": 12})
    assert [record["attempt"] for record in records(run)] == [1, 2]
    again = Counter(sites.trained)
    assert {again[site, 2] for site in range(12)} == {1}


def test_with_noise_a_kept_update_spends_with_the_sum_that_has_it(tmp_path: Path) -> None:
    noise = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 400.0, "clip": 1.0}
    run, sites = late_run(tmp_path, privacy=noise, rule={"name": "first"})
    used = Counter(site for each in counted(run, sites) for site in each)
    for site in range(12):
        account = FileLedger(sites.folder / f"{site}.jsonl").account()
        tally = account.plans.get(sites.plan.digest, Tally())
        assert tally.sums(f"site-{site}") == used[site]
