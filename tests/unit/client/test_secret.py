"""A client in secure aggregation, phase by phase, against a coordinator that asks twice or lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.forecast import download_bytes, upload_bytes
from protocol.errors import MachineError, SecrecyError
from protocol.exchange import Phase
from protocol.secagg.agreement import Keys
from protocol.secagg.messages import split_unmask
from protocol.secagg.session import Session
from protocol.secagg.task import encoding_for, terms_for
from protocol.tasks.classification import METRICS
from tests.unit.client.secret_cohort import SIZE, Coordinator, adapter_of


@pytest.fixture(params=list(Keys))
def coordinator(request: pytest.FixtureRequest, tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path, secrecy={"keys": request.param})


def test_the_mean_and_the_sums_of_metrics_come_out(coordinator: Coordinator) -> None:
    mean, sums = coordinator.whole()
    expected = np.mean(list(coordinator.updates.values()), axis=0)
    assert np.abs(mean - expected).max() < 0.01
    none = {"eval_examples": 0.0, "eval_correct": 0.0}  # nobody was asked to evaluate
    counts = {"failures": 0.0, "clipped": 0.0}
    assert sums == dict.fromkeys(METRICS, 10.0) | none | counts
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
    coordinator.at_round(2)
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


def test_another_attempt_or_base_under_the_same_round_gives_masks_that_do_not_cancel(
    coordinator: Coordinator,
) -> None:
    """Told from the start on: the coordinator gets signatures that do not fit its terms."""
    cohort = coordinator.advertise()
    told = {
        coordinator.ids[0]: {"attempt": 2},
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


def test_a_client_that_forgot_its_session_opens_no_other_sum_of_a_round(
    coordinator: Coordinator,
) -> None:
    """A coordinator starts Flower runs at will; each gives a node an empty state."""
    opened(coordinator)
    coordinator.sessions = dict.fromkeys(coordinator.ids)
    coordinator.begin(2)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        opened(coordinator, out=coordinator.ids[3])
    coordinator.sessions = dict.fromkeys(coordinator.ids)
    coordinator.begin(3)
    with pytest.raises(SecrecyError, match=r"^round\.revealed"):
        coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first, attempt=2)


START = {
    "adapter": adapter_of(1),
    "settings": "4" * 64,
    "round": 1,
    "rounds": 1,
    "plans": ["1" * 64],
    "origin": "fedge/x/1",
    "size": 9,
    "root": "2" * 64,
}


@pytest.mark.parametrize("first", ["anew", "start", "of an older version"])
@pytest.mark.parametrize("second", ["anew", "start"])
def test_a_start_and_a_plan_anew_do_not_get_two_sums_of_one_adapter(
    first: str, second: str, tmp_path: Path
) -> None:
    """Whichever is first, and where the memory does not say what it was. Two plans anew were agreed to."""
    opened(Coordinator(tmp_path, **({"start": START} if first == "start" else {})))
    if first == "of an older version":
        for path in tmp_path.glob("*.openings.jsonl"):
            line = json.loads(path.read_text())
            del line["start"]
            path.write_text(json.dumps(line) + "\n")
    again = Coordinator(tmp_path, name="u", **({"start": START} if second == "start" else {}))
    if (first, second) == ("anew", "anew"):
        opened(again, out=again.ids[3])
        return
    with pytest.raises(SecrecyError, match=r"^adapter\.revealed"):
        opened(again, out=again.ids[3])


def test_a_damaged_memory_of_opened_sums_reveals_nothing(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    name = coordinator.members[coordinator.ids[0]].name
    (tmp_path / f"{name}.openings.jsonl").write_text("{}\n")
    with pytest.raises(MachineError, match="opened sums"):
        coordinator.ask(coordinator.ids[0], Phase.ADVERTISE, coordinator.first)


@pytest.mark.parametrize("changes", [{"round": 1}, {"attempt": 2}, {"adapter_digest": "5" * 64}])
def test_no_phase_is_told_another_instruction(
    coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    """A mask made for one round under another's number would be a second sum of that round."""
    coordinator.at_round(2)
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
    coordinator.at_round(2)
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


def test_a_client_that_the_plan_does_not_name_is_a_stranger_to_the_others(tmp_path: Path) -> None:
    """The coordinator asks it all the same, and it answers."""
    cohort = {"size": 5, "quorum": 3, "clients": [f"site-{number}" for number in range(4)]}
    coordinator = Coordinator(tmp_path, cohort=cohort)
    advertised = coordinator.advertise()
    for one in coordinator.ids:
        if coordinator.members[one].name in cohort["clients"]:
            with pytest.raises(SecrecyError, match=r"cohort\.unknown-client"):
                coordinator.ask(one, Phase.SHARE, advertised)
