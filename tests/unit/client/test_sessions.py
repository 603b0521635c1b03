"""An attempt of secure aggregation in a site's own files: kept over restarts, never masked twice."""

from __future__ import annotations

import resource
import stat
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client.sessions import session_of
from protocol.errors import MachineError, SecrecyError
from protocol.exchange import Phase
from protocol.secagg.session import Session
from tests.unit.client.secret_cohort import Coordinator

NOWHERE = Context(1, 2, {}, RecordDict(), {})


class Forgetful(Coordinator):
    """Its sites remember nothing but their files."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder = folder
        super().__init__(folder, **sections)

    def ask(self, one: bytes, phase: Phase, request: bytes, **changes: Any) -> bytes:
        assert not changes
        with session_of(NOWHERE, self.folder / one.hex(), self.plan.digest) as kept:
            self.sessions[one] = kept.load()
            reply = super().ask(one, phase, request)
            after = self.sessions[one]
            assert after is not None
            kept.keep(after)
        self.sessions[one] = None
        return reply


def test_a_site_that_restarts_before_every_message_takes_part(tmp_path: Path) -> None:
    cohort = Forgetful(tmp_path)
    for number in (1, 2):
        cohort.begin(number)
        cohort.at_round(number)
        mean, _ = cohort.whole()
        expected = np.mean([cohort.updates[one] for one in cohort.ids], axis=0)
        assert np.allclose(mean, expected, atol=1e-2)
    for one in cohort.ids:
        folder = tmp_path / one.hex()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_a_reply_that_was_lost_the_same_comes_again_but_no_second_vector(
    tmp_path: Path,
) -> None:
    cohort = Forgetful(tmp_path)
    one = cohort.ids[0]
    assert cohort.ask(one, Phase.ADVERTISE, cohort.first) == cohort.ask(
        one, Phase.ADVERTISE, cohort.first
    )
    for each in cohort.ids:
        cohort.core.receive_advert(each, cohort.ask(each, Phase.ADVERTISE, cohort.first))
    request = cohort.core.close_adverts(cohort.ids)
    replies = {each: cohort.ask(each, Phase.SHARE, request) for each in cohort.ids}
    assert cohort.ask(one, Phase.SHARE, request) == replies[one]
    for each, reply in replies.items():
        cohort.core.receive_shares(each, reply)
    boxes = cohort.boxes()
    cohort.ask(one, Phase.MASK, boxes[one])
    trained = cohort.trained
    with pytest.raises(SecrecyError, match="answered"):
        cohort.ask(one, Phase.MASK, boxes[one])
    assert cohort.trained == trained


def test_what_cannot_be_kept_is_not_answered(tmp_path: Path) -> None:
    """A full disk in the middle: the file before stands, and the same request may come again."""
    cohort = Forgetful(tmp_path)
    one = cohort.ids[0]
    boxes = cohort.share()
    path = next(path for path in (tmp_path / one.hex()).iterdir() if path.suffix == ".json")
    before = path.read_bytes()
    with file_size_limit(100), pytest.raises(MachineError, match="cannot be written"):
        cohort.ask(one, Phase.MASK, boxes[one])
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir() if each.name.endswith(".tmp")] == []
    assert cohort.ask(one, Phase.MASK, boxes[one])


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_damaged_file_is_refused_and_shows_no_secret(tmp_path: Path) -> None:
    cohort = Forgetful(tmp_path)
    one = cohort.ids[0]
    cohort.ask(one, Phase.ADVERTISE, cohort.first)
    path = next(path for path in (tmp_path / one.hex()).iterdir() if path.suffix == ".json")
    whole = path.read_bytes()
    session = Session.model_validate_json(whole)
    assert session.advertised is not None
    for damaged in (whole[:-40], whole.replace(b'"seq"', b'"sequel"'), b"", b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(MachineError, match="is not a session") as caught:
            cohort.ask(one, Phase.ADVERTISE, cohort.first)
        text = "".join(traceback.format_exception(caught.value))
        for secret in (session.advertised.channel_secret.hex(), str(session.advertised.self_seed)):
            assert secret not in text
    path.unlink()
    cohort.ask(one, Phase.ADVERTISE, cohort.first)


def test_two_processes_take_turns(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with session_of(NOWHERE, tmp_path / "s", "0" * 64):
            order.append("second")

    with session_of(NOWHERE, tmp_path / "s", "0" * 64):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
