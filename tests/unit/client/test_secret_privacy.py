"""A client under differential privacy: what it adds, what it writes down, where it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.budget import verify_limit
from client.ledger import FileLedger
from protocol.errors import MachineError, PrivacyError
from protocol.exchange import Phase
from protocol.privacy.accounting import epsilon
from protocol.privacy.ledger import Tally, client_epsilon
from protocol.privacy.planned import mechanism_of
from tests.unit.client import secret_cohort
from tests.unit.client.secret_cohort import Coordinator

NOISY = {"mechanism": "distributed", "clip": 1.0, "noise_multiplier": 2.0, "epsilon": 9.0}


def test_under_differential_privacy_the_sum_is_noisy_and_no_metric_leaves(tmp_path: Path) -> None:
    coordinator = Coordinator(
        tmp_path, size=16_384, privacy=NOISY
    )  # sharpens the estimate to 0.6 %
    mean, metrics = coordinator.whole()
    assert metrics == {}
    clipped = [u * min(1.0, 1 / float(np.linalg.norm(u))) for u in coordinator.updates.values()]
    error = 5 * (mean - np.mean(clipped, axis=0))
    # Each of five adds z c / sqrt(quorum of 3).
    assert float(error.std()) == pytest.approx(2.0 * (5 / 3) ** 0.5, rel=0.03)


def test_a_client_writes_down_what_it_spent_and_stops_at_the_budget(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path, privacy=NOISY, rounds=100)
    one = coordinator.ids[0]
    ledger = coordinator.members[one].ledger
    rounds = coordinator.rounds_until_refused("the plan's budget is 9")
    assert len(ledger.entries()) == rounds
    name = coordinator.members[one].name
    spent = client_epsilon(Tally(ledger.entries()), name, coordinator.plan.privacy)
    assert rounds > 1
    assert spent <= 9.0
    assert coordinator.trained == 5 * rounds  # nobody trains for a sum that cannot be afforded


def test_a_clients_own_limit_counts_every_plan(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path, privacy=NOISY)
    coordinator.whole()
    one = coordinator.ids[0]
    other = Coordinator(tmp_path, privacy=NOISY | {"clip": 2.0})  # another plan, the same ledgers
    name = coordinator.members[one].name
    again = next(key for key, member in other.members.items() if member.name == name)
    spent = client_epsilon(
        Tally(coordinator.members[one].ledger.entries()), name, coordinator.plan.privacy
    )
    other.members[again] = replace(other.members[again], limit=spent * 1.1)
    with pytest.raises(PrivacyError, match="over all runs"):
        other.ask(again, Phase.ADVERTISE, other.first)


def test_no_ledger_no_share(tmp_path: Path) -> None:
    coordinator = Coordinator(tmp_path, privacy=NOISY)
    for one, box in coordinator.share().items():
        coordinator.core.receive_masked(one, coordinator.ask(one, Phase.MASK, box))
    alive = coordinator.core.close_masked()
    for one in coordinator.ids:
        coordinator.core.receive_alive(one, coordinator.ask(one, Phase.AGREE, alive))
    signatures = coordinator.core.close_alive()
    one = coordinator.ids[0]
    coordinator.members[one] = replace(
        coordinator.members[one], ledger=FileLedger(tmp_path / "absent" / "x")
    )
    with pytest.raises(MachineError, match="nothing is revealed"):
        coordinator.ask(one, Phase.UNMASK, signatures)


def test_a_client_that_forgot_its_session_still_pays_for_every_sum(tmp_path: Path) -> None:
    """Another Flower run, or a restarted node: fresh noise under the same round is a new sum."""
    coordinator = Coordinator(tmp_path, privacy=NOISY | {"epsilon": 30.0})
    one = coordinator.ids[0]
    for number in range(1, 4):
        coordinator.sessions = dict.fromkeys(coordinator.ids)
        coordinator.begin(number)
        coordinator.whole()
        assert len(coordinator.members[one].ledger.entries()) == number


def test_plans_side_by_side_cannot_overspend_together(tmp_path: Path) -> None:
    """All are advertised before any is opened: the check is made again when the share leaves."""
    plans = [Coordinator(tmp_path, privacy=NOISY | {"clip": clip}) for clip in (1.0, 2.0)]
    one_sum = epsilon(mechanism_of(plans[0].plan, size=secret_cohort.SIZE).spent(), delta=1e-6)
    for plan in plans:
        plan.members = {
            one: replace(member, limit=1.1 * one_sum) for one, member in plan.members.items()
        }
    boxes = [plan.share() for plan in plans]
    plans[0].finish(boxes[0])
    with pytest.raises(PrivacyError, match="over all runs"):
        plans[1].finish(boxes[1])
    name = plans[0].members[plans[0].ids[0]].name
    assert len(FileLedger(tmp_path / f"{name}.jsonl").entries()) == 1


def test_a_limit_of_its_own_excludes_plans_whose_noise_it_does_not_make(tmp_path: Path) -> None:
    for privacy in ({"mechanism": "none"}, {"mechanism": "central", "sampling": 0.5}):
        made = Coordinator(tmp_path, privacy=privacy)
        verify_limit(made.plan, math.inf)
        with pytest.raises(PrivacyError, match="the plan's noise is"):
            verify_limit(made.plan, 8.0)
    made = Coordinator(tmp_path, privacy={"mechanism": "none"})
    one = made.ids[0]
    made.members[one] = replace(made.members[one], limit=8.0)
    with pytest.raises(PrivacyError, match="the plan's noise is none"):
        made.ask(one, Phase.ADVERTISE, made.first)
