"""A few blocks of a sum, added again alone: the same words, and what was changed in them is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ProofError
from protocol.merkle import leaf_hash
from protocol.secagg.agreement import Keys
from protocol.secagg.client import CHUNK
from protocol.secagg.packing import BLOCK, block_count, block_place, pack, packed_size, unpack
from protocol.secagg.primitives import Suite, Word
from protocol.secagg.transcript import Transcript, sum_digest
from protocol.secagg.verification import (
    verify_transcript,
    verify_transcript_part,
    verify_without_vectors,
)

Make = Callable[..., Any]
COUNT = 2 * BLOCK + 777


def split(packed: bytes) -> list[bytes]:
    return [packed[at : at + CHUNK] for at in range(0, len(packed), CHUNK)]


class Published:
    """What an auditor gets of a sum of four out of five; what is in it may be changed."""

    def __init__(self, made: Any) -> None:
        packed: dict[bytes, bytes] = {}
        receive = made.attempt.receive_masked

        def keeping(one: bytes, message: bytes) -> None:
            receive(one, message)
            packed[one] = message[: made.packed_bytes]

        made.attempt.receive_masked = keeping
        self.words: Word = made.run()
        self.transcript: Transcript = made.attempt.transcript()
        self.roster, self.vectors = made.roster, packed
        self.pieces = {one: split(data) for one, data in packed.items()}
        self.hashes = {one: list(map(leaf_hash, each)) for one, each in self.pieces.items()}

    def verify(self, *blocks: int) -> None:
        verify_transcript_part(
            self.transcript,
            self.roster,
            self.words,
            self.hashes.__getitem__,
            lambda one, number: self.pieces[one][number],
            blocks=blocks,
            minimum=3,
        )


@pytest.fixture
def published(cohort: Make) -> Callable[..., Published]:
    def make(**changes: Any) -> Published:
        settings_ = {"size": 5, "lost": {"mask": (2,)}, "count": COUNT} | changes
        return Published(cohort(**settings_))

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 16},
        {"bits": 12},
        {"bits": 20, "suite": Suite.CHACHA20},
        {"bits": 24, "keys_form": Keys.HYBRID},
        {"bits": 32},
        {"bits": 20, "count": 50},
    ],
)
def test_all_parts_agree_with_the_whole(
    published: Callable[..., Published], changes: dict[str, Any]
) -> None:
    made = published(**changes)
    made.verify(*range(block_count(made.transcript.count)))
    for workers in (1, 2, 7):
        total = verify_transcript(
            made.transcript, made.roster, made.vectors.__getitem__, minimum=3, workers=workers
        )
        assert total.tobytes() == made.words.tobytes()


@settings(max_examples=30)
@given(st.integers(8, 32), st.integers(1, 3 * BLOCK), st.integers(0, 99))
def test_a_block_of_packed_words_is_that_block_of_words(bits: int, count: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint32)
    packed, end = pack(words, bits), 0
    for block in range(block_count(count)):
        coordinates, octets = block_place(block, count, bits)
        assert octets.start == end == block * BLOCK * bits // 8
        size, end = coordinates.stop - coordinates.start, octets.stop
        assert (unpack(packed[octets], size, bits) == words[coordinates]).all()
    assert end == len(packed) == packed_size(count, bits)
    with pytest.raises(IndexError):
        block_place(block_count(count), count, bits)
    with pytest.raises(IndexError):
        block_place(-1, count, bits)


def test_a_wrong_word_of_the_sum_is_found_in_its_block_and_only_there(
    published: Callable[..., Published],
) -> None:
    made = published(bits=20)
    made.words[BLOCK + 5] ^= 1
    with pytest.raises(ProofError, match="not the published ones"):
        made.verify(0)
    # A coordinator that publishes another sum signs its digest, too.
    update = {"sum": sum_digest(made.words)}
    made.transcript = made.transcript.model_copy(update=update)
    made.verify(0, 2)
    for blocks in ((1,), (0, 1)):
        with pytest.raises(ProofError, match="the sum, block 1"):
            made.verify(*blocks)
    made.words[BLOCK + 5] ^= 1 | 2**20  # as it was, but for a bit outside the ring
    made.transcript = made.transcript.model_copy(update={"sum": sum_digest(made.words)})
    with pytest.raises(ProofError, match="the sum, block 1"):
        made.verify(1)


@pytest.mark.parametrize("bits", [16, 20])
def test_a_wrong_byte_in_the_block_is_found_whose_and_where(
    published: Callable[..., Published], bits: int
) -> None:
    made = published(bits=bits)
    one = list(made.pieces)[1]
    for block in range(3):
        _, octets = block_place(block, COUNT, bits)
        for at in (octets.start, octets.stop - 1):
            number, place = divmod(at, CHUNK)
            whole = made.pieces[one][number]
            changed = bytearray(whole)
            changed[place] ^= 0x80
            made.pieces[one][number] = bytes(changed)
            with pytest.raises(ProofError, match=f"{one.hex()}: piece {number} of its vector"):
                made.verify(block)
            made.pieces[one][number] = whole
        made.verify(block)


def test_a_piece_of_another_length_client_or_place_is_found(
    published: Callable[..., Published],
) -> None:
    made = published()
    one, other = list(made.pieces)[:2]
    whole = made.pieces[one]
    for wrong in (whole[0][:-1], whole[0] + b"\x00", whole[1], b"", made.pieces[other][0]):
        made.pieces[one] = [wrong, *whole[1:]]
        with pytest.raises(ProofError, match=f"{one.hex()}: piece 0"):
            made.verify(0)


def test_every_mutation_of_a_list_of_hashes_is_found(published: Callable[..., Published]) -> None:
    made = published()
    one, other = list(made.hashes)[:2]
    whole = made.hashes[one]
    assert len(whole) == 3
    flipped = bytes([whole[2][0] ^ 1]) + whole[2][1:]
    forged = leaf_hash(b"other bytes")
    for wrong in (
        whole[:-1],
        whole[1:],
        [*whole, whole[-1]],
        whole[::-1],
        [whole[0], whole[0], whole[2]],
        [*whole[:2], flipped],
        [forged, *whole[1:]],
        [*whole[:2], whole[2] + b"\x00"],
        [whole[0] + whole[1][:1], whole[1][1:], whole[2]],  # the same bytes to hash
        made.hashes[other],
        [],
    ):
        made.hashes[one] = wrong
        with pytest.raises(ProofError, match=f"{one.hex()}: .*hashes"):
            made.verify(0)  # even where the block itself is as it was


def test_a_part_rests_on_all_that_is_signed(published: Callable[..., Published]) -> None:
    made = published()
    parties = made.transcript.parties
    for field in ("advert", "shares_signature", "vector_signature", "seed"):
        value = getattr(parties[0], field)
        party = parties[0].model_copy(update={field: value[:-2] + f"{int(value[-2:], 16) ^ 1:02x}"})
        update = {"parties": [party, *parties[1:]]}
        genuine, made.transcript = made.transcript, made.transcript.model_copy(update=update)
        with pytest.raises(ProofError):
            made.verify()
        with pytest.raises(ProofError):
            verify_without_vectors(made.transcript, made.roster, minimum=3)
        made.transcript = genuine
    verify_without_vectors(made.transcript, made.roster, minimum=3)
    with pytest.raises(IndexError):
        made.verify(3)
    made.words = made.words[:-1]
    with pytest.raises(ProofError, match="not the published ones"):
        made.verify()


def test_a_fault_reaches_the_caller_from_every_thread(published: Callable[..., Published]) -> None:
    made = published(count=300)
    for one, whole in made.vectors.items():
        wrong = made.vectors | {one: whole[:-1] + bytes([whole[-1] ^ 1])}
        with pytest.raises(ProofError, match=f"{one.hex()}: its vector is not the one"):
            verify_transcript(made.transcript, made.roster, wrong.__getitem__, minimum=3, workers=3)
