"""The coordinator asks witnesses to cosign its checkpoint: C2SP tlog-witness, over HTTP. (P-8.14)"""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from protocol.errors import ProofError
from protocol.transparency.note import verify_note
from protocol.transparency.policy import Policy
from protocol.transparency.tree import Tree
from server.log import RunLog

MOST_BYTES = 100_000  # of an answer
BEHIND = 409


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A witness's HTTP answer."""

    status: int
    body: str


class Witness(Protocol):
    """Somewhere a checkpoint can be sent to."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def post(self, body: bytes) -> Answer:
        """``add-checkpoint``. Raises OSError when it cannot be reached."""
        ...


@dataclass(frozen=True)
class HttpWitness:
    """A witness at a submission prefix."""

    name: str  # its URL
    timeout_s: float = 10.0

    def post(self, body: bytes) -> Answer:
        """``POST <prefix>/add-checkpoint``."""
        request = urllib.request.Request(f"{self.name.rstrip('/')}/add-checkpoint", body)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:  # noqa: S310
                return Answer(status=reply.status, body=reply.read(MOST_BYTES).decode())
        except urllib.error.HTTPError as error:
            return Answer(status=error.code, body=error.read(MOST_BYTES).decode(errors="replace"))


@dataclass
class _Asked:
    witness: Witness
    lines: str = ""
    fault: str = ""
    sizes: list[int] = field(default_factory=list)


def cosigned_by(witnesses: Sequence[Witness], log: RunLog, policy: Policy) -> tuple[str, list[str]]:
    """The log's checkpoint with the lines of those that cosigned, and why others did not.

    All are asked at once. Each is sent a proof from the size it says it knows.
    """
    note, tree = log.note, log.tree
    asked = [_Asked(witness) for witness in witnesses]
    if asked:
        with ThreadPoolExecutor(len(asked)) as pool:
            list(pool.map(lambda one: _ask(one, note, tree, policy), asked))
    known = set(note.splitlines())
    for one in asked:
        new = [line for line in one.lines.splitlines() if line not in known]
        known.update(new)
        note += "".join(f"{line}\n" for line in new)
    return note, [f"{one.witness.name}: {one.fault}" for one in asked if one.fault]


def _ask(one: _Asked, note: str, tree: Tree, policy: Policy) -> None:
    old = 0
    try:
        for _ in range(2):  # once more from the size that the witness knows
            answer = one.witness.post(_body(old, tree.consistency(old), note))
            if answer.status != BEHIND:
                break
            old = int(answer.body.strip())
    except (OSError, ValueError, IndexError) as error:
        one.fault = f"{type(error).__name__}"
        return
    if answer.status != 200:
        one.fault = f"refused with {answer.status}: {answer.body.strip()[:200]}"
        return
    try:
        verify_note(note + answer.body, list(policy.witnesses.values()))
        one.lines = answer.body
    except ProofError as error:
        one.fault = error.cause


def _body(old: int, path: Iterable[bytes], note: str) -> bytes:
    lines = [f"old {old}", *(base64.b64encode(node).decode() for node in path), ""]
    return ("\n".join(lines) + "\n" + note).encode()
