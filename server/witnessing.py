"""The coordinator asks witnesses to cosign its checkpoint: C2SP tlog-witness, over HTTP. (P-8.14)

A witness is not trusted with more than its cosignature: of an answer only lines of the policy's witnesses
are taken, one of each, and nobody is waited for beyond a deadline.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from threading import Thread
from typing import Protocol

from protocol.addresses import shown_address, web_fault
from protocol.errors import PlanError, ProofError
from protocol.transparency.note import VerifierKey, lines_naming, verify_note
from protocol.transparency.policy import Policy
from protocol.transparency.witness import CONFLICT, AddCheckpoint
from protocol.web_page import PEEK, page_fault
from protocol.web_page import REMEDY as WEB_PAGE
from server.log import RunLog
from storage.downloads import network_fault

MOST_BYTES = 100_000  # of an answer
DEADLINE_S = 20.0


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
        """``add-checkpoint``.

        Raises OSError, HTTPException, ValueError or ProofError without a usable answer.
        """
        ...


@dataclass(frozen=True)
class HttpWitness:
    """A witness at a submission prefix."""

    name: str  # its URL
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Raises PlanError for an address that is none."""
        if fault := web_fault(self.name):
            raise PlanError(
                f"the witness {shown_address(self.name)} {fault}", "correct the witness's URL"
            )

    def post(self, body: bytes) -> Answer:
        """``POST <prefix>/add-checkpoint``."""
        request = urllib.request.Request(f"{self.name.rstrip('/')}/add-checkpoint", body)  # noqa: S310
        # `urlopen` keeps the proxies of its first use for the whole process; these are the environment's now.
        opener = urllib.request.build_opener()
        try:
            with opener.open(request, timeout=self.timeout_s) as reply:
                if fault := page_fault(
                    reply.status, reply.headers.get("Content-Type"), reply.peek(PEEK)
                ):
                    raise ProofError(f"{shown_address(reply.url)}: {fault}; {WEB_PAGE}", WEB_PAGE)
                return Answer(status=reply.status, body=reply.read(MOST_BYTES).decode())
        except urllib.error.HTTPError as error:
            return Answer(status=error.code, body=error.read(MOST_BYTES).decode(errors="replace"))


@dataclass
class _Inquiry:
    """``lines`` by key: one of each, verified."""

    witness: Witness
    fault: str = "no answer in time"
    lines: dict[str, str] = field(default_factory=dict)


def cosigned_by(
    witnesses: Sequence[Witness], log: RunLog, policy: Policy, *, deadline_s: float = DEADLINE_S
) -> tuple[str, list[str]]:
    """The log's checkpoint with the lines of those that cosigned, and why others did not.

    All are asked at once. Each is sent a proof from the size that was cosigned last, and where it knows
    another size, one from there.
    """
    note, tree, size, cosigned = log.note, log.tree, log.size, log.cosigned_size
    keys = list(policy.witnesses.values())

    def request(old: int) -> bytes:
        path = tuple(tree.consistency(old, size))
        return AddCheckpoint(old=old, path=path, note=note).encode()

    inquiries = [_Inquiry(witness) for witness in witnesses]
    # Threads that die with the process: a witness that never ends its answer must not keep us.
    started = [
        Thread(target=_ask, args=(inquiry, request, cosigned, note, keys), daemon=True)
        for inquiry in inquiries
    ]
    for thread in started:
        thread.start()
    end = time.monotonic() + deadline_s
    for thread in started:
        thread.join(max(0.0, end - time.monotonic()))
    lines = {key.encode(): line for key in keys for line in lines_naming(note, key)}
    for inquiry in inquiries:
        if not inquiry.fault:
            lines |= {key: line for key, line in inquiry.lines.items() if key not in lines}
    cosignatures = "".join(line for line in lines.values() if line not in note)
    return note + cosignatures, [
        f"{inquiry.witness.name}: {inquiry.fault}" for inquiry in inquiries if inquiry.fault
    ]


def _ask(
    inquiry: _Inquiry,
    request: Callable[[int], bytes],
    cosigned: int,
    note: str,
    keys: Sequence[VerifierKey],
) -> None:
    try:
        answer = inquiry.witness.post(request(cosigned))
        if answer.status == CONFLICT and answer.body.strip().isdecimal():
            answer = inquiry.witness.post(request(int(answer.body)))
        if answer.status != 200:
            inquiry.fault = f"refused with {answer.status}: {answer.body.strip()[:200]}"
            return
        verify_note(note + answer.body, keys)
        by_key = {key.encode(): lines_naming(answer.body, key) for key in keys}
        inquiry.lines = {key: lines[0] for key, lines in by_key.items() if lines}
        inquiry.fault = "" if inquiry.lines else "cosigned with none of the plan's keys"
    except ProofError as error:
        inquiry.fault = error.cause
    except IndexError:
        inquiry.fault = "it has cosigned a longer log than this one"
    except (OSError, HTTPException, ValueError) as error:
        inquiry.fault = network_fault(error)
