"""Updates in clear on disk: what a kill or a power cut leaves is never counted as somebody's update."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.replies
from protocol.exchange import Contribution
from protocol.exchange.plain import PlainClient, PlainCoordinator
from protocol.plan import Plan
from protocol.tasks.classification import METRICS
from server.replies import Replies

MakePlan = Callable[..., Plan]
SIZE = 70_000


class Kill(BaseException):
    """The process dies here."""


class Dies:
    """A listener that ends the process behind a reply."""

    def __init__(self, number: int, after: int) -> None:
        self.fatal = number, after

    def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
        if (round, done) == self.fatal:
            raise Kill

    def on_round(self, record: dict[str, Any], tensors: Any) -> None: ...


def message(seed: int, weight: int = 1) -> bytes:
    update = np.random.default_rng(seed).normal(0, 1, SIZE).astype(np.float32)
    metrics = dict.fromkeys(METRICS, float(seed))
    return PlainClient().mask(Contribution(update=update, weight=weight, metrics=metrics))


def coordinator() -> PlainCoordinator:
    return PlainCoordinator(SIZE, max_weight=2**24, metrics=METRICS)


def test_another_clients_update_is_nobody_elses(tmp_path: Path) -> None:
    """After a power cut a file may have what was there before it was written over."""
    replies = Replies(tmp_path)
    replies.put("ann", message(1))
    shutil.copy(tmp_path / "ann.reply", tmp_path / "bo.reply")
    assert Replies(tmp_path).get("bo") is None
    assert not (tmp_path / "bo.reply").exists()
    assert Replies(tmp_path).get("ann") == message(1)


@pytest.mark.parametrize("length", [0, 7, 24, 40, 41, 1000, 65_539])
def test_updates_of_any_length_come_back_and_pieces_of_them_do_not(
    tmp_path: Path, length: int
) -> None:
    data = bytes(np.random.default_rng(length).integers(0, 256, length, np.uint8))
    Replies(tmp_path).put("ann", data)
    assert Replies(tmp_path).get("ann") == data
    path = tmp_path / "ann.reply"
    whole = path.read_bytes()
    half = bytearray(whole)
    half[len(half) // 2] ^= 1
    for odd in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", bytes(half)):
        path.write_bytes(odd)
        assert Replies(tmp_path).get("ann") is None
    assert Replies(tmp_path).get("nobody") is None


def test_files_serve_again_once_their_sum_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.replies, "MOST", 3)
    replies, exchange = Replies(tmp_path), coordinator()
    for number in range(11):
        replies.put(f"c{number}", message(number, weight=number + 1))
        exchange.receive(f"c{number}", message(number, weight=number + 1))
        if replies.full:
            replies.keep_sum(exchange.state())
        assert len(list(tmp_path.iterdir())) <= 4
    again, left = coordinator(), Replies(tmp_path)
    kept = left.kept_sum()
    assert kept is not None
    summed = again.restore(kept)
    left.summed(summed)
    assert sorted(summed) == sorted(f"c{number}" for number in range(9))
    for client in ("c9", "c10"):
        data = left.get(client)
        assert data is not None
        again.receive(client, data)
    assert again.unmask().mean.tobytes() == exchange.unmask().mean.tobytes()
    assert again.unmask().metrics == exchange.unmask().metrics


def test_a_sum_that_is_not_whole_counts_for_nothing(tmp_path: Path) -> None:
    replies, exchange = Replies(tmp_path), coordinator()
    exchange.receive("ann", message(1))
    replies.keep_sum(exchange.state())
    whole = (tmp_path / "sum").read_bytes()
    for odd in (b"", whole[:-8], whole[:100], b"\0" * len(whole)):
        (tmp_path / "sum").write_bytes(odd)
        assert Replies(tmp_path).kept_sum() is None
    with pytest.raises(ValueError, match="another exchange"):
        PlainCoordinator(SIZE - 1, max_weight=1, metrics=METRICS).restore(exchange.state())


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_killed_behind_any_reply_nobody_is_asked_again_and_no_bit_changes(
    make_plan: MakePlan,
    populate: Any,
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    plan = make_plan(cohort={"size": 6, "quorum": 6, "deadline_s": 30.0})
    expected = run(populate(plan), tmp_path / "whole").adapter_digest
    monkeypatch.setattr(server.replies, "MOST", 2)
    first, second = populate(plan), populate(plan)
    with pytest.raises(Kill):
        run(first, tmp_path / "r", Dies(2, after))
    assert run(second, tmp_path / "r").adapter_digest == expected
    asked = [name for number, name in (*first.asked, *second.asked) if number == 2]
    assert sorted(asked) == sorted(first.names)
    records = [
        json.loads((tmp_path / name / "rounds" / "0002" / "record.json").read_bytes())
        for name in ("whole", "r")
    ]
    assert records[0]["bytes_up_per_client"] == records[1]["bytes_up_per_client"]
    assert records[0]["used"] == records[1]["used"]
