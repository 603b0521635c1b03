"""What every table of a plan is made of: the frozen model, and the bounds of names and numbers. (P-1.2)"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# No plan needs more, and whoever reads one does not pay for a number that somebody has typed. (P-1.2)
MOST_ROUNDS, MOST_CLIENTS, MOST_ATTEMPTS = 100_000, 65_536, 1000
MOST_RANK, MOST_EPOCHS, MOST_STEPS, MOST_BATCH = 4096, 10_000, 10_000_000, 65_536
MOST_SECONDS, MOST_REAL = 2_592_000.0, 1e30  # thirty days; its square is far from infinity
MOST_MEMORY = 2**24  # MiB
MOST_TARGETS, MOST_WITNESSES, MOST_LAYER = 256, 64, 1023
MOST_TRIM = 511  # of 1024 groups
NAME_BYTES = 64  # of a client's name; quoted, it is a file name: three times as long at most

MOST_THREADS = (
    1024  # of a session: ONNX Runtime starts as many as it is told, until the machine has none
)
MOST_LABELS, MOST_TOKENS = 4096, 65_536  # of a task, of one text
MOST_VALUE = 1e12  # magnitude of a number that is learnt
# Whoever shows a label may not be steered by it.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]

Positive = Annotated[int, Field(gt=0, le=MOST_ROUNDS)]
Rank = Annotated[int, Field(gt=0, le=MOST_RANK)]
PositiveReal = Annotated[float, Field(ge=1e-12, le=MOST_REAL, allow_inf_nan=False)]
# A bound of its own: what a Field adds to an annotation that has one is not in force.
Seconds = Annotated[float, Field(ge=1e-12, le=MOST_SECONDS, allow_inf_nan=False)]
NonNegativeReal = Annotated[float, Field(ge=0, le=MOST_REAL, allow_inf_nan=False)]
Column = Annotated[str, Field(min_length=1, max_length=200)]
Layers = Annotated[list[Annotated[int, Field(ge=0, le=MOST_LAYER)]], Field(max_length=MOST_TARGETS)]
Targets = Annotated[list[Column], Field(min_length=1, max_length=MOST_TARGETS)]
VerifierText = Annotated[str, Field(max_length=400)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=1e-3, le=1, allow_inf_nan=False)]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex64OrNone = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]


def is_client_name(text: str) -> bool:
    """Whether a node may call itself so: printable, of 1 to 64 bytes in UTF-8. (P-4.1)"""
    return text.isprintable() and 0 < len(text.encode()) <= NAME_BYTES


def _client_name(text: str) -> str:
    if not is_client_name(text):
        raise ValueError(
            f"no client can have this name: not printable or longer than {NAME_BYTES} bytes"
        )
    return text


ClientName = Annotated[
    str, Field(min_length=1, max_length=NAME_BYTES), AfterValidator(_client_name)
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

Unsaid = set[str] | dict[str, Any]  # of a table in a table, by its key


class Section(BaseModel):
    """A table of the plan: frozen, and nothing in it is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    @property
    def unsaid(self) -> Unsaid:
        """Keys that say nothing and came later: digests and texts of plans leave them out. (P-1.2)"""
        return set()
