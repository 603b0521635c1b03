"""``metrics.jsonl``: one line an event, complete after every kill, and nothing of a single client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import ArtefactError, FedgeError
from protocol.exchange import Phase
from server.history import HISTORY, Event, append_events, read_history
from tests.unit.audit.runs import go_on, make_run

THREE: dict[str, Any] = {"cohort": {"size": 3, "quorum": 3, "deadline_s": 30.0}, "count": 3}
PLAIN = {"secrecy": {"exchange": "plain"}}
NOISE = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds in clear. Not to be changed."""
    return make_run(tmp_path_factory.mktemp("history") / "run", **THREE, **PLAIN)


def test_every_round_has_its_events_by_the_record(run: Path) -> None:
    events = read_history(run)
    assert [(e.round, e.event) for e in events] == [
        (number, kind) for number in (1, 2) for kind in ("clients", "round")
    ]
    for event in events:
        record = json.loads((run / f"rounds/{event.round:04d}/record.json").read_text())
        if event.event == "round":
            assert event.values["used"] == len(record["used"]) == 3
            assert event.values["update_norm"] == record["update_norm"]
        else:
            examples = record["metrics"]["examples"]
            assert event.values["examples"] == examples
            assert event.values["train_loss"] == record["metrics"]["loss_sum"] / examples


@pytest.mark.parametrize("sections", [{}, PLAIN, {"privacy": NOISE, "rule": {"name": "first"}}])
def test_no_client_is_named_and_under_noise_nothing_is_told_of_them(
    sections: dict[str, Any], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", rounds=1, **THREE, **sections)
    assert "site-" not in (run / HISTORY).read_text()
    kinds = {event.event for event in read_history(run)}
    assert kinds == ({"round"} if "privacy" in sections else {"round", "clients"})
    if "privacy" in sections:
        assert read_history(run)[0].values["epsilon"] > 0


Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "gone": lambda data: b"",
    "one line less": lambda data: data[: data.rindex(b"\n", 0, -1) + 1],
    "torn": lambda data: data[:-9],
    "torn at its end": lambda data: data[:-1],
    "torn at its beginning": lambda data: data + b'{"for',
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_killed_coordinator_makes_up_for_what_it_did_not_write(
    damage: str, tmp_path: Path
) -> None:
    """As it would be after a kill at any byte; resumed, the same events are there once."""

    def gone_in_round_2(number: int, attempt: int, phase: Phase, site: int) -> bool:
        return number == 2

    run = tmp_path / "run"
    with pytest.raises(FedgeError):
        make_run(run, lost=gone_in_round_2, **THREE, **PLAIN)
    before = read_history(run)
    path = run / HISTORY
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    make_run(run, **THREE, **PLAIN)
    after = read_history(run)
    assert [(e.round, e.event, e.values) for e in after if e.round == 1] == [
        (e.round, e.event, e.values) for e in before
    ]
    assert {e.round for e in after} == {1, 2}
    assert path.read_bytes().endswith(b"\n")


def test_rounds_of_a_run_that_goes_on_are_counted_on(run: Path, tmp_path: Path) -> None:
    more = go_on(run, tmp_path / "more", rounds=1, **THREE, **PLAIN)
    assert {(e.round, e.turn) for e in read_history(more)} == {(1, 3)}


def test_of_two_lines_about_the_same_the_later_counts(tmp_path: Path) -> None:
    lines = [
        Event(event="evaluation", round=1, turn=1, time=float(at), values={"accuracy": at / 4})
        for at in (1, 2)
    ]
    (tmp_path / HISTORY).write_text("".join(line.model_dump_json() + "\n" for line in lines))
    assert read_history(tmp_path) == lines[1:]


ODD = {
    "another version": '{"format":2,"event":"round","round":1,"turn":1,"time":0.0,"values":{}}',
    "another event": '{"format":1,"event":"guess","round":1,"turn":1,"time":0.0,"values":{}}',
    "one key more": '{"event":"round","round":1,"turn":1,"time":0.0,"values":{},"x":1}',
    "a name": '{"event":"round","round":1,"turn":1,"time":0.0,"values":{"a b":1.0}}',
    "no number": '{"event":"round","round":1,"turn":1,"time":0.0,"values":{"a":"1"}}',
    "not finite": '{"event":"round","round":1,"turn":1,"time":0.0,"values":{"a":NaN}}',
    "no JSON": "loss 3",
}


@pytest.mark.parametrize("line", ODD)
def test_a_line_that_is_no_event_is_named(line: str, tmp_path: Path) -> None:
    good = Event(event="round", round=1, turn=1, time=0.0, values={}).model_dump_json()
    (tmp_path / HISTORY).write_text(f"{good}\n{ODD[line]}\n{good}\n")
    with pytest.raises(ArtefactError, match="line 2 is no event"):
        read_history(tmp_path)


def test_a_line_behind_a_torn_one_is_a_line(tmp_path: Path) -> None:
    event = Event(event="round", round=1, turn=1, time=1.0, values={"used": 3.0})
    append_events(tmp_path, iter([event]))
    whole = (tmp_path / HISTORY).read_bytes()
    (tmp_path / HISTORY).write_bytes(whole + whole[:-9])
    later = event.model_copy(update={"round": 2})
    append_events(tmp_path, iter([later]))
    assert read_history(tmp_path) == [event, later]
