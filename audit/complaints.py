"""Clients' complaints: who signed them, and whether the log bears out the receipt. (P-8.9)"""

from __future__ import annotations

from audit.collected import Placed
from audit.published import REMEDY, Run
from protocol.errors import ProofError
from protocol.transparency.leaves import Complaint, RoundOpen, Vector
from protocol.transparency.receipts import Receipt, verify_receipt
from protocol.transparency.submissions import verify_complaint


def check_complaint(run: Run, placed: Placed[Complaint]) -> None:
    """Raises ProofError for a false signature, and for a true receipt that the log does not account for."""
    leaf, client = placed.leaf, bytes.fromhex(placed.leaf.client)
    before = [roster.index + 1 for roster in run.log.rosters if roster.index < placed.index]
    public = next(
        (run.members(at)[1].keys[client] for at in before if client in run.members(at)[1].keys),
        None,
    )
    if public is None:
        raise ProofError(f"{leaf.client} is in no roster before it", REMEDY)
    verify_complaint(leaf, public)
    try:
        receipt = verify_receipt(leaf.receipt, run.copy.key.public)
    except ProofError:
        return  # it proves nothing against the coordinator
    if (
        receipt.origin == run.copy.key.name
        and _is_over(run, receipt)
        and not _accounted(run, receipt)
    ):
        raise ProofError(
            f"the coordinator gave {receipt.client} a receipt for its vector in attempt {receipt.seq} (round "
            f"{receipt.round}); the log holds neither that vector nor the attempt's end without it",
            REMEDY,
        )


def _is_over(run: Run, receipt: Receipt) -> bool:
    """Whether the attempt can be asked for: it, or a later one, has ended."""
    ends = [closed.adapter.leaf.seq for closed in run.log.rounds]
    ends += [abort.leaf.seq for each in run.log.all_rounds for abort in each.aborts]
    return receipt.seq <= max(ends)


def _accounted(run: Run, receipt: Receipt) -> bool:
    rounds = list(run.log.all_rounds)
    group_sums = (each for part in rounds for each in (*part.sums, *part.unopened))
    for group_sum in group_sums:
        if any(opened.leaf.rid == receipt.rid for opened in group_sum.of(RoundOpen)):
            # Its own sum is in the log: another group's abort is no excuse.
            return any(receipt.accounted_by(vector.leaf) for vector in group_sum.of(Vector))
    return any(receipt.accounted_by(abort.leaf) for part in rounds for abort in part.aborts)
