"""A third party gets the same sum from what is published, and notices whatever was changed in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from protocol.errors import FedgeError
from protocol.secagg.agreement import Keys
from protocol.secagg.transcript import Transcript
from protocol.secagg.verification import verify_transcript

Make = Callable[..., Any]
LOST = {"share": (1,), "mask": (3,), "alive": (5,)}


def published(
    cohort: Make, **changes: Any
) -> tuple[Transcript, dict[bytes, bytes], dict[bytes, bytes]]:
    """(transcript, roster, packed vectors) of an attempt of eleven with losses in three phases."""
    made = cohort(**({"size": 11, "minimum": 3, "lost": LOST, "count": 300} | changes))
    vectors: dict[bytes, bytes] = {}
    receive = made.attempt.receive_masked

    def keeping(one: bytes, message: bytes) -> None:
        receive(one, message)
        vectors[one] = message[: made.packed_bytes]

    made.attempt.receive_masked = keeping
    made.run()
    text = made.attempt.transcript().model_dump_json()
    return Transcript.model_validate_json(text), made.roster, vectors


@pytest.mark.parametrize("keys", list(Keys))
@pytest.mark.parametrize("bits", [16, 20, 32])
def test_the_sum_is_the_same(cohort: Make, keys: Keys, bits: int) -> None:
    transcript, roster, vectors = published(cohort, keys_form=keys, bits=bits)
    total = verify_transcript(transcript, roster, vectors.__getitem__, minimum=3)
    assert len(total) == 300
    assert len(vectors) == 9


def test_it_holds_one_seed_of_each_member_and_no_update(cohort: Make) -> None:
    made = cohort(size=6, lost={"mask": (2,)})
    made.run()
    transcript = made.attempt.transcript()
    text = transcript.model_dump_json()
    for state in made.secrets():
        both = [f"{state.self_seed:064x}" in text, f"{state.mask_seed:064x}" in text]
        assert sum(both) == 1  # never both: together they would open a vector
        assert state.channel_secret.hex() not in text


def holds(document: Any, roster: dict[bytes, bytes], vectors: dict[bytes, bytes]) -> bool:
    try:
        verify_transcript(
            Transcript.model_validate(document), roster, vectors.__getitem__, minimum=3
        )
    except (FedgeError, ValueError):
        return False
    return True


def test_every_changed_field_is_noticed(cohort: Make) -> None:
    transcript, roster, vectors = published(cohort)
    document = json.loads(transcript.model_dump_json())
    count = 0
    for where, mutant in mutants(document):
        count += 1
        assert not holds(mutant, roster, vectors), where
    assert count > 60
    with pytest.raises(FedgeError, match="at least 10"):
        verify_transcript(transcript, roster, vectors.__getitem__, minimum=10)


def test_every_changed_byte_of_a_vector_is_noticed(cohort: Make) -> None:
    transcript, roster, vectors = published(cohort)
    rng = np.random.default_rng(0)
    for one in vectors:
        at, bit = int(rng.integers(len(vectors[one]))), int(rng.integers(8))
        changed = bytearray(vectors[one])
        changed[at] ^= 1 << bit
        with pytest.raises(FedgeError, match=one.hex()):
            verify_transcript(
                transcript, roster, (vectors | {one: bytes(changed)}).__getitem__, minimum=3
            )
    first, second = list(vectors)[:2]
    swapped = vectors | {first: vectors[second], second: vectors[first]}
    with pytest.raises(FedgeError, match="not the one it signed"):
        verify_transcript(transcript, roster, swapped.__getitem__, minimum=3)


def test_a_hybrid_box_is_bound_to_the_signed_shares(cohort: Make) -> None:
    transcript, roster, vectors = published(cohort, keys_form=Keys.HYBRID)
    document = json.loads(transcript.model_dump_json())
    assert document["boxes"]
    for field in ("box", "sender", "receiver"):
        entry = document["boxes"][0]
        value = entry[field]
        entry[field] = f"{int(value[:2], 16) ^ 1:02x}" + value[2:]
        with pytest.raises(FedgeError):
            verify_transcript(
                Transcript.model_validate(document), roster, vectors.__getitem__, minimum=3
            )
        entry[field] = value
    document["boxes"] = document["boxes"][1:]
    with pytest.raises(FedgeError, match="is missing"):
        verify_transcript(
            Transcript.model_validate(document), roster, vectors.__getitem__, minimum=3
        )


def mutants(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One changed field, party or order at a time."""
    for key, value in document.items():
        if key in ("parties", "boxes", "terms"):
            continue
        if isinstance(value, int):
            yield key, document | {key: value + 1}
        elif key not in ("keys", "suite"):
            yield key, document | {key: f"{int(value[:2], 16) ^ 1:02x}" + value[2:]}
    yield "suite", document | {"suite": "chacha20"}
    yield "keys", document | {"keys": "x25519+ml-kem-768"}
    yield "terms", document | {"terms": {"round": 2}}
    yield "unknown", document | {"note": "x"}
    parties = document["parties"]
    yield "order", document | {"parties": parties[::-1]}
    for at, party in enumerate(parties):
        rest = [*parties[:at], *parties[at + 1 :]]
        yield f"party {at} gone", document | {"parties": rest}
        yield f"party {at} twice", document | {"parties": [*parties[:at], party, *parties[at:]]}
        for key, value in party.items():
            if not value:
                continue
            flipped = value[:-2] + f"{int(value[-2:], 16) ^ 1:02x}"
            for new in (flipped, ""):
                if key == "alive_signature" and not new:
                    continue  # of more than a quorum one may be missing
                changed = party | {key: new}
                mutant = [*parties[:at], changed, *parties[at + 1 :]]
                yield f"party {at}, {key}", document | {"parties": mutant}
