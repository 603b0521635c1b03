"""A client in secure aggregation, phase by phase, against a coordinator that asks twice or lies."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.secret import Member
from protocol.errors import SecrecyError
from protocol.exchange import METRICS, Contribution, Phase
from protocol.plan import Plan, plan_from
from protocol.secagg.agreement import Keys
from protocol.secagg.contexts import session_id
from protocol.secagg.coordinator import Attempt, Parameters
from protocol.secagg.primitives import client_id
from protocol.secagg.session import Session
from protocol.secagg.task import metrics_of, ring_for, roster_root, terms_for
from protocol.wire import Instruction

SIZE, RUN = 20, bytes(range(16))


class Coordinator:
    """An honest one, and the clients' sessions; a test changes what it sends."""

    def __init__(self, keys_form: str = "x25519") -> None:
        names = [f"site-{number}" for number in range(5)]
        keys = {name: Ed25519PrivateKey.generate() for name in names}
        roster = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.plan: Plan = plan_from(
            {
                "name": "t",
                "base": {"fingerprint": "0" * 64},
                "task": {"labels": ["a", "b"]},
                "cohort": {"size": 5, "quorum": 3, "weighting": "uniform"},
                "secrecy": {"exchange": "secagg", "keys": keys_form},
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
        self.core = Attempt(
            Parameters(
                sid=session_id(self.plan.digest, RUN),
                seq=seq,
                roster={one: m.roster[m.name] for one, m in self.members.items()},
                minimum=3,
                bits=16,
                keys=Keys(self.plan.secrecy.keys),
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
        members = len(self.core.fix_members())
        self.ring = ring_for(self.plan, self.instruction, size=SIZE, clients=members)
        terms = terms_for(self.plan, self.instruction, self.ring, roster_root(self.roster))
        return self.core.close_shares(terms, count=self.ring.count)


@pytest.fixture(params=list(Keys))
def coordinator(request: pytest.FixtureRequest) -> Coordinator:
    return Coordinator(request.param)


def test_the_mean_and_the_sums_of_metrics_come_out(coordinator: Coordinator) -> None:
    for one, box in coordinator.share().items():
        coordinator.core.receive_masked(one, coordinator.ask(one, Phase.MASK, box))
    alive = coordinator.core.close_masked()
    for one in coordinator.ids:
        coordinator.core.receive_alive(one, coordinator.ask(one, Phase.AGREE, alive))
    signatures = coordinator.core.close_alive()
    for one in coordinator.ids:
        coordinator.core.receive_unmask(one, coordinator.ask(one, Phase.UNMASK, signatures))
    mean, sums = coordinator.ring.decode(coordinator.core.unmask(), 5)
    expected = np.mean(list(coordinator.updates.values()), axis=0)
    assert np.abs(mean - expected).max() < 0.01
    assert metrics_of(sums) == dict.fromkeys(METRICS, 10.0)
    for session in coordinator.sessions.values():  # the secrets end with the attempt
        assert session is not None
        assert session.phase is Phase.UNMASK
        assert (session.advertised, session.shared, session.masked, session.agreed) == (None,) * 4


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
        coordinator.core.receive_unmask(one, coordinator.ask(one, Phase.UNMASK, signatures))


def test_of_one_round_only_one_sum_is_opened(coordinator: Coordinator) -> None:
    """Two sums of a round, one without the victim, would give its update by a subtraction."""
    opened(coordinator)
    coordinator.begin(2)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        opened(coordinator, out=coordinator.ids[3])
    coordinator.begin(3)  # the same sum again, after a crash: nothing new is learnt
    opened(coordinator)
    for changes in ({"attempt": 2}, {"round": 0}):
        coordinator.begin(9)
        with pytest.raises(SecrecyError, match=r"^round\.revealed"):
            coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first, **changes)
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
    """The coordinator notices nothing but signatures that do not fit: the vector stays masked."""
    boxes = coordinator.share()
    one, other = coordinator.ids[:2]
    with pytest.raises(SecrecyError, match=r"masked\.signature"):
        coordinator.core.receive_masked(
            one, coordinator.ask(one, Phase.MASK, boxes[one], adapter_digest="2" * 64)
        )
    with pytest.raises(SecrecyError, match=r"masked\.signature"):
        coordinator.core.receive_masked(
            other, coordinator.ask(other, Phase.MASK, boxes[other], base="3" * 64)
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


@pytest.mark.parametrize("form", list(Keys))
def test_the_plan_decides_the_form_of_keys_and_no_coordinator(form: Keys) -> None:
    """A coordinator that wants keys it can break later gets an error of its own kind, and no share."""
    mine = Coordinator(form)
    other = Coordinator(next(keys for keys in Keys if keys is not form))
    one = mine.ids[0]
    mine.ask(one, Phase.ADVERTISE, mine.first)
    with pytest.raises(SecrecyError, match=r"^advert\.other-form"):
        mine.ask(one, Phase.SHARE, other.advertise())
    assert mine.sessions[one].phase is Phase.ADVERTISE  # type: ignore[union-attr]


def test_terms_name_the_keys_in_the_hybrid_form_only() -> None:
    for form in Keys:
        made = Coordinator(form)
        ring = ring_for(made.plan, made.instruction, size=SIZE, clients=5)
        terms = terms_for(made.plan, made.instruction, ring, bytes(32))
        assert terms.get("keys") == (form if form is Keys.HYBRID else None)
