"""What of an attempt may be published, from which anybody repeats its sum. (P-8.3)

Every term of the sum is fixed by something a client signed: its vector by the root it signed, its self
mask by the commitment in its advert, its pair masks by the keys in the adverts, the members by the
contexts. Of each client exactly one seed is in it: that of the self mask when its vector is in the sum,
that of the mask key when it was lost. So nobody learns more than the sum.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.secagg.primitives import Word

Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
U16 = Annotated[int, Field(ge=0, lt=2**16)]
U64 = Annotated[int, Field(ge=0, lt=2**64)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PairBox(_Model):
    """In the hybrid form: what a pair's secret comes from, and where it lies in its sender's shares."""

    sender: Hex
    receiver: Hex
    box: Hex
    path: list[Hex]


class Party(_Model):
    """One advertised client; what it did not come to is empty."""

    advert: Hex
    shares_root: Hex = ""
    shares_signature: Hex = ""
    vector_root: Hex = ""
    vector_signature: Hex = ""
    alive_signature: Hex = ""
    seed: Hex = ""
    choice: Hex = ""  # of its holders, in a large cohort (P-6.3)


class Transcript(_Model):
    """The public record of one sum. Parties are in the order of their ids."""

    format: Literal[1] = 1
    sid: Hex
    seq: U64
    keys: Literal["x25519", "x25519+ml-kem-768"]
    suite: Literal["aes-256-ctr", "chacha20"]
    bits: Annotated[int, Field(ge=8, le=32)]
    count: Annotated[int, Field(gt=0, lt=2**32)]
    degree: U16
    threshold: U16
    alive_index: U64
    graph_seed: Hex
    terms: dict[str, Any]
    parties: list[Party]
    boxes: list[PairBox] = []
    sum: Hex  # SHA-256 of the packed words


def sum_digest(words: Word) -> str:
    """SHA-256 of the sum's words, little-endian, in hex."""
    return hashlib.sha256(words.astype(words.dtype.newbyteorder("<")).tobytes()).hexdigest()
