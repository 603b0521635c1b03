"""Withdrawals in a log: who signed them, whether their effect is told truly, and what came after. (P-8.18)"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from audit.collected import Placed
from audit.published import REMEDY, Run
from audit.report import Findings, Withdrawn
from protocol.errors import ProofError
from protocol.transparency.leaves import Withdrawal
from protocol.transparency.submissions import verify_request
from protocol.transparency.withdrawal import Effect, effect_of, takes_part, withdrawal_of


def effect_at(run: Run, clients: AbstractSet[str], size: int | None = None) -> Effect:
    """What updates of ``clients`` (ids in hex) are in, by the log's first ``size`` leaves (else by all)."""
    size = run.copy.checkpoint.size if size is None else size
    return effect_of((each for each in run.reads if each[0] < size), clients)


def withdrawn(run: Run) -> tuple[Withdrawn, ...]:
    """The log's withdrawals, with what they touch as the log gives it."""
    told = []
    for placed in run.log.withdrawals:
        client = placed.leaf.request.client
        effect = effect_at(run, {client}, placed.index)
        before = effect.before
        told.append(
            Withdrawn(
                leaf=placed.index,
                client=client,
                first=effect.first,
                before=0 if before is None else before.round,
            )
        )
    return tuple(told)


def check_withdrawals(run: Run, findings: Findings) -> None:
    """Each of them by itself, and that nobody was asked after it."""
    seen: set[str] = set()
    for placed in run.log.withdrawals:
        client = placed.leaf.request.client
        with findings.checking(f"leaf {placed.index} `withdrawal`"):
            if client in seen:
                raise _bad(f"{client} had withdrawn already")
            seen.add(client)
            _check(run, placed)
            for index, read in run.reads:
                if index > placed.index and takes_part(read, client):
                    raise _bad(f"{client} was asked afterwards: leaf {index} `{read.leaf.kind}`")


def _check(run: Run, placed: Placed[Withdrawal]) -> None:
    request = placed.leaf.request
    one = bytes.fromhex(request.client)
    before = [roster.index + 1 for roster in run.log.rosters if roster.index < placed.index]
    rosters = [run.members(index)[1].keys for index in before]
    public = next((keys[one] for keys in rosters if one in keys), None)
    if public is None:
        raise _bad(f"{request.client} is in no roster before it")
    verify_request(request, public)
    if (request.origin, request.sid) != (run.copy.checkpoint.origin, run.sid.hex()):
        raise _bad("it is a request of another run")
    effect = effect_at(run, {request.client}, placed.index)
    if effect.before is None or (placed.leaf, placed.subjects) != withdrawal_of(request, effect):
        raise _bad("its effect is not what the log before it gives")


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
