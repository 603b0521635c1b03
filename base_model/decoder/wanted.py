"""What a publisher asks of a base that writes text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Required, TypedDict, get_args

from base_model.decoder.check import BOUND, PARTS, ROUNDED
from base_model.decoder.products import FLOATS, WHOLE_NUMBERS
from protocol.errors import PlanError
from protocol.manifest import Bits

# The accuracy level of linears by the bits of what they multiply. 32 is what training computes with.
LEVELS = {32: FLOATS, 8: WHOLE_NUMBERS}
LEAST_CONTEXT = 2  # positions: one to read, and one to write
MOST_CONTEXT = 2**15  # positions in the tables: two numbers each for every two of a head
IN_PARTS = "linears in 8 bits multiply whole numbers in two parts: logits within some 1e-3"
ROUNDING = "linears round what they multiply to 8 bits: faster, logits a few percent off"


class Options(TypedDict, total=False):
    """The fields of :class:`Wanted`, as arguments; those left out have their defaults."""

    bits: Required[int]
    embedding_bits: int
    activation_bits: int
    slots: bool
    context: int | None
    one_file: int | None
    calibration: str | None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a base is made of a source.

    Attributes:
        bits: of linears: 4 or 8 for codes, 16 or 32 for floats. Codes of the source that have as many
            are taken over as they are.
        embedding_bits: the same of the word embeddings and the output layer.
        activation_bits: what linears in codes multiply: 32 for what training does, 8 to round it, which is
            faster and another text after some tokens. The base is the same, adapters fit both.
        slots: False leaves the graphs without optional inputs; for comparison only.
        context: positions at most; None for as many as the kind of base has by itself.
        one_file: bytes of tensors up to which they lie in the graph; None for what is usual of the kind.
        calibration: a text to learn from which inputs matter; codes of 4 bits are then made for them.
            It is not read where no codes of 4 bits are to be made.
    """

    bits: int
    embedding_bits: int = 8
    activation_bits: int = 32
    slots: bool = True
    context: int | None = None
    one_file: int | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        """Raises PlanError that names the option."""
        for option, value in (("--bits", self.bits), ("--embedding-bits", self.embedding_bits)):
            if value not in get_args(Bits):
                raise PlanError(f"{option} {value} is not offered", "use 4, 8, 16 or 32")
        if self.activation_bits not in LEVELS:
            raise PlanError(
                f"--activation-bits {self.activation_bits} is not offered", "use 8 or 32"
            )
        if self.context is not None and self.context < LEAST_CONTEXT:
            raise PlanError(
                f"--context {self.context} is not offered", f"use {LEAST_CONTEXT} or more positions"
            )

    @property
    def level(self) -> int:
        """The accuracy level of linears."""
        return LEVELS[self.activation_bits]

    @property
    def bound(self) -> float:
        """How far a graph may be from its weights."""
        exact = PARTS if self.bits == 8 else BOUND
        return exact if self.level == FLOATS else ROUNDED

    @property
    def rounding(self) -> str:
        """What is to be said of how linears multiply."""
        if self.activation_bits == 8:
            return ROUNDING
        return IN_PARTS if self.bits == 8 else ""
