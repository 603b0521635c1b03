"""What an audit found: per round and for the run, what holds, what is open, what is wrong. (P-8.16)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from protocol.errors import FedgeError, printable

Verdict = Literal["ok", "ok-sampled", "unverifiable", "failed", "void"]


@dataclass(frozen=True, kw_only=True)
class Unproven:
    """What could not be checked, and what is therefore not proven."""

    what: str
    leaves: str


@dataclass(frozen=True, kw_only=True)
class Uncovered:
    """A file, or a leaf, and which ``parts`` of it no verdict covers: all of it without any."""

    name: str
    parts: tuple[str, ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class RoundVerdict:
    """One round's. ``clients`` is how many updates its adapter is made of."""

    round: int
    verdict: Verdict
    clients: int
    verified: tuple[str, ...]
    unverified: tuple[Unproven, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Spending:
    """The privacy ledger, recomputed: the largest epsilon of a client; None when it was not computed."""

    mechanism: str
    sums: int
    epsilon: float | None
    budget: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A client that has withdrawn, by leaf ``leaf``: the adapters from round ``first`` on hold its updates.

    None: no adapter did then. ``before`` is the round of the last adapter without them.
    """

    leaf: int
    client: str
    first: int | None
    before: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's. ``rounds`` are those that were asked for; the other lists are about the whole run.

    ``assumed`` is what no check of this copy can show: whose key it is, that others see the same.
    ``not_covered`` names what this verdict says nothing about, whatever it is.
    """

    origin: str
    plan: str
    base: str
    program: str  # that the plan names; empty: each client's own
    note: str  # the log's signed checkpoint
    size: int
    root: str
    rounds: tuple[RoundVerdict, ...]
    planned: int
    privacy: Spending | None
    verified: tuple[str, ...]
    unverified: tuple[Unproven, ...]
    faults: tuple[str, ...]
    assumed: tuple[Unproven, ...]
    audits: tuple[str, ...]
    complaints: tuple[str, ...]
    withdrawals: tuple[Withdrawn, ...] = ()
    not_covered: tuple[Uncovered, ...] = ()
    goes_on: bool = False  # from another run's adapter, which proves nothing without that run
    from_round: int = 0  # of that run
    before: Report | None = None  # of the run that this one goes on from, where the auditor has it

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        faulty = bool(self.faults) or any(round_.verdict == "failed" for round_ in self.rounds)
        return faulty or (self.before is not None and self.before.failed)

    @property
    def open(self) -> bool:
        """Whether anything is left unproven."""
        partly = any(round_.unverified or round_.verdict == "ok-sampled" for round_ in self.rounds)
        return bool(self.unverified) or partly or (self.before is not None and self.before.open)

    @property
    def verdict(self) -> Literal["ok", "unverifiable", "failed"]:
        """Of the whole: a round that was only sampled is not proven, nor a start without its run."""
        if self.failed:
            return "failed"
        if self.goes_on and self.before is None:
            return "unverifiable"
        weak = {"unverifiable", "ok-sampled"}
        verdicts = {round_.verdict for round_ in self.rounds}
        if self.before is not None:
            verdicts.add(self.before.verdict)
        return "unverifiable" if weak & verdicts else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the verdict."""
        before = self.before.to_dict() if self.before else None
        return {"verdict": self.verdict} | asdict(self) | {"before": before}


@dataclass
class Findings:
    """Where checks write down what they found."""

    verified: list[str] = field(default_factory=list)
    unverified: list[Unproven] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @contextmanager
    def checking(self, subject: str) -> Iterator[None]:
        """A failure within becomes a fault of ``what``, success a line; the audit goes on."""
        subject = printable(subject)
        before = len(self.faults) + len(self.unverified)
        try:
            yield
        except FedgeError as error:
            self.faults.append(f"{subject}: {error.cause}")
            return
        if len(self.faults) + len(self.unverified) == before:
            self.verified.append(subject)

    def take(self, findings: Findings, subject: str) -> None:
        """Those of many small checks: their faults, or one line for all of them."""
        self.unverified += findings.unverified
        self.faults += findings.faults
        if findings.verified and not findings.faults:
            self.verified.append(f"{len(findings.verified)} {subject}")

    def leave_open(self, claim: str, leaves: str) -> None:
        """Note something that cannot be checked."""
        self.unverified.append(Unproven(what=printable(claim), leaves=printable(leaves)))

    def fault(self, cause: str) -> None:
        """Note something that is wrong."""
        self.faults.append(printable(cause))
