"""What Flower's messages of a run carry: keys and their meaning. (P-4)

Plain dictionaries of scalars; the shells in ``client.app`` and ``server.app`` put them into
Flower's ConfigRecords. An adapter travels as one float32 array beside them, a contribution as
one uint8 array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from protocol.encoding import canonical_json
from protocol.errors import ArtefactError

HELLO = "query.hello"
TRAIN = "train"  # + "." + Phase
INSTRUCTION, ADAPTER, MASKED, REPLY = "instruction", "adapter", "masked", "reply"  # record names
ROUND_0 = "round_0"  # beside the adapter, what the run goes on from, where the plan says so (P-4.2)
SECAGG = "secagg"  # a phase's message of secure aggregation, either way
LOG = "log"  # beside it, what one side tells or shows the other of the run's log (P-8.9, P-8.10)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """A node's answer to ``query.hello``: who it is and which base it holds."""

    client: str
    base: str
    protocol: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """The coordinator's request for one round. Digests are hex; (P-4.2) lists the client's checks."""

    round: int
    attempt: int
    plan_digest: str
    base: str
    adapter_digest: str
    evaluate: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A client's refusal: whose fault, one line of cause, one of remedy; never data or secrets."""

    kind: str
    cause: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LogText:
    """One of the texts of :mod:`protocol.transparency.shown`."""

    text: str


def to_record(value: Any) -> dict[str, Any]:
    """A wire dataclass as a flat dictionary of scalars."""
    return asdict(value)


def instruction_digest(instruction: Instruction) -> bytes:
    """SHA-256 of all that a client is told: one instruction per attempt. (P-6.10)"""
    return hashlib.sha256(canonical_json(to_record(instruction))).digest()


def from_record(kind: type[T], record: Mapping[str, Any]) -> T:
    """The reverse: every field, of the right type, and nothing else. Raises ArtefactError."""
    expected = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    if set(record) != set(expected):
        odd = sorted(set(record) ^ set(expected))[0]
        raise ArtefactError(
            f"message {kind.__name__}: field `{odd}` is missing or unknown",
            "run the same version of fedge on both sides",
        )
    for name, type_name in expected.items():
        if type(record[name]).__name__ != type_name:
            raise ArtefactError(
                f"message {kind.__name__}: field `{name}` is not of type {type_name}",
                "run the same version of fedge on both sides",
            )
    return kind(**record)
