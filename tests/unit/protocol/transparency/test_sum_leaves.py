"""What the coordinator logs of a sum is what an auditor's transcript is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.encoding import canonical_json
from protocol.errors import ProofError
from protocol.legality_of_secrecy import MOST_SIGNED, most_lost
from protocol.secagg.agreement import Keys
from protocol.secagg.graph import CHOSEN_HOLDERS
from protocol.secagg.openings import alive_digest
from protocol.secagg.transcript import Transcript
from protocol.secagg.verification import verify_transcript
from protocol.transparency.leaf_codec import decode_leaf, encode_statement, sha256
from protocol.transparency.leaves import (
    Advert,
    Aggregate,
    Alive,
    Cohort,
    Leaf,
    Reveal,
    RoundOpen,
    Shares,
    Vector,
)
from protocol.transparency.lists import Lists
from protocol.transparency.sum_leaves import (
    MOST_BOXES_BYTES,
    MOST_BOXES_VALUES,
    SumLeaves,
    SumPlace,
    after_alive,
    alive_leaf,
    before_alive,
    parse_boxes,
    transcript_of,
)
from tests.unit.protocol.secagg.conftest import Cohort as Clients

KEY = Ed25519PrivateKey.generate()
PLACE = SumPlace(group=0, round=1, attempt=1, code="0" * 64)


LISTS: dict[str, bytes] = {}


def keep(data: bytes) -> str:
    LISTS[digest := sha256(data)] = data
    return digest


def fetch(digest: str) -> bytes:
    if digest not in LISTS:
        raise ProofError(f"no list {digest}", "")
    return LISTS[digest]


def box(number: int, size: int) -> dict[str, Any]:
    """As :class:`protocol.secagg.transcript.PairBox`, with a path of a graph of eighty holders."""
    client = number.to_bytes(16, "big").hex()
    return {"sender": client, "receiver": "f" * 32, "box": "ab" * size, "path": ["0" * 64] * 7}


def test_the_boxes_of_the_largest_sum_can_be_read() -> None:
    """Of 2,000 hybrid clients as many are lost as it opens without, each with all of its neighbours."""
    pairs = most_lost(MOST_SIGNED) * 2 * CHOSEN_HOLDERS
    longest = len(canonical_json([box(0, Keys.HYBRID.box_bytes(seed=True))]))
    assert pairs * longest < MOST_BOXES_BYTES
    assert pairs * (1 + 4 + 7) < MOST_BOXES_VALUES
    listed = [box(number, 1) for number in range(23_000)]  # more values than other documents have
    assert [each.model_dump() for each in parse_boxes(canonical_json(listed))] == listed


@pytest.mark.parametrize("data", [b"{}", b"[{}]", b"[ ]", b"[1]", b"null", b"[" * 1000])
def test_what_is_no_list_of_boxes_is_refused(data: bytes) -> None:
    with pytest.raises(ProofError, match="no boxes"):
        parse_boxes(data)


def write(leaf: Leaf, subjects: Mapping[str, str]) -> bytes:
    return encode_statement(leaf, subjects, KEY)


def opened(**changes: Any) -> tuple[Clients, Transcript, dict[bytes, bytes]]:
    settings = {"size": 11, "minimum": 3, "lost": {"share": (1,), "mask": (3,), "alive": (5,)}}
    made = Clients(**(settings | changes))
    vectors: dict[bytes, bytes] = {}
    receive = made.attempt.receive_masked

    def keeping(one: bytes, message: bytes) -> None:
        receive(one, message)
        vectors[one] = message[: made.packed_bytes]

    made.attempt.receive_masked = keeping  # type: ignore[method-assign,assignment]
    made.run()
    return made, made.attempt.transcript(), vectors


def collected(made: Clients, transcript: Transcript) -> SumLeaves:
    first = before_alive(transcript, PLACE, write, keep)
    rid = next(leaf.rid for leaf in map(read, first) if isinstance(leaf, RoundOpen))
    signatures = {
        one: bytes.fromhex(party.alive_signature)
        for one, party in zip(sorted(made.attempt._adverts), transcript.parties, strict=True)
        if party.alive_signature
    }
    alive = alive_leaf(
        seq=1,
        group=0,
        rid=bytes.fromhex(rid),
        alive=made.attempt.alive,
        signatures=signatures,
        keep=keep,
    )
    found = [
        read(data)
        for data in (
            *first,
            write(alive, {"round": rid}),
            *after_alive(transcript, PLACE, rid, write, keep),
        )
    ]

    def of(kind: type[Any]) -> tuple[Any, ...]:
        return tuple(leaf for leaf in found if isinstance(leaf, kind))

    return SumLeaves(
        adverts=of(Advert),
        cohort=of(Cohort)[0],
        shares=of(Shares),
        opened=of(RoundOpen)[0],
        vectors=of(Vector),
        alive=of(Alive)[0],
        reveal=of(Reveal)[0],
        aggregate=of(Aggregate)[0],
    )


def read(data: bytes) -> Leaf:
    return Lists(fetch).whole(decode_leaf(data).leaf)


def again(leaves: SumLeaves, transcript: Transcript) -> Transcript:
    return transcript_of(
        leaves,
        sid=transcript.sid,
        keys=Keys(transcript.keys),
        suite=transcript.suite,
        bits=transcript.bits,
        boxes=transcript.boxes,
    )


@pytest.mark.parametrize("keys", list(Keys))
def test_the_way_there_and_back(keys: Keys) -> None:
    made, transcript, vectors = opened(keys_form=keys)
    rebuilt = again(collected(made, transcript), transcript)
    assert rebuilt == transcript
    verify_transcript(rebuilt, made.roster, vectors.__getitem__, minimum=3)


@pytest.mark.slow
def test_of_a_large_cohort_lists_are_in_files() -> None:
    made, transcript, vectors = opened(
        size=133, lost={"share": (1,), "mask": (3,), "alive": (5,)}, count=20
    )
    LISTS.clear()
    leaves = collected(made, transcript)
    # Members, alive set; seeds and signatures with their ids.
    sizes = [131 * 16, 132 * 16, 132 * (16 + 32), 130 * (16 + 64)]
    assert sorted(map(len, LISTS.values())) == sizes
    assert alive_digest(made.attempt.alive).hex() in LISTS
    rebuilt = again(leaves, transcript)
    assert rebuilt == transcript
    verify_transcript(rebuilt, made.roster, vectors.__getitem__, minimum=3)


def altered(leaves: SumLeaves, name: str, **changes: Any) -> SumLeaves:
    values = {field: getattr(leaves, field) for field in leaves.__dataclass_fields__}
    found = values[name]
    if isinstance(found, tuple):
        values[name] = (found[0].model_copy(update=changes), *found[1:])
    else:
        values[name] = found.model_copy(update=changes)
    return SumLeaves(**values)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cohort", {"u1_root": "1" * 64}),
        ("cohort", {"xid": "1" * 64}),
        ("cohort", {"threshold": 2}),
        ("cohort", {"alive_index": 7}),
        ("shares", {"client": "1" * 32}),
        ("shares", {"xid": "1" * 64}),
        ("opened", {"rid": "1" * 64}),
        ("opened", {"xid": "1" * 64}),
        ("opened", {"terms": {"round": 2}}),
        ("opened", {"members": []}),
        ("vectors", {"client": "1" * 32}),
        ("vectors", {"rid": "1" * 64}),
        ("alive", {"clients": []}),
        ("alive", {"rid": "1" * 64}),
        ("alive", {"signatures": {"1" * 32: "00"}}),
        ("reveal", {"seeds": {}}),
        ("reveal", {"rid": "1" * 64}),
        ("aggregate", {"summands": 1}),
        ("aggregate", {"rid": "1" * 64}),
        ("adverts", {"advert": "00"}),
    ],
)
def test_leaves_that_contradict_each_other_are_refused(name: str, changes: dict[str, Any]) -> None:
    made, transcript, _ = opened()
    leaves = collected(made, transcript)
    with pytest.raises(ProofError):
        again(altered(leaves, name, **changes), transcript)


def test_an_alive_set_without_signatures_needs_its_place() -> None:
    made, transcript, vectors = opened()
    with pytest.raises(ProofError, match="place that was planned"):
        verify_transcript(transcript, made.roster, vectors.__getitem__, minimum=3, alive_at=5)
