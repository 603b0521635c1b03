"""Whatever an honest log grew by is accepted, and no other past, size or way from it. (P-8.10)"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SecrecyError
from protocol.transparency.leaves import Pad
from protocol.transparency.receipts import Receipt
from protocol.transparency.shown import Known, Place, Shown, decode_text, verify_shown
from tests.unit.client.cohort_log import CohortLog

ORIGIN, CLIENT = "fedge/t/00", bytes(16)
PLACE = Place(origin=ORIGIN)


def log_of(size: int, receipt: Receipt | None = None, at: int = 0) -> CohortLog:
    log = CohortLog(ORIGIN, [])
    pad = log.statement(Pad())
    for place in range(size):
        if receipt is not None and place == at:
            log.add_vector(receipt)
        else:
            log.add(pad)
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
        verify_shown(shown, known, PLACE)
    return caught.value.code


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_what_grew_is_accepted_and_another_past_is_not(
    old: int, new: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(old, old + new - 1))
    receipt = receipt_of()
    log = log_of(old + new, receipt, at)
    known = known_at(log, old, receipt)
    shown = log.shown(CLIENT, known.told)
    seen = verify_shown(decode_text(Shown, shown.encode(), "log"), known, PLACE)
    assert seen.checkpoint.size == old + new
    assert list(seen.accounts) == [1]
    assert seen.accounts[1] == shown.proofs[0]
    other = Known(key=known.key, size=old, root=b"\x01" * 32, open=known.open)
    assert code_of(shown, other) == "log.forked"
    ahead = known_at(log_of(old + new + 1), old + new + 1)
    assert code_of(shown, Known(key=log.verifier, size=ahead.size, root=ahead.root)) == "log.shrunk"
    assert code_of(shown, known_at(log, old, receipt_of("6" * 64))) == "log.missing"


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
        verify_shown(decode_text(Shown, text[:at] + letter + text[at + 1 :], "log"), known, PLACE)
