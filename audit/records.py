"""A round's ``record.json`` and model card: what of them follows from log and plan is compared. (P-8.16)

The record is the coordinator's own file; its digest is in the log, so it cannot be written anew later. A
field that nothing shows (who was asked, why somebody was dropped, times) is named as not covered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audit.collected import Placed, Round
from audit.order import advert_head
from audit.published import (
    REMEDY,
    Run,
    adapter_path,
    read_subject,
    record_path,
)
from audit.report import Findings
from audit.sources import MissingError
from audit.sums import OpenedSum
from protocol.errors import MachineError, ProofError
from protocol.model_card import model_card
from protocol.peft_format import CARD_FILE
from protocol.privacy.record import privacy_record
from protocol.step.robust import Robust
from protocol.transparency.leaves import Adapter, Advert

WORD = "the coordinator's word about its round"
SAID = (  # by a coordinator, of every round
    "expected",
    "used",
    "dropped",
    "kept_out",
    "weight",
    "metrics",
    "update_norm",
    "bytes_up_per_client",
    "seconds",
    "started_at",
    "ended_at",
    "privacy",
)
UNAWAITED = "unawaited"  # why somebody was dropped: enough others had answered
SAID_OF_SUMS = ("lost", "liars", "groups")
CLOSE = 1e-6  # of what libraries compute: epsilon, norms and distances


class RecordCheck:
    """One round's record and card. ``opened`` and ``robust`` are empty unless its sums were all opened."""

    def __init__(
        self,
        run: Run,
        round_: Round,
        before: Placed[Adapter] | None,
        opened: Sequence[OpenedSum],
        robust: Robust | None,
    ) -> None:
        self._run, self._round, self._before = run, round_, before
        self._opened, self._robust = opened, robust
        self._leaf = round_.adapter.leaf

    def run(self, findings: Findings) -> None:
        """Check both files."""
        name = record_path(self._leaf.round)
        try:
            privacy = self._privacy()
        except MachineError as error:
            findings.leave_open(
                error.cause, "that record and model card name the epsilon that was spent"
            )
            card = adapter_path(self._leaf.round, CARD_FILE)
            self._run.coverage.leave(card, error.cause)
            privacy = None
        else:
            with findings.checking("its model card"):
                self._check_card(privacy)
        with findings.checking("its record"):
            try:
                data = read_subject(self._run.source, self._round.adapter, name)
            except MissingError:
                self._run.coverage.leave(name, "not in this copy; its digest is in the log")
                return
            self._check_record(name, data, privacy)

    def _privacy(self) -> dict[str, Any] | None:
        """As of this round: all lines of the ledger before its adapter. Raises MachineError."""
        if not self._run.plan.private:
            return None
        return privacy_record(self._run.plan, self._run.ledger_before(self._round.adapter.index))

    def _check_card(self, privacy: Mapping[str, Any] | None) -> None:
        run, number = self._run, self._leaf.round
        name = adapter_path(number, CARD_FILE)
        secure = self._leaf.exchange == "secagg"
        card = model_card(run.plan, run.manifest, number, secure, privacy)
        if read_subject(run.source, self._round.adapter, name) != card.encode():
            raise _bad(f"{name} is not the card of this round")

    def _check_record(self, name: str, data: bytes, privacy: Mapping[str, Any] | None) -> None:
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            raise _bad(f"{name} is no JSON") from None
        if not isinstance(record, dict):
            raise _bad(f"{name} is no record")
        ours = json.dumps(record, indent=1, sort_keys=True) + "\n"
        self._run.coverage.spelled(name, data, ours.encode())
        meant = self._meant()
        if privacy is not None or not self._run.plan.private:
            meant["privacy"] = privacy
        for field, value in meant.items():
            if field not in record or not same(record[field], value):
                raise _bad(f"`{field}` of {name} is not what log and plan give")
        self._check_members(name, record)
        claimed = {*SAID, *(SAID_OF_SUMS if self._is_secret else ()), *record} - meant.keys()
        self._run.coverage.leave(name, WORD, *claimed)

    @property
    def _is_secret(self) -> bool:
        return self._leaf.exchange == "secagg" and self._before is not None

    def _meant(self) -> dict[str, Any]:
        run, leaf = self._run, self._leaf
        meant: dict[str, Any] = {
            "round": leaf.round,
            "attempt": leaf.attempt,
            "plan_digest": run.plan_digest,
            "base_fingerprint": run.manifest.fingerprint,
            "adapter_in": leaf.adapter_in,
            "adapter_out": leaf.adapter_out,
            "adapter_published": leaf.published,
            "exchange": leaf.exchange,
            "secure": leaf.exchange == "secagg",
            "void": leaf.void or None,
        }
        if self._before is None:
            lists: dict[str, Any] = {key: [] for key in ("parts", "expected", "used", "dropped")}
            zero = ("quorum", "weight", "bytes_down_per_client", "bytes_up_per_client")
            empty = {"kept_out": {}, "metrics": {}, "update_norm": 0.0, "seconds": 0.0}
            return meant | lists | dict.fromkeys(zero, 0) | empty
        central = run.plan.privacy.mechanism == "central"
        meant |= {
            "parts": sorted(run.recipe.parts(leaf.round)),
            "quorum": 0 if central else run.plan.cohort.quorum,
            "bytes_down_per_client": 4 * run.recipe.sent_in(leaf.round),
        }
        if leaf.void:
            number = self._round.aborts[-1].leaf.seq if self._round.aborts else 0
            meant |= {"weight": 0, "metrics": {}, "update_norm": 0.0, "sequence": number}
        elif self._robust is not None:
            meant |= self._meant_of_sums(self._robust)
        return meant

    def _meant_of_sums(self, robust: Robust) -> dict[str, Any]:
        names = sorted(name for opened in self._opened for name in opened.clients)
        metrics = sorted({name for opened in self._opened for name in opened.metrics})
        return {
            "sequence": self._leaf.seq,
            "used": names,
            "weight": len(names),
            "metrics": {n: sum(opened.metrics[n] for opened in self._opened) for n in metrics},
            "update_norm": float(np.linalg.norm(robust.mean.astype(np.float64))),
        }

    def _check_members(self, name: str, record: Mapping[str, Any]) -> None:
        """Everybody that was asked is used or dropped; whom the log shows was asked."""
        try:
            expected, used = record["expected"], record["used"]
            dropped = [entry["client"] for entry in record["dropped"]]
            fits = expected == sorted({*used, *dropped}) and len(expected) == len(used) + len(
                dropped
            )
        except (KeyError, TypeError):
            raise _bad(f"{name} does not say who was asked, used and dropped") from None
        if not fits or not set(self._advertised()) <= set(expected):
            raise _bad(f"{name}: who was used and dropped are not those who were asked")
        self._check_spare(name, record)
        if unnamed := [client for client in expected if not self._run.plan.cohort.takes(client)]:
            raise _bad(f"{name}: {unnamed[0]} was asked, whom `cohort.clients` does not name")
        if self._is_secret and self._robust is not None:
            self._check_groups(name, record.get("groups"), self._robust)

    def _check_spare(self, name: str, record: Mapping[str, Any]) -> None:
        """No more were asked than the plan says, nobody left out before enough had answered. (P-4.5)"""
        plan, used = self._run.plan, record["used"]
        if self._before is None or plan.privacy.mechanism == "central":
            return
        if len(record["expected"]) > plan.cohort.asked:
            raise _bad(
                f"{name}: {len(record['expected'])} were asked, the plan asks {plan.cohort.asked}"
            )
        unawaited = sum(entry.get("reason") == UNAWAITED for entry in record["dropped"])
        # Of a group: in clear an attempt that failed before has the number of the one that did not, 0.
        whole = not self._leaf.void and not any(
            abort.leaf.group is not None and abort.leaf.seq == self._leaf.seq
            for abort in self._round.aborts
        )
        if unawaited and (not plan.cohort.spare or (whole and len(used) < plan.cohort.size)):
            raise _bad(
                f"{name}: {unawaited} clients were not waited for, with {len(used)} updates: the plan waits "
                f"for {plan.cohort.size} and asks {plan.cohort.spare} more"
            )

    def _advertised(self) -> list[str]:
        """Names of those whose adverts are in the round's sums."""
        names = []
        for group_sum in self._round.sums:
            for placed in group_sum.of(Advert):
                _, members = self._run.members(placed.index)
                names.append(members.names.get(bytes.fromhex(advert_head(placed.leaf)[1]), "?"))
        return names

    def _check_groups(self, name: str, groups: Any, robust: Robust) -> None:
        """Who is in a group's sum, whether it was kept and how far it was."""
        count = self._run.plan.secrecy.groups
        if not isinstance(groups, list) or len(groups) != (count if count > 1 else 0):
            raise _bad(f"`groups` of {name} are not the plan's")
        if not groups:
            return
        at = {opened.group: number for number, opened in enumerate(self._opened)}
        for group, entry in enumerate(groups):
            place = at.get(group)
            meant: dict[str, Any] = {"used": [], "distance": 0.0, "kept": False}
            if place is not None:
                meant = {
                    "used": list(self._opened[place].clients),
                    "distance": robust.distances[place],
                    "kept": robust.kept[place],
                    "failure": None,
                }
            if not isinstance(entry, dict) or any(
                key not in entry or not same(entry[key], value) for key, value in meant.items()
            ):
                raise _bad(f"group {group} of {name} is not that of the log")


def same(value: Any, expected: Any) -> bool:
    """Equal, and of one type; reals to a millionth of what they are."""
    if isinstance(expected, float):
        return isinstance(value, float) and math.isclose(value, expected, rel_tol=CLOSE)
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same(value[key], entry) for key, entry in expected.items())
        )
    return type(value) is type(expected) and value == expected


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
