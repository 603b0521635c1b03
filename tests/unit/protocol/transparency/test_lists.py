"""Lists that a leaf has no room for: put away and read back, and refused in every other form."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ProofError
from protocol.transparency.leaf_codec import decode_leaf, encode_message, sha256
from protocol.transparency.leaves import Abort, Alive, AskedSum, Pad, Reveal, RoundOpen, Shares
from protocol.transparency.lists import (
    INLINE_UP_TO,
    MOST_CLIENTS,
    Lists,
    by_client,
    digests_in,
    list_path,
    of_asked,
    of_clients,
)


class Files(dict[str, bytes]):
    """Lists by digest."""

    def keep(self, data: bytes) -> str:
        self[digest := sha256(data)] = data
        return digest

    def fetch(self, digest: str) -> bytes:
        if digest not in self:
            raise ProofError(f"{list_path(digest)} is not there", "")
        return self[digest]


def ids(count: int) -> list[str]:
    return sorted(
        hashlib.sha256(bytes([number % 256, number // 256])).hexdigest()[:32]
        for number in range(count)
    )


def alive(clients: Any, signatures: Any) -> Alive:
    return Alive(seq=1, group=0, rid="0" * 64, clients=clients, signatures=signatures)


@given(st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=40)
def test_a_leaf_comes_back_whole(count: int, signed: int) -> None:
    files, clients = Files(), ids(count)
    signatures = dict.fromkeys(ids(signed), "ab" * 64)
    leaf = alive(of_clients(clients, files.keep), by_client(signatures, files.keep))
    assert isinstance(leaf.clients, str) == (count > INLINE_UP_TO)
    assert sorted(digests_in(leaf)) == sorted(files)
    again = Lists(files.fetch).whole(leaf)
    assert (again.ids, again.signed) == (clients, signatures)
    if count > INLINE_UP_TO:  # the very thing that members of an alive set sign
        assert leaf.clients == sha256(bytes.fromhex("".join(clients)))


def test_every_leaf_with_lists_is_known() -> None:
    files, clients = Files(), ids(200)
    seeds = dict.fromkeys(clients, "cd" * 32)
    asked = [
        AskedSum(group=group, rid="0" * 64, clients=part)
        for group, part in enumerate((clients, clients[:5]))
    ]
    common: dict[str, Any] = {"seq": 1, "group": 0, "rid": "0" * 64}
    opened = RoundOpen(
        **common, round=1, attempt=1, xid="0" * 64, members=of_clients(clients, files.keep),
        terms={}, count=1, code="0" * 64,
    )  # fmt: skip
    reveal = Reveal(**common, seeds=by_client(seeds, files.keep), boxes="")
    abort = Abort(seq=1, group=None, round=1, attempt=1, revealed=of_asked(asked, files.keep))
    assert len(files) == 2  # members and an alive set of the same clients are one file
    assert Lists(files.fetch).whole(opened).ids == clients
    assert Lists(files.fetch).whole(reveal).by_id == seeds
    assert [one.ids for one in Lists(files.fetch).whole(abort).revealed] == [clients, clients[:5]]
    assert [*digests_in(opened), *digests_in(abort)] == [opened.members, opened.members]
    assert Lists(files.fetch).whole(Pad()) == Pad()
    assert list(digests_in(Pad())) == []


ROWS = bytes.fromhex("".join(ids(200)))


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (ROWS[:-1], "no list"),
        (ROWS[:16] + ROWS, "no list"),
        (ROWS[16:32] + ROWS[:16] + ROWS[32:], "no list"),
        (ROWS[: INLINE_UP_TO * 16], "no list"),  # such a list has room in its leaf
        (b"", "no list"),
        (b"".join(number.to_bytes(16, "big") for number in range(MOST_CLIENTS + 1)), "no list"),
    ],
)
def test_other_lists_are_refused(data: bytes, cause: str) -> None:
    files = Files()
    with pytest.raises(ProofError, match=cause):
        Lists(files.fetch).whole(alive(files.keep(data), {}))


def test_a_list_is_read_once_however_many_leaves_name_it() -> None:
    files, read = Files(), []

    def fetch(digest: str) -> bytes:
        read.append(digest)
        return files.fetch(digest)

    asked = AskedSum(group=0, rid="0" * 64, clients=of_clients(ids(200), files.keep))
    abort = Abort(seq=1, group=None, round=1, attempt=1, revealed=[asked] * 300)
    lists = Lists(fetch)
    first, second = lists.whole(abort), lists.whole(abort.model_copy(update={"seq": 2}))
    assert len(read) == 1
    assert len({id(each.clients) for leaf in (first, second) for each in leaf.revealed}) == 1


def test_a_list_that_is_another_or_missing_or_had_room_is_refused() -> None:
    files = Files()
    digest = files.keep(ROWS)
    files[digest] = ROWS[16:]
    with pytest.raises(ProofError, match="other bytes"):
        Lists(files.fetch).whole(alive(digest, {}))
    with pytest.raises(ProofError, match="not there"):
        Lists(files.fetch).whole(alive("0" * 64, {}))
    with pytest.raises(ProofError, match="names 200 clients"):
        Lists(files.fetch).whole(alive(ids(200), {}))
    with pytest.raises(ProofError, match="values"):
        Lists(files.fetch).whole(alive([], dict.fromkeys(ids(200), "ab" * 64)))


def test_shares_say_their_choice_where_there_is_one() -> None:
    """Those of small cohorts have the bytes that they always had."""
    plain = Shares(client="0" * 32, xid="1" * 64, root="2" * 64, signature="")
    chosen = plain.model_copy(update={"choice": "3" * 64})
    assert b"choice" not in encode_message(plain)
    for leaf in (plain, chosen):
        assert decode_leaf(encode_message(leaf)).leaf == leaf
    said = encode_message(chosen).replace(b"3" * 64, b"")
    with pytest.raises(ProofError, match="fields"):
        decode_leaf(said)
