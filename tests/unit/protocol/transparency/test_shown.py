"""Whatever an honest log grew by is accepted, and no other past, size or way from it. (P-8.10)"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SecrecyError
from protocol.secagg.openings import alive_digest
from protocol.transparency.leaf_codec import encode_message
from protocol.transparency.leaves import Abort, Advert, AskedSum, Pad
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.receipts import Receipt
from protocol.transparency.shown import (
    Incoming,
    Known,
    Place,
    Shown,
    decode_text,
    encode_shown,
    verify_shown,
)
from tests.unit.client.cohort_log import CohortLog

ORIGIN, CLIENT = "fedge/t/00", bytes(16)
PLACE, ADAPTER = Place(origin=ORIGIN), "7" * 64
INCOMING = Incoming(round=1, digest=ADAPTER, first=lambda: ADAPTER)


def log_of(size: int, receipt: Receipt | None = None, at: int = 0) -> CohortLog:
    """Pads, with a vector of ``receipt`` at ``at``; its last leaf is the adapter of round 0."""
    log = CohortLog(ORIGIN, [])
    pad = log.statement(Pad())
    for place in range(size - 1):
        if receipt is not None and place == at:
            log.add_vector(receipt)
        else:
            log.add(pad)
    log.add_adapter(0, ADAPTER)
    return log


def receipt_of(root: str = "5" * 64) -> Receipt:
    return Receipt(
        origin=ORIGIN,
        client=CLIENT.hex(),
        sid="2" * 64,
        seq=1,
        rid="4" * 64,
        root=root,
        round=1,
        attempt=1,
    )


def known_at(log: CohortLog, size: int, *receipts: Receipt) -> Known:
    return Known(key=log.verifier, size=size, root=log.tree.root(size), open=receipts)


def code_of(shown: Shown, known: Known) -> str:
    with pytest.raises(SecrecyError) as caught:
        verify_shown(shown, known, PLACE, INCOMING)
    return caught.value.code


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@pytest.mark.slow
def test_what_grew_is_accepted_and_another_past_is_not(
    old: int, new: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(old, old + new - 1))
    new += 1
    receipt = receipt_of()
    log = log_of(old + new, receipt, at)
    known = known_at(log, old, receipt)
    shown = log.shown(CLIENT, known.told)
    seen = verify_shown(decode_text(Shown, shown.encode(), "log"), known, PLACE, INCOMING)
    assert seen.checkpoint.size == old + new
    assert list(seen.accounts) == [receipt.rid]
    assert parse_offline_proof(seen.accounts[receipt.rid]).extra == log.entries[at]
    other = Known(key=known.key, size=old, root=b"\x01" * 32, open=known.open)
    assert code_of(shown, other) == "log.forked"
    ahead = known_at(log_of(old + new + 1), old + new + 1)
    assert code_of(shown, Known(key=log.verifier, size=ahead.size, root=ahead.root)) == "log.shrunk"
    assert code_of(shown, known_at(log, old, receipt_of("6" * 64))) == "log.missing"


def test_a_tail_that_was_encoded_before_makes_the_same_text() -> None:
    """It is megabytes for each of thousands of clients, where an attempt has failed under witnesses."""
    receipt = receipt_of()
    log = log_of(9, receipt, 6)
    for known in (Known(), known_at(log, 5, receipt)):
        shown = log.shown(CLIENT, known.told)
        text = encode_shown(
            key=shown.key,
            checkpoint=shown.checkpoint,
            consistency=shown.consistency,
            tail=shown.tail.encode(),
            proven=shown.proven,
        )
        assert text == shown.encode()
        assert decode_text(Shown, text, "log") == shown


@given(st.data())
def test_no_altered_character_is_accepted(data: st.DataObject) -> None:
    receipt = receipt_of()
    log = log_of(9, receipt, 6)
    known = known_at(log, 5, receipt)
    text = log.shown(CLIENT, known.told).encode()
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from('0aZ+/="\\ n') | st.characters(codec="utf-8"))
    if letter == text[at]:
        return
    with pytest.raises(SecrecyError):
        verify_shown(
            decode_text(Shown, text[:at] + letter + text[at + 1 :], "log"), known, PLACE, INCOMING
        )


@given(st.integers(0, 30), st.integers(0, 30), st.data())
@pytest.mark.slow
def test_the_tail_is_the_whole_end_of_the_log(before: int, after: int, data: st.DataObject) -> None:
    """Whoever leaves leaves out, adds some, or shows an earlier adapter, is refused."""
    log = log_of(before + 1)
    pad = log.statement(Pad())
    for _ in range(after):
        log.add(pad)
    known = known_at(log, 0)
    shown = log.shown(CLIENT, known.told)
    verify_shown(shown, known, PLACE, INCOMING)
    leaves = list(shown.tail.leaves)
    where = data.draw(st.integers(0, len(leaves) - 1))
    for changed in (
        shown.tail.model_copy(update={"leaves": leaves[:where] + leaves[where + 1 :]}),
        shown.tail.model_copy(update={"leaves": [*leaves, pad.decode()]}),
        shown.tail.model_copy(update={"start": shown.tail.start + 1}),
        shown.tail.model_copy(update={"peaks": ""})
        if before
        else shown.tail.model_copy(update={"start": 2}),
    ):
        assert code_of(shown.model_copy(update={"tail": changed}), known) == "log.missing"
    log.add_adapter(1, "8" * 64)
    late = log.shown(CLIENT, known.told)
    assert code_of(late, known) == "log.adapter"
    hidden = late.model_copy(update={"tail": log.tail(shown.tail.start)})
    assert code_of(hidden, known) == "log.missing"


def test_the_incoming_adapter_is_the_logs_last() -> None:
    log = log_of(5)
    known = known_at(log, 0)
    shown = log.shown(CLIENT, known.told)
    for change in (
        {"digest": "8" * 64},
        {"round": 2},
        {"first": lambda: "8" * 64},  # not what the plan makes of round 0
    ):
        with pytest.raises(SecrecyError) as caught:
            verify_shown(shown, known, PLACE, replace(INCOMING, **change))
        assert caught.value.code == "log.adapter"


ASKED = AskedSum(group=0, rid="4" * 64, clients=[CLIENT.hex(), "f" * 32])
ALIVE = alive_digest([CLIENT, b"\xff" * 16])


@pytest.mark.parametrize(
    ("leaf", "accounts"),
    [
        ("none", False),
        ("sum", True),
        ("sum of others", False),
        ([ASKED], True),
        ([], False),
        ([ASKED.model_copy(update={"rid": "5" * 64})], False),
        ([ASKED.model_copy(update={"clients": ["f" * 32]})], False),
    ],
)
def test_what_a_client_helped_to_open_is_in_the_log(leaf: object, accounts: bool) -> None:
    """A vector in the log accounts for a receipt; for shares only a sum does, or that it was asked for."""
    receipt = receipt_of()
    log = log_of(4, receipt, 1)
    number = 0
    if isinstance(leaf, list):
        abort = Abort(seq=1, group=None, round=1, attempt=1, revealed=leaf)
        log.add(log.statement(abort))
    elif leaf != "none":
        log.add_adapter(1, "8" * 64, [receipt.rid if leaf == "sum" else "5" * 64])
        number = 1
    known = replace(known_at(log, 1, receipt), opened={receipt.rid: ALIVE})
    incoming = INCOMING if not number else replace(INCOMING, round=2, digest="8" * 64)
    shown = log.shown(CLIENT, known.told)
    verify_shown(shown, replace(known, opened={}), PLACE, incoming)
    if accounts:
        verify_shown(shown, known, PLACE, incoming)
        return
    with pytest.raises(SecrecyError) as caught:
        verify_shown(shown, known, PLACE, incoming)
    assert caught.value.code == "log.unrevealed"


def test_a_round_of_many_failed_attempts_is_still_shown() -> None:
    """Under witnesses each leaves its adverts in the log, and all of it since the last adapter is shown.

    128 clients with hybrid keys, three attempts while the witnesses are down, resumed twice: had it been too
    long for a client, the run would have been at its end for ever.
    """
    log = log_of(4)
    known = known_at(log, 4)
    for number in range(128 * 9):
        log.add(encode_message(Advert(group=0, advert=f"{number:05168x}")))
    text = log.shown(CLIENT, known.told).encode()
    assert len(text) > 6_000_000
    assert verify_shown(decode_text(Shown, text, "log"), known, PLACE, INCOMING).accounts == {}
