"""Sorting leaves into a run, in the order of P-8.8 and no other. (P-8.16)

A leaf that is out of order, repeated or of an attempt that is over becomes a fault of the round it
stands in; the others are read on, so that one fault does not hide the next.
"""

from __future__ import annotations

from collections.abc import Sequence

from audit.collected import STAGES, Collected, Fault, Placed, Round, Sum
from protocol.errors import ProofError
from protocol.secagg.messages import ADVERT_HEAD
from protocol.transparency.dsse import REMEDY
from protocol.transparency.leaf_codec import decode_leaf, verify_author
from protocol.transparency.leaves import (
    Abort,
    Adapter,
    Advert,
    Aggregate,
    Alive,
    Audit,
    Cohort,
    Complaint,
    Evaluation,
    Leaf,
    Pad,
    PlanLeaf,
    Release,
    Retention,
    Reveal,
    Roster,
    RoundOpen,
    Shares,
    Spent,
    Vector,
    Withdrawal,
)
from protocol.transparency.lists import Lists

SumLeaf = Advert | Cohort | Shares | RoundOpen | Vector | Alive | Reveal | Aggregate
MANY = (Advert, Shares, Vector)
Place = tuple[int, int, int]  # part of the attempt, group, stage
AFTER_SUMS: Place = (3, 0, 0)


def collect(
    entries: Sequence[bytes], *, log_key: bytes, witnessed: bool, lists: Lists
) -> Collected:
    """Sort all leaves. ``log_key`` is the raw Ed25519 key that statements are signed with.

    ``lists`` are those that are in files.

    ``witnessed``: leaves of an attempt may be seen before it is complete. Raises ProofError for a log
    that does not begin as P-8.8 says.
    """
    return _Collector(log_key, witnessed, lists).over(entries)


def parse_first(entries: Sequence[bytes], log_key: bytes) -> Placed[PlanLeaf]:
    """The leaf that says what the run is about. Raises ProofError."""
    if not entries:
        raise ProofError("the log is empty", REMEDY)
    read = decode_leaf(entries[0])
    verify_author(read, log_key)
    if not isinstance(read.leaf, PlanLeaf):
        raise ProofError(f"leaf 0 is `{read.leaf.kind}`, not `plan`", REMEDY)
    return Placed(index=0, leaf=read.leaf, subjects=read.subjects)


class _Collector:
    def __init__(self, log_key: bytes, witnessed: bool, lists: Lists) -> None:
        self._log_key, self._witnessed, self._lists = log_key, witnessed, lists
        self._sums: dict[int, Sum] = {}  # of the attempt that is going on, by group
        self._by_name: dict[str, Sum] = {}  # the same by xid and rid
        self._seq = 0  # the attempt's number, or that of the last one
        self._place: Place = (-1, 0, 0)
        self._done: list[Sum] = []
        self._aborts: list[Placed[Abort]] = []
        self._spent: list[Placed[Spent]] = []

    def over(self, entries: Sequence[bytes]) -> Collected:
        plan = parse_first(entries, self._log_key)
        self._collected = Collected(size=len(entries), plan=plan)
        for index, entry in enumerate(entries[1:], start=1):
            try:
                read = decode_leaf(entry)
                verify_author(read, self._log_key)
                leaf = self._lists.whole(read.leaf)
                self._take(Placed(index=index, leaf=leaf, subjects=read.subjects))
            except ProofError as error:
                self._fault(f"leaf {index}: {error.cause}")
        if not self._collected.rounds or self._collected.rounds[0].number != 0:
            raise ProofError("the log has no `adapter` leaf of round 0", REMEDY)
        self._finish()
        return self._collected

    # -- one leaf after the other -----------------------------------------------------------------

    def _take(self, placed: Placed[Leaf]) -> None:
        leaf = placed.leaf
        if isinstance(leaf, SumLeaf):
            self._take_of_sum(placed, leaf)
        elif isinstance(leaf, Adapter):
            self._close_round(placed)  # type: ignore[arg-type]
        elif isinstance(leaf, Abort):
            self._close_attempt(placed)  # type: ignore[arg-type]
        elif isinstance(leaf, Spent):
            self._spent.append(placed)  # type: ignore[arg-type]
            self._place = AFTER_SUMS
        elif isinstance(leaf, Pad):
            if not self._witnessed or placed.subjects != {"plan": self._collected.plan.leaf.plan}:
                raise _odd(leaf, "where there is no witness, or of another plan")
        else:
            self._loose(placed)

    def _loose(self, placed: Placed[Leaf]) -> None:
        """Leaves that stand between rounds, or behind an attempt whose coordinator was killed."""
        collected, leaf = self._collected, placed.leaf
        lists: dict[type[Leaf], list[Placed[Leaf]]] = {
            Roster: collected.rosters,  # type: ignore[dict-item]
            Evaluation: collected.evaluations,  # type: ignore[dict-item]
            Release: collected.releases,  # type: ignore[dict-item]
            Retention: collected.retentions,  # type: ignore[dict-item]
            Audit: collected.audits,  # type: ignore[dict-item]
            Complaint: collected.complaints,  # type: ignore[dict-item]
            Withdrawal: collected.withdrawals,  # type: ignore[dict-item]
        }
        if type(leaf) not in lists:
            raise _odd(leaf, "a second time")
        if not collected.rounds and not isinstance(leaf, Roster):
            raise _odd(leaf, "before round 0")
        if self._sums and not self._witnessed:
            raise _odd(leaf, "within an attempt")
        lists[type(leaf)].append(placed)

    # -- sums -------------------------------------------------------------------------------------

    def _take_of_sum(self, placed: Placed[Leaf], leaf: SumLeaf) -> None:
        try:
            group_sum = self._sum_of(leaf)
        except ProofError:
            self._collected.strays.append(placed)
            raise
        of_kind = group_sum.by_kind.setdefault(type(leaf), [])
        of_kind.append(placed)
        if isinstance(leaf, Cohort):
            self._by_name.setdefault("xid" + leaf.xid, group_sum)
        if isinstance(leaf, RoundOpen):
            self._by_name.setdefault("rid" + leaf.rid, group_sum)
        before, self._place = self._place, self._place_of(group_sum, leaf)
        repeated = len(of_kind) > 1
        if self._place < before or (repeated and not isinstance(leaf, MANY)):
            group_sum.broken = True
            raise _odd(
                leaf, f"of group {group_sum.group}, attempt {group_sum.seq}, out of order or twice"
            )
        if repeated and _client_of(of_kind[-2].leaf) >= _client_of(leaf):
            group_sum.broken = True
            raise _odd(
                leaf, f"of {_client_of(leaf)}, attempt {group_sum.seq}, out of order or twice"
            )

    def _place_of(self, group_sum: Sum, leaf: SumLeaf) -> Place:
        """Where a leaf stands in its attempt: places never go back."""
        stage = STAGES.index(type(leaf))
        if not self._witnessed:
            return 0, group_sum.group, stage
        part = 0 if isinstance(leaf, Alive) else 2 if isinstance(leaf, Reveal | Aggregate) else 1
        return part, group_sum.group, stage

    def _sum_of(self, leaf: SumLeaf) -> Sum:
        if isinstance(leaf, Shares):
            return self._named(leaf, "xid", leaf.xid)
        if isinstance(leaf, Vector):
            return self._named(leaf, "rid", leaf.rid)
        seq = advert_head(leaf)[0] if isinstance(leaf, Advert) else leaf.seq
        if seq < self._seq or (seq == self._seq and not self._sums):
            raise _odd(leaf, f"of attempt {seq} when attempt {self._seq} was over")
        if seq > self._seq:
            # A coordinator that was killed begins anew; what was witnessed before stays unopened.
            if self._sums and not self._witnessed:
                raise _odd(leaf, f"of attempt {seq} within attempt {self._seq}")
            self._end_attempt()
            self._seq = seq
        first = Alive if self._witnessed else Advert
        if leaf.group not in self._sums:
            if not isinstance(leaf, first):
                raise _odd(leaf, f"of group {leaf.group}, attempt {seq}, without what comes before")
            self._sums[leaf.group] = Sum(seq=seq, group=leaf.group)
        return self._sums[leaf.group]

    def _named(self, leaf: Leaf, name: str, value: str) -> Sum:
        if (group_sum := self._by_name.get(name + value)) is None:
            raise _odd(leaf, f"of another attempt ({name} {value[:12]}…)")
        return group_sum

    # -- ends -------------------------------------------------------------------------------------

    def _end_attempt(self) -> None:
        self._done += self._sums.values()
        self._sums, self._by_name, self._place = {}, {}, (-1, 0, 0)

    def _close_attempt(self, placed: Placed[Abort]) -> None:
        """The whole attempt gave nothing, or one group of it while others opened."""
        leaf = placed.leaf
        if leaf.group is not None:
            if leaf.seq != self._seq or not self._sums or leaf.group in self._sums_opened():
                raise _odd(leaf, f"of group {leaf.group}, attempt {leaf.seq}, which did not fail")
            self._place = AFTER_SUMS
        else:
            over = leaf.seq == self._seq and not self._sums
            if leaf.seq < self._seq or (over and leaf.seq):  # in clear no attempt has a number
                self._fault(f"leaf {placed.index}: `abort` of attempt {leaf.seq}, which was over")
            self._end_attempt()
            self._seq = max(self._seq, leaf.seq)
        self._aborts.append(placed)
        if leaf.round != len(self._collected.rounds):
            self._fault(f"leaf {placed.index}: `abort` of round {leaf.round}")

    def _sums_opened(self) -> set[int]:
        """Groups whose sums are opened, as far as the log has come."""
        return {group for group, group_sum in self._sums.items() if self._is_opened(group_sum)}

    def _is_opened(self, group_sum: Sum) -> bool:
        # Without witnesses whatever is logged was opened.
        return not self._witnessed or any(
            group_sum.by_kind.get(kind) for kind in (Reveal, Aggregate)
        )

    def _close_round(self, placed: Placed[Adapter]) -> None:
        leaf, expected = placed.leaf, len(self._collected.rounds)
        if self._sums and not leaf.void and leaf.seq != self._seq:
            self._fault(
                f"leaf {placed.index}: `adapter` of attempt {leaf.seq}, its sums are of {self._seq}"
            )
        self._end_attempt()
        self._collected.rounds.append(self._round(placed))
        if leaf.round != expected:
            what = (
                f"leaf {placed.index}: `adapter` of round {leaf.round}, expected round {expected}"
            )
            self._fault(what, expected)

    def _round(self, adapter: Placed[Adapter]) -> Round:
        """All since the adapter before."""
        opened = [done for done in self._done if self._is_opened(done)]
        closed = Round(
            adapter=adapter,
            sums=opened,
            unopened=[done for done in self._done if done not in opened],
            aborts=self._aborts,
            spent=self._spent,
        )
        self._done, self._aborts, self._spent = [], [], []
        return closed

    def _finish(self) -> None:
        """What stands after the last round."""
        if self._sums and not self._witnessed:
            self._fault("the log ends within an attempt")
        self._end_attempt()
        if self._done or self._aborts or self._spent:
            self._collected.pending = self._round(self._collected.rounds[-1].adapter)

    def _fault(self, what: str, number: int | None = None) -> None:
        number = len(self._collected.rounds) if number is None else number
        self._collected.faults.append(Fault(round=number, what=what))


def _client_of(leaf: Leaf) -> str:
    if isinstance(leaf, Advert):
        return advert_head(leaf)[1]
    assert isinstance(leaf, Shares | Vector)
    return leaf.client


def advert_head(leaf: Advert) -> tuple[int, str]:
    """(seq, id) of an advert, whose form is checked later."""
    data = bytes.fromhex(leaf.advert)
    if len(data) < ADVERT_HEAD.size:
        raise _odd(leaf, "that is cut off")
    _, seq, client = ADVERT_HEAD.unpack_from(data)
    return seq, client.hex()


def _odd(leaf: Leaf, fault: str) -> ProofError:
    return ProofError(f"a leaf `{leaf.kind}` {fault}", REMEDY)
