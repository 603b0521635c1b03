"""P-8.8, P-8.16: a whole run, leaf by leaf."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from .basics import canonical, sha256
from .documents import Documents, Roster, read_documents, read_roster
from .log import Leaf, check_trust, leaf_hash, read_log
from .noise import check_budget, check_entry
from .published import check_passport, check_round
from .start import round_0
from .step import State, combined, stepped
from .sums import STAGES, Opened, Sum, part_of_attempt
from .withdrawals import check_withdrawal


def verify_run(run: Path) -> list[int]:
    """The rounds of a run that made an adapter, each verified.

    Raises AssertionError, InvalidSignature, InvalidTag, KeyError, ValueError or OSError at a fault.
    """
    key, leaves = read_log(run)
    verifier = _Run(read_documents(run, leaves[0]))
    check_trust(run, key, verifier.documents.plan)
    verifier.releases = [leaf for leaf in leaves if leaf.kind == "release"]
    for leaf in leaves[1:]:
        verifier.take(leaf)
        if leaf.kind == "withdrawal":
            check_withdrawal(verifier.documents, key.name, verifier.rosters, leaves, leaf)
    done = verifier.finished()
    hashes = [leaf_hash(leaf.entry) for leaf in leaves]
    measured = {leaf.index: leaf["round"] for leaf in leaves if leaf.kind == "eval"}
    for leaf in {leaf["round"]: leaf for leaf in verifier.releases}.values():
        assert leaf["eval"] is None or measured[leaf["eval"]] == leaf["round"]
        check_passport(run, leaf, key, hashes)
    return done


class _Run:
    """What the log has told so far."""

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self.roster: Roster | None = None
        self.rosters: list[Roster] = []
        self.releases: list[Leaf] = []
        self.rounds: list[Leaf] = []
        self.state: State | None = None
        self.done: list[int] = []
        self.seq = 0  # of the attempts that are over
        self.entries: list[dict[str, Any]] = []
        self.asked: list[tuple[str, set[str]]] = []  # incoming adapter and clients of every sum
        self._begin()

    def _begin(self) -> None:
        self.sums: dict[int, Sum] = {}
        self.named: dict[str, Sum] = {}  # by xid or rid
        self.failed: set[int] = set()
        self.place = (-1, 0, 0)  # part of the attempt, group, stage: it never goes back
        self.first = 0  # under witnesses: where the attempt begins
        self.begun = 0  # under witnesses: groups whose alive set, or a pad, stands in the log
        self.attempt = 0
        self.spent: list[dict[str, Any]] = []
        self.in_vain: list[Leaf] = []

    def take(self, leaf: Leaf) -> None:
        """The next leaf."""
        if leaf.kind in STAGES:
            self._sum_of(leaf).add(leaf)
        elif leaf.kind == "pad":
            assert leaf.about == {"plan": self.documents.digest}
            self._begin_group(leaf)
        elif leaf.kind == "dp":
            self._spend(leaf)
        elif leaf.kind == "abort":
            self._fail(leaf)
        elif leaf.kind == "adapter":
            self._close(leaf)
        else:
            assert self.documents.witnessed or not self.sums
            assert leaf.kind in (
                "roster",
                "eval",
                "release",
                "retention",
                "audit",
                "complaint",
                "withdrawal",
            )
            if leaf.kind == "roster":
                assert self.rounds or leaf.index == 1
                assert self.roster is None or self.roster.root != leaf["root"]
                self.roster = read_roster(self.documents.run, leaf)
                self.rosters.append(self.roster)
            else:
                assert self.rounds

    def finished(self) -> list[int]:
        """After the last leaf."""
        if self.documents.witnessed:
            self._leave_unopened()
        assert not self.sums
        numbers = {leaf["round"] for leaf in self.rounds}
        assert all(leaf["round"] in numbers for leaf in self.releases)
        if self.entries:
            check_budget(self.documents, self.entries)
        for (adapter, clients), (other, others) in combinations(self.asked, 2):
            least = min(len(clients - others), len(others - clients))
            assert adapter != other or clients == others or least >= self.documents.least
        voids = sum(bool(leaf["void"]) for leaf in self.rounds)
        assert voids <= self.documents.plan["secrecy"]["voids"] + 1
        return self.done

    # -- attempts ---------------------------------------------------------------------------------

    def _sum_of(self, leaf: Leaf) -> Sum:
        """The sum that a leaf is of; sums come by group, one after the other, before all else."""
        assert not self.spent
        assert not self.failed
        if leaf.kind in ("shares", "vector"):
            found = self.named[leaf["xid" if leaf.kind == "shares" else "rid"]]
        elif leaf.kind == "alive" and self.documents.witnessed:
            self._begin_group(leaf)
            found = self.sums[leaf["group"]]
        else:
            group = leaf["group"]
            if leaf.kind == "advert" and not self.documents.witnessed and group not in self.sums:
                self.sums[group] = self._new_sum(group)
            found = self.sums[group]
        part = part_of_attempt(leaf.kind) if self.documents.witnessed else 0
        assert not part or self.begun == self.documents.groups
        before, self.place = self.place, (part, found.group, STAGES.index(leaf.kind))
        assert self.place >= before
        for name in ("cohort", "round-open"):
            if leaf.kind == name:
                self.named[leaf["xid" if name == "cohort" else "rid"]] = found
        return found

    def _new_sum(self, group: int) -> Sum:
        assert self.roster is not None
        return Sum(self.documents, self.roster, group)

    def _begin_group(self, leaf: Leaf) -> None:
        """P-8.8: a witnessed attempt begins with `alive` of every group, or `pad`, one behind the other."""
        assert self.documents.witnessed
        assert self.place[0] <= 0
        assert not self.spent
        assert not self.failed
        if not self.begun:
            self.first = leaf.index
        assert leaf.index == self.first + self.begun
        if leaf.kind == "alive":
            assert leaf["group"] == self.begun
            self.sums[self.begun] = self._new_sum(self.begun)
        self.begun += 1

    def _leave_unopened(self) -> None:
        """Of sums that witnesses saw and nobody opened what there is holds too."""
        assert not self.begun or self.sums  # not pads alone
        for one in self.sums.values():
            one.check(len(self.rounds), self.rounds[-1]["adapter_out"])
        self.sums, self.named, self.place, self.begun = {}, {}, (-1, 0, 0), 0

    def _spend(self, leaf: Leaf) -> None:
        entry = leaf["entry"]
        assert leaf.about == {"privacy.jsonl": sha256(canonical(entry))}
        check_entry(self.documents, entry, entry["participants"])
        assert entry["round"] == len(self.rounds)
        assert (entry["sequence"], entry["group"]) not in [
            (each["sequence"], each["group"]) for each in self.entries
        ]
        self.spent.append(entry)
        self.entries.append(entry)

    def _fail(self, leaf: Leaf) -> None:
        """A group that failed beside others, or a whole attempt."""
        assert leaf.about == {"plan": self.documents.digest}
        assert leaf["round"] == len(self.rounds)
        assert leaf["seq"] == self.seq + 1
        self._attempt(leaf["attempt"])
        self._ask(leaf)
        group = leaf["group"]
        if group is not None:
            if self.documents.witnessed and group in self.sums:
                unopened = self.sums.pop(group)
                assert "reveal" not in unopened.leaves
                unopened.check(len(self.rounds), self.rounds[-1]["adapter_out"])
            assert group not in self.sums
            self.failed.add(group)
            return
        if self.documents.witnessed:
            assert {one.only("alive")["seq"] for one in self.sums.values()} <= {leaf["seq"]}
            self._leave_unopened()
        assert not self.sums
        self.seq += 1
        if leaf["revealed"]:
            self.in_vain.append(leaf)
        self.spent = []

    def _ask(self, leaf: Leaf) -> None:
        """What clients were asked to open in vain, with its line of the ledger. (P-8.7)"""
        assert self.roster is not None
        groups = [sum_["group"] for sum_ in leaf["revealed"]]
        assert groups == sorted(set(groups))
        assert leaf["group"] is None or groups in ([], [leaf["group"]])
        everybody = [client for sum_ in leaf["revealed"] for client in sum_["clients"]]
        assert len(everybody) == len(set(everybody))
        for sum_ in leaf["revealed"]:
            assert set(sum_) == {"group", "rid", "clients"}
            clients = sum_["clients"]
            assert clients == sorted(clients) != []
            if self.documents.witnessed and sum_["group"] in self.sums:
                assert self.sums[sum_["group"]].only("alive")["clients"] == clients
            names = sorted(self.roster.names[bytes.fromhex(client)] for client in clients)
            self.asked.append((self.rounds[-1]["adapter_out"], set(clients)))
            if self.documents.plan["privacy"]["mechanism"] != "none":
                (line,) = [
                    entry
                    for entry in self.spent
                    if (entry["sequence"], entry["group"]) == (leaf["seq"], sum_["group"])
                ]
                assert line["participants"] == names

    def _attempt(self, number: int) -> None:
        """P-4.6: counted from 1; the number of one that was killed comes again."""
        plan = self.documents.plan
        assert number in (self.attempt, self.attempt + 1)
        assert number <= 20 * plan["cohort"]["attempts"]
        assert self.seq <= 20 * plan["cohort"]["attempts"] * plan["rounds"]
        assert number >= 1
        self.attempt = number

    # -- rounds -----------------------------------------------------------------------------------

    def _close(self, leaf: Leaf) -> None:
        """A round: its sums, the step, its files."""
        number = len(self.rounds)
        assert leaf["round"] == number <= self.documents.plan["rounds"]
        assert leaf["exchange"] == "secagg"
        before = self.rounds[-1]["adapter_out"] if self.rounds else ""
        assert leaf["adapter_in"] == before
        metrics: dict[str, float] = {}
        if self.state is None:
            self.state = self._first(leaf)
        elif leaf["void"]:
            assert self.in_vain[-1]["attempt"] == leaf["attempt"]
            assert leaf["seq"] == 0
            assert not self.sums
            assert leaf["sums"] == []
        else:
            self.state, metrics = self._next(leaf, self.state)
            self.done.append(number)
        own = [each for each in self.releases if each["round"] == number]
        check_round(self.documents, leaf, self.state, metrics, own)
        self.rounds.append(leaf)
        self._begin()

    def _first(self, leaf: Leaf) -> State:
        assert [leaf[name] for name in ("attempt", "seq", "sums", "void")] == [0, 0, [], ""]
        assert leaf.index == 2
        assert not self.sums
        adapter = round_0(self.documents)
        zeros = {name: np.zeros_like(value) for name, value in adapter.items()}
        return State(adapter, zeros, dict(zeros))

    def _next(self, leaf: Leaf, before: State) -> tuple[State, dict[str, float]]:
        """The state that the sums make, and their metrics together."""
        number = leaf["round"]
        opened = [one.open(number, leaf["adapter_in"]) for one in self.sums.values()]
        self.seq += 1
        self._attempt(leaf["attempt"])
        assert {(one.seq, one.attempt) for one in opened} == {(self.seq, leaf["attempt"])}
        assert leaf["seq"] == self.seq
        assert all(each["attempt"] == leaf["attempt"] for each in self.in_vain)
        self._check_groups(opened)
        self.asked += [(leaf["adapter_in"], one.ids) for one in opened]
        counts, secrecy = [len(one.clients) for one in opened], self.documents.plan["secrecy"]
        mean, kept = combined([one.mean for one in opened], counts, secrecy)
        assert leaf["sums"] == [
            {"group": one.group, "rid": one.rid, "summands": len(one.clients), "kept": good}
            for one, good in zip(opened, kept, strict=True)
        ]
        names = {name for one in opened for name in one.metrics}
        metrics = {name: sum(one.metrics[name] for one in opened) for name in names}
        return stepped(self.documents, before, number, mean), metrics

    def _check_groups(self, opened: list[Opened]) -> None:
        """Every group ends in a sum or an abort; nobody is in two; the ledger has each sum's line."""
        groups = {one.group for one in opened}
        assert not groups & self.failed
        assert groups | self.failed == set(range(self.documents.groups))
        advertised = [client for one in opened for client in one.advertised]
        assert len(advertised) == len(set(advertised))
        assert sum(len(one.clients) for one in opened) >= self.documents.plan["cohort"]["quorum"]
        if self.documents.plan["privacy"]["mechanism"] == "none":
            assert not self.spent
            return
        lines = {entry["group"]: entry for entry in self.spent if entry["sequence"] == self.seq}
        for one in opened:
            assert lines[one.group]["attempt"] == one.attempt
            assert lines[one.group]["participants"] == one.clients
