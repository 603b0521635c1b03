from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

import storage.whole
from protocol import wire
from protocol.errors import ArtefactError, RoundError
from protocol.plan import Plan
from server.store import RunStore

MakePlan = Callable[..., Plan]


def record(folder: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((folder / "rounds" / f"{number:04d}" / "record.json").read_text()))


def refuse(message: Message, _data: bytes) -> Message:
    content = wire.to_record(
        wire.Refusal(kind="DataError", cause="rows.jsonl line 3", remedy="mend it")
    )
    return Message(RecordDict({wire.REPLY: ConfigRecord(content)}), reply_to=message)


def fail(_message: Message, _data: bytes) -> Message:
    raise RuntimeError("out of memory")


def with_tail(tail: bytes) -> Callable[[Message, bytes], Message]:
    def answer(message: Message, data: bytes) -> Message:
        from flwr.app import Array, ArrayRecord

        bad = data[: len(data) - len(tail)] + tail if tail else data[:-4]
        array = Array(np.frombuffer(bad, np.uint8))
        return Message(RecordDict({wire.MASKED: ArrayRecord({"masked": array})}), reply_to=message)

    return answer


def empty(message: Message, _data: bytes) -> Message:
    return Message(RecordDict(), reply_to=message)


NAN = np.array([np.nan], "<f4").tobytes()


@pytest.mark.parametrize(
    ("behaviour", "reason", "detail"),
    [
        (refuse, "error", "rows.jsonl line 3"),
        (fail, "error", "out of memory"),
        (with_tail(NAN), "invalid", "NaN"),
        (with_tail(b""), "invalid", "coordinates"),
        (empty, "invalid", "no update and no refusal"),
    ],
)
def test_a_bad_client_is_named_and_the_others_go_on(
    make_plan: MakePlan,
    populate: Any,
    run: Any,
    tmp_path: Path,
    behaviour: Any,
    reason: str,
    detail: str,
) -> None:
    plan = make_plan(cohort={"size": 6, "quorum": 5, "deadline_s": 30.0})
    population = populate(plan)
    population.odd["cyd"] = behaviour
    run(population, tmp_path / "bad")
    for number in (1, 2, 3):
        found = record(tmp_path / "bad", number)
        assert found["used"] == ["ann", "bo", "dora", "eve", "flo"]
        (dropped,) = found["dropped"]
        assert (dropped["client"], dropped["reason"]) == ("cyd", reason)
        assert detail in dropped["detail"]
        assert sorted([*found["used"], "cyd"]) == found["expected"]


def test_below_the_quorum_the_model_stays_and_the_attempts_are_on_file(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    plan = make_plan(cohort={"size": 6, "quorum": 6, "deadline_s": 30.0, "attempts": 2})
    population = populate(plan)
    population.odd["bo"] = refuse
    with pytest.raises(RoundError, match=r"quorum of 6 in 2 attempts \(bo: "):
        run(population, tmp_path / "r")
    names = sorted(path.name for path in (tmp_path / "r" / "rounds").iterdir())
    assert names == ["0000", "0001.attempt1.json", "0001.attempt2.json"]
    del population.odd["bo"]  # mended
    run(population, tmp_path / "r")
    assert record(tmp_path / "r", 1)["attempt"] == 3
    assert (tmp_path / "r" / "rounds" / "0001.attempt2.json").exists()


def test_names_that_appear_twice_take_no_part(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    population = populate(make_plan(), ["ann", "bo", "bo", "cyd"])
    run(population, tmp_path / "r")
    found = record(tmp_path / "r", 1)
    assert found["expected"] == ["ann", "cyd"]
    assert found["kept_out"] == {"bo": "two nodes have this name"}


def test_whom_the_plan_does_not_name_nobody_asks(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    plan = make_plan(cohort={"size": 6, "quorum": 2, "clients": ["bo", "eve", "zoe"]})
    run(populate(plan), tmp_path / "r")
    for number in (1, 2, 3):
        asked = record(tmp_path / "r", number)
        assert (asked["expected"], asked["kept_out"]) == (["bo", "eve"], {})


class Kill(BaseException):
    """The process dies here."""


RULES = ["alternating", "mean", "lora-sb"]


@pytest.mark.parametrize("rule", RULES)
def test_dying_at_any_step_and_resuming_changes_no_bit(
    make_plan: MakePlan,
    populate: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
) -> None:
    plan = make_plan(rule, server={"optimizer": "fedadam"})
    expected = run(populate(plan), tmp_path / "whole").adapter_digest
    checkpoint = (tmp_path / "whole" / "rounds" / "0003" / "checkpoint.safetensors").read_bytes()
    genuine = storage.whole.sync
    steps = 0

    def counted(path: Path) -> None:
        nonlocal steps
        steps += 1
        genuine(path)

    monkeypatch.setattr(storage.whole, "sync", counted)
    run(populate(plan), tmp_path / "count")
    for fatal in range(1, steps + 1, 3):
        folder, left = tmp_path / f"k{fatal}", fatal

        def dying(path: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Kill
            genuine(path)

        monkeypatch.setattr(storage.whole, "sync", dying)
        with pytest.raises(Kill):
            run(populate(plan), folder)
        monkeypatch.setattr(storage.whole, "sync", genuine)
        assert run(populate(plan), folder).adapter_digest == expected
        assert (folder / "rounds" / "0003" / "checkpoint.safetensors").read_bytes() == checkpoint


def test_a_finished_client_is_not_asked_again(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    plan = make_plan(cohort={"size": 6, "quorum": 6, "deadline_s": 30.0})

    class Dies:
        def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
            if (round, done) == (2, 4):
                raise Kill

        def on_round(self, record: dict[str, Any], tensors: Any) -> None: ...

    first = populate(plan)
    with pytest.raises(Kill):
        run(first, tmp_path / "r", Dies())
    second = populate(plan)
    run(second, tmp_path / "r")
    assert len([name for number, name in first.asked if number == 2]) == 4
    assert len([name for number, name in second.asked if number == 2]) == 2


def test_a_run_folder_of_another_plan_or_a_damaged_one_is_refused(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    run(populate(make_plan()), folder)
    with pytest.raises(ArtefactError, match="another plan"):
        run(populate(make_plan(seed=4)), folder)
    path = folder / "rounds" / "0003" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtefactError, match="damaged"):
        run(populate(make_plan()), folder)


def test_two_coordinators_never_share_a_folder(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "r")
    with pytest.raises(ArtefactError, match="in use"):
        RunStore(tmp_path / "r")
    store.close()
    RunStore(tmp_path / "r").close()


def test_a_name_cannot_leave_the_folder(
    make_plan: MakePlan, populate: Any, run: Any, tmp_path: Path
) -> None:
    population = populate(make_plan(), ["../../evil", "ann", "/etc/x"])
    run(population, tmp_path / "deep" / "r")
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["r"]
