"""A client in secure aggregation, phase by phase, against a coordinator that asks twice or lies."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.ledger import FileLedger
from client.opened_rounds import FileOpenedRounds
from client.secret import Member, verify_limit
from protocol.errors import MachineError, PrivacyError, SecrecyError
from protocol.exchange import METRICS, Contribution, Phase
from protocol.forecast import download_bytes, upload_bytes
from protocol.plan import Plan, plan_from
from protocol.privacy.ledger import client_epsilon
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.coordinator import Attempt, Parameters, split_unmask
from protocol.secagg.primitives import client_id
from protocol.secagg.session import Session
from protocol.secagg.task import encoding_for, roster_root, terms_for
from protocol.wire import Instruction

SIZE, RUN = 20, bytes(range(16))


class Coordinator:
    """An honest one, and the clients' sessions; a test changes what it sends."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        names = [f"site-{number}" for number in range(5)]
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        roster = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.plan: Plan = plan_from(
            {
                "name": "t",
                "base": {"fingerprint": "0" * 64},
                "task": {"labels": ["a", "b"]},
                "cohort": {"size": 5, "quorum": 3, "weighting": "uniform"},
                **sections,
            },
            source="test",
        )
        self.members = {
            client_id(roster[name]): Member(
                name=name,
                key=keys[name],
                roster=roster,
                plan=self.plan,
                size=SIZE,
                random=os.urandom,
                ledger=FileLedger(folder / f"{name}.jsonl"),
                opened=FileOpenedRounds(folder / f"{name}.opened.jsonl"),
            )
            for name in names
        }
        self.ids = sorted(self.members)
        self.sessions: dict[bytes, Session | None] = dict.fromkeys(self.ids)
        self.roster = roster
        self.updates = {
            one: np.random.default_rng(number).normal(0, 0.1, SIZE).astype(np.float32)
            for number, one in enumerate(self.ids)
        }
        self.trained = 0
        self.keys = Keys(self.plan.secrecy.keys)
        self.early: dict[bytes, bytes] = {}
        self.instruction = Instruction(
            round=1,
            attempt=1,
            plan_digest=self.plan.digest,
            base="0" * 64,
            adapter_digest="1" * 64,
            rank=8,
            evaluate=False,
        )
        self.begin(1)

    def begin(self, seq: int) -> None:
        bits = encoding_for(self.plan, self.instruction, size=SIZE, clients=5).bits
        self.core = Attempt(
            Parameters(
                sid=session_id(self.plan.digest, RUN),
                seq=seq,
                roster={one: m.roster[m.name] for one, m in self.members.items()},
                minimum=3,
                bits=bits,
                keys=self.keys,
            )
        )
        self.first = RUN + seq.to_bytes(8, "big")

    def ask(self, one: bytes, phase: Phase, request: bytes, **changes: Any) -> bytes:
        def contribute() -> Contribution:
            self.trained += 1
            metrics = dict.fromkeys(METRICS, 2.0)
            return Contribution(update=self.updates[one], weight=1, metrics=metrics)

        instruction = replace(self.instruction, **changes)
        self.sessions[one], reply = self.members[one].answer(
            phase, request, instruction, self.sessions[one], contribute
        )
        return reply

    def advertise(self) -> bytes:
        for one in self.ids:
            self.core.receive_advert(one, self.ask(one, Phase.ADVERTISE, self.first))
        return self.core.close_adverts(self.ids)

    def share(self) -> dict[bytes, bytes]:
        cohort = self.advertise()
        for one in self.ids:
            self.core.receive_shares(one, self.ask(one, Phase.SHARE, cohort))
        return self.boxes()

    def boxes(self) -> dict[bytes, bytes]:
        members = len(self.core.fix_members())
        self.encoding = encoding_for(self.plan, self.instruction, size=SIZE, clients=members)
        terms = terms_for(self.plan, self.instruction, self.encoding, roster_root(self.roster))
        return self.core.close_shares(terms, count=self.encoding.count)

    def rounds_until_refused(self, why: str) -> int:
        for number in range(1, 100):
            self.instruction = replace(self.instruction, round=number)
            self.begin(number)
            try:
                self.whole()
            except PrivacyError as error:
                if why in error.cause:
                    return number - 1
                raise
        raise AssertionError("never refused")

    def whole(self) -> tuple[Any, dict[str, float]]:
        return self.finish(self.share())

    def finish(self, boxes: dict[bytes, bytes]) -> tuple[Any, dict[str, float]]:
        for one, box in boxes.items():
            self.core.receive_masked(one, self.ask(one, Phase.MASK, box))
        alive = self.core.close_masked()
        for one in self.ids:
            self.core.receive_alive(one, self.ask(one, Phase.AGREE, alive))
        signatures = self.core.close_alive()
        for one in self.ids:
            advert, shares = split_unmask(self.ask(one, Phase.UNMASK, signatures), self.keys)
            self.core.receive_unmask(one, shares)
            self.early[one] = advert
        return self.encoding.opened(self.core.unmask(), 5)


@pytest.fixture(params=list(Keys))
def coordinator(request: pytest.FixtureRequest, tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path, secrecy={"keys": request.param})


def test_the_mean_and_the_sums_of_metrics_come_out(coordinator: Coordinator) -> None:
    mean, sums = coordinator.whole()
    expected = np.mean(list(coordinator.updates.values()), axis=0)
    assert np.abs(mean - expected).max() < 0.01
    assert sums == dict.fromkeys(METRICS, 10.0)
    for session in coordinator.sessions.values():  # the secrets end with the attempt
        assert session is not None
        assert session.phase is Phase.ADVERTISE  # of the next one
        assert session.seq == 2
        assert (session.shared, session.masked, session.agreed) == (None,) * 3


def test_the_same_request_gets_the_same_reply_and_another_is_refused(
    coordinator: Coordinator,
) -> None:
    one = coordinator.ids[0]
    cohort = coordinator.advertise()
    first = coordinator.ask(one, Phase.SHARE, cohort)
    assert coordinator.ask(one, Phase.SHARE, cohort) == first
    with pytest.raises(SecrecyError, match=r"phase\.repeated"):
        coordinator.ask(one, Phase.SHARE, cohort + b"x")
    with pytest.raises(SecrecyError, match=r"phase\.order"):
        coordinator.ask(one, Phase.UNMASK, b"")


def test_a_masked_vector_is_never_made_twice(coordinator: Coordinator) -> None:
    boxes = coordinator.share()
    one = coordinator.ids[0]
    coordinator.ask(one, Phase.MASK, boxes[one])
    with pytest.raises(SecrecyError, match=r"phase\.answered"):
        coordinator.ask(one, Phase.MASK, boxes[one])
    with pytest.raises(SecrecyError, match=r"phase\.repeated"):
        coordinator.ask(one, Phase.MASK, boxes[one] + b"x")
    assert coordinator.trained == 1


def test_an_attempt_number_is_never_used_again(coordinator: Coordinator) -> None:
    one = coordinator.ids[0]
    coordinator.begin(7)
    coordinator.ask(one, Phase.ADVERTISE, coordinator.first)
    other = bytes(16) + (1).to_bytes(8, "big")
    coordinator.ask(one, Phase.ADVERTISE, other)  # another run in between changes nothing
    for seq in (7, 6, 1):
        coordinator.begin(seq)
        with pytest.raises(SecrecyError, match=r"attempt\.old"):
            coordinator.ask(one, Phase.ADVERTISE, coordinator.first)
    coordinator.begin(8)
    coordinator.ask(one, Phase.ADVERTISE, coordinator.first)


def opened(coordinator: Coordinator, out: bytes | None = None) -> None:
    """A whole attempt; ``out`` is left out of the sum."""
    for one, box in coordinator.share().items():
        reply = coordinator.ask(one, Phase.MASK, box)
        if one != out:
            coordinator.core.receive_masked(one, reply)
    alive = coordinator.core.close_masked()
    there = coordinator.core.alive
    for one in there:
        coordinator.core.receive_alive(one, coordinator.ask(one, Phase.AGREE, alive))
    signatures = coordinator.core.close_alive()
    for one in there:
        _, shares = split_unmask(coordinator.ask(one, Phase.UNMASK, signatures), coordinator.keys)
        coordinator.core.receive_unmask(one, shares)


def test_of_one_round_only_one_sum_is_opened(coordinator: Coordinator) -> None:
    """Two sums of a round, one without the victim, would give its update by a subtraction."""
    opened(coordinator)
    coordinator.begin(2)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        opened(coordinator, out=coordinator.ids[3])
    coordinator.begin(3)  # the same sum again, after a crash: nothing new is learnt
    opened(coordinator)
    coordinator.begin(9)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first, attempt=2)
    coordinator.begin(10)
    coordinator.instruction = replace(coordinator.instruction, round=2)
    opened(coordinator, out=coordinator.ids[3])


def test_after_the_vector_is_out_nothing_that_opens_it_is_kept(coordinator: Coordinator) -> None:
    boxes = coordinator.share()
    one = coordinator.ids[0]
    before = coordinator.sessions[one]
    assert before is not None
    assert before.shared is not None
    secrets = before.shared.before
    coordinator.ask(one, Phase.MASK, boxes[one])
    kept = str(coordinator.sessions[one].model_dump_json())  # type: ignore[union-attr]
    for secret in (secrets.self_seed, secrets.mask_seed, secrets.channel_secret.hex()):
        assert str(secret) not in kept


def test_another_adapter_or_base_under_the_same_round_gives_masks_that_do_not_cancel(
    coordinator: Coordinator,
) -> None:
    """Told from the start on: the coordinator gets signatures that do not fit its terms."""
    cohort = coordinator.advertise()
    told = {
        coordinator.ids[0]: {"adapter_digest": "2" * 64},
        coordinator.ids[1]: {"base": "3" * 64},
    }
    for one in coordinator.ids:
        reply = coordinator.ask(one, Phase.SHARE, cohort, **told.get(one, {}))
        coordinator.core.receive_shares(one, reply)
    boxes = coordinator.boxes()
    for one, changes in told.items():
        with pytest.raises(SecrecyError, match=r"masked\.signature"):
            coordinator.core.receive_masked(
                one, coordinator.ask(one, Phase.MASK, boxes[one], **changes)
            )


def test_nothing_is_trained_for_a_coordinator_that_lies(coordinator: Coordinator) -> None:
    boxes = coordinator.share()
    one, other = coordinator.ids[:2]
    # In the hybrid form a box to a higher id is longer: what was meant for another does not even fit.
    with pytest.raises(SecrecyError, match=r"^(share\.unreadable|round\.shares)"):
        coordinator.ask(one, Phase.MASK, boxes[other])
    assert coordinator.trained == 0


def test_a_session_survives_its_process_and_shows_nothing(coordinator: Coordinator) -> None:
    coordinator.share()
    session = coordinator.sessions[coordinator.ids[0]]
    assert session is not None
    assert Session.model_validate_json(session.model_dump_json()) == session
    assert str(session) == repr(session) == "<Session seq 1, share done>"


NOISY = {"mechanism": "distributed", "clip": 1.0, "noise_multiplier": 2.0, "epsilon": 9.0}


def test_under_differential_privacy_the_sum_is_noisy_and_no_metric_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SIZE", 16_384)  # sharpens the estimate to 0.6 %
    coordinator = Coordinator(tmp_path, privacy=NOISY)
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
    spent = client_epsilon(ledger.entries(), name, coordinator.plan.privacy)
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
        coordinator.members[one].ledger.entries(), name, coordinator.plan.privacy
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


def test_a_client_that_forgot_its_session_opens_no_other_sum_of_a_round(
    coordinator: Coordinator,
) -> None:
    """A coordinator starts Flower runs at will; each gives a node an empty state."""
    opened(coordinator)
    coordinator.sessions = dict.fromkeys(coordinator.ids)
    coordinator.begin(1)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        opened(coordinator, out=coordinator.ids[3])
    coordinator.sessions = dict.fromkeys(coordinator.ids)
    coordinator.begin(1)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first, attempt=2)


def test_a_damaged_memory_of_opened_rounds_reveals_nothing(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    name = coordinator.members[coordinator.ids[0]].name
    (tmp_path / f"{name}.opened.jsonl").write_text("{}\n")
    with pytest.raises(MachineError, match="opened rounds"):
        coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first)


def test_a_client_that_forgot_its_session_still_pays_for_every_sum(tmp_path: Path) -> None:
    """Another Flower run, or a restarted node, with the same numbers: fresh noise is a new sum."""
    coordinator = Coordinator(tmp_path, privacy=NOISY | {"epsilon": 30.0})
    one = coordinator.ids[0]
    for number in range(1, 4):
        coordinator.sessions = dict.fromkeys(coordinator.ids)
        coordinator.begin(1)
        coordinator.whole()
        assert len(coordinator.members[one].ledger.entries()) == number


def test_runs_side_by_side_cannot_overspend_together(tmp_path: Path) -> None:
    """All are advertised before any is opened: the check is made again when the share leaves."""
    runs = [Coordinator(tmp_path, privacy=NOISY | {"rounds_per_client": 1}) for _ in range(2)]
    runs[1].instruction = replace(runs[1].instruction, round=2)
    boxes = [run.share() for run in runs]
    runs[0].finish(boxes[0])
    with pytest.raises(PrivacyError, match="took part in 1"):
        runs[1].finish(boxes[1])
    name = runs[0].members[runs[0].ids[0]].name
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


@pytest.mark.parametrize("changes", [{"round": 1}, {"attempt": 2}, {"adapter_digest": "5" * 64}])
def test_no_phase_is_told_another_instruction(
    coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    """A mask made for one round under another's number would be a second sum of that round."""
    coordinator.instruction = replace(coordinator.instruction, round=2)
    boxes = coordinator.share()
    one = coordinator.ids[0]
    with pytest.raises(SecrecyError, match=r"^instruction\.changed"):
        coordinator.ask(one, Phase.MASK, boxes[one], **changes)
    assert coordinator.trained == 0


@pytest.mark.parametrize("number", [0, -7, 11])
def test_rounds_are_those_of_the_plan(coordinator: Coordinator, number: int) -> None:
    with pytest.raises(SecrecyError, match=r"^attempt\.round"):
        coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first, round=number)


def test_the_next_attempts_advert_comes_with_the_shares(coordinator: Coordinator) -> None:
    coordinator.whole()
    early = dict(coordinator.early)
    coordinator.instruction = replace(coordinator.instruction, round=2)
    coordinator.begin(2)
    for one in coordinator.ids:
        coordinator.core.receive_advert(one, early[one])
        assert coordinator.ask(one, Phase.ADVERTISE, coordinator.first) == early[one]  # the same
    cohort = coordinator.core.close_adverts(coordinator.ids)
    coordinator.ask(coordinator.ids[0], Phase.SHARE, cohort)


def test_an_early_advert_opens_no_revealed_round_and_no_other_plan(
    coordinator: Coordinator,
) -> None:
    coordinator.whole()
    coordinator.begin(2)
    for one in coordinator.ids:
        coordinator.core.receive_advert(one, coordinator.early[one])
    cohort = coordinator.core.close_adverts(coordinator.ids)
    one = coordinator.ids[0]
    with pytest.raises(SecrecyError, match=r"round\.revealed"):
        coordinator.ask(one, Phase.SHARE, cohort, attempt=2)
    with pytest.raises(SecrecyError, match=r"attempt\.other-plan"):
        coordinator.ask(one, Phase.SHARE, cohort, round=2, plan_digest="0" * 64)


def test_the_last_reply_is_repeated_and_a_second_unmask_is_refused(
    coordinator: Coordinator,
) -> None:
    requests = {}
    ask = coordinator.ask

    def noting(one: bytes, phase: Phase, request: bytes, **changes: Any) -> bytes:
        requests[one, phase] = request
        return ask(one, phase, request, **changes)

    coordinator.ask = noting  # type: ignore[method-assign]
    coordinator.whole()
    one = coordinator.ids[0]
    request = requests[one, Phase.UNMASK]
    advert, _ = split_unmask(ask(one, Phase.UNMASK, request), coordinator.keys)
    assert advert == coordinator.early[one]
    with pytest.raises(SecrecyError, match=r"phase\.repeated"):
        ask(one, Phase.UNMASK, request + b"x")


@pytest.mark.parametrize("form", list(Keys))
def test_the_plan_decides_the_form_of_keys_and_no_coordinator(form: Keys, tmp_path: Path) -> None:
    """A coordinator that wants keys it can break later gets an error of its own kind, and no share."""
    mine = Coordinator(tmp_path, secrecy={"keys": form})
    other = Coordinator(tmp_path, secrecy={"keys": next(keys for keys in Keys if keys is not form)})
    one = mine.ids[0]
    mine.ask(one, Phase.ADVERTISE, mine.first)
    with pytest.raises(SecrecyError, match=r"^advert\.other-form"):
        mine.ask(one, Phase.SHARE, other.advertise())
    assert mine.sessions[one].phase is Phase.ADVERTISE  # type: ignore[union-attr]


def test_terms_name_the_keys_in_the_hybrid_form_only(tmp_path: Path) -> None:
    for form in Keys:
        made = Coordinator(tmp_path, secrecy={"keys": form})
        ring = encoding_for(made.plan, made.instruction, size=SIZE, clients=5)
        terms = terms_for(made.plan, made.instruction, ring, bytes(32))
        assert terms.get("keys") == (form if form is Keys.HYBRID else None)


def test_the_forecast_of_bytes_is_what_a_client_sends(coordinator: Coordinator) -> None:
    sent, received = dict.fromkeys(coordinator.ids, 0), dict.fromkeys(coordinator.ids, 0)
    ask = coordinator.ask

    def counting(one: bytes, phase: Phase, request: bytes, **changes: Any) -> bytes:
        reply = ask(one, phase, request, **changes)
        sent[one] += len(reply)
        received[one] += len(request)
        return reply

    coordinator.ask = counting  # type: ignore[method-assign]
    coordinator.whole()
    early = len(next(iter(coordinator.early.values())))  # that of the next attempt came on top
    mean = sum(sent.values()) / len(sent) - early
    assert upload_bytes(coordinator.plan, SIZE) == mean
    assert download_bytes(coordinator.plan, 0) == sum(received.values()) / len(received)
