"""The documents a log speaks about: plan, base, rosters, checkpoints, each against its digests.

An auditor takes nothing from a leaf that follows from the plan: layouts, terms and numbers are derived
anew from these documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from audit.collected import Collected, Placed
from audit.coverage import Coverage, Watched
from audit.log_copy import LogCopy
from audit.sources import Source
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, ProofError
from protocol.frozen_linears import FrozenLinears
from protocol.layout import Layout
from protocol.manifest import MANIFEST_NAME
from protocol.manifests import AnyManifest, parse_any_manifest
from protocol.plan import Plan, plan_from_text
from protocol.privacy.ledger import Tally
from protocol.recipe import Recipe
from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import client_id
from protocol.secagg.roster import parse_roster, render_roster
from protocol.secagg.task import roster_root
from protocol.step.checkpoint import decode_checkpoint
from protocol.step.state import State
from protocol.transparency.leaf_codec import Read, decode_leaf, sha256
from protocol.transparency.leaves import Adapter, PlanLeaf, Roster, Spent
from protocol.transparency.lists import Lists
from protocol.transparency.note import VerifierKey, parse_key
from protocol.transparency.policy import Policy, simple_policy

PLAN, POLICY = "plan.json", "log/policy"
REMEDY = "keep the run as evidence: its coordinator is faulty, dishonest, or the copy is damaged"


@dataclass(frozen=True, kw_only=True)
class Members:
    """A roster: public keys and names by client id."""

    keys: Mapping[bytes, bytes]
    names: Mapping[bytes, str]


@dataclass(kw_only=True)
class Run:
    """A run's documents, checked when they are asked for."""

    source: Watched
    copy: LogCopy
    log: Collected
    lists: Lists
    recipe: Recipe
    plan_digest: str
    coverage: Coverage = field(default_factory=Coverage)
    linears: FrozenLinears | None = None  # of an own base, which some methods' forms hang on
    _rosters: dict[str, Members] = field(default_factory=dict)
    _states: dict[int, State] = field(default_factory=dict)
    _tally: Tally = field(default_factory=Tally)  # of the first lines of the ledger

    @cached_property
    def reads(self) -> list[tuple[int, Read]]:
        """Every leaf that can be read, with its index; what cannot is a fault of the log."""
        readable = []
        for index, entry in enumerate(self.copy.entries):
            with suppress(ProofError):
                read = decode_leaf(entry)
                leaf = self.lists.whole(read.leaf)
                readable.append((index, read.model_copy(update={"leaf": leaf})))
        return readable

    @cached_property
    def _spent(self) -> list[Placed[Spent]]:
        return sorted(self.log.spent, key=lambda line: line.index)

    def ledger_before(self, index: int) -> Tally:
        """Of all lines of the privacy ledger before a leaf; it grows with the next call.

        Asked for in the log's order, each line is added once.
        """
        if self._tally.count and self._spent[self._tally.count - 1].index >= index:
            self._tally = Tally()
        while self._tally.count < len(self._spent) and self._spent[self._tally.count].index < index:
            self._tally.add(self._spent[self._tally.count].leaf.entry)
        return self._tally

    @property
    def sid(self) -> bytes:
        """The context of all its secret sums."""
        return session_id(self.plan_digest, bytes.fromhex(self.log.plan.leaf.run))

    @property
    def policy(self) -> Policy:
        """The log's own key, and the witnesses that its plan names. Raises ProofError."""
        audit = self.plan.audit
        witnesses = [parse_key(text) for text in audit.witnesses]
        return simple_policy(self.copy.key, witnesses, audit.witness_quorum)

    @property
    def signers(self) -> list[VerifierKey]:
        """Whose signatures on a checkpoint are checked."""
        return [self.copy.key, *self.policy.witnesses.values()]

    @property
    def plan(self) -> Plan:
        """The recipe's."""
        return self.recipe.plan

    @property
    def manifest(self) -> AnyManifest:
        """The recipe's."""
        return self.recipe.manifest

    @property
    def layout(self) -> Layout:
        """The full adapter's."""
        return self.recipe.layout

    def members(self, index: int) -> tuple[Roster, Members]:
        """The roster in force at a leaf. Raises ProofError, ArtefactError."""
        placed = self.log.roster_at(index)
        root = placed.leaf.root
        if root not in self._rosters:
            self._rosters[root] = self._members(placed)
        return placed.leaf, self._rosters[root]

    def _members(self, placed: Placed[Roster]) -> Members:
        leaf, name = placed.leaf, roster_path(placed.leaf.root)
        if set(placed.subjects) != {name}:
            raise _bad(f"leaf {placed.index} `roster` is not about {name} alone")
        data = read_subject(self.source, placed, name)
        roster = parse_roster(_decoded(data, name), source=name)
        if roster_root(roster).hex() != leaf.root or len(roster) != leaf.clients:
            raise _bad(f"{name} is not the roster of leaf {placed.index}")
        self.coverage.spelled(name, data, render_roster(roster).encode())
        return Members(
            keys={client_id(key): key for key in roster.values()},
            names={client_id(key): name for name, key in roster.items()},
        )

    def state(self, placed: Placed[Adapter]) -> State:
        """The model after a round, from its checkpoint; the digest is that of the leaf.

        Raises ArtefactError, ProofError.
        """
        number = placed.leaf.round
        if number not in self._states:
            for old in [known for known in self._states if known < number - 1]:
                del self._states[old]
            self._states[number] = self._read_state(placed)
        return self._states[number]

    def _read_state(self, placed: Placed[Adapter]) -> State:
        leaf, name = placed.leaf, checkpoint_path(placed.leaf.round)
        data = read_subject(self.source, placed, name)
        state, note = decode_checkpoint(data, source=name)
        said = (note.round, note.plan_digest, note.base_fingerprint, note.adapter_digest)
        meant = (leaf.round, self.plan_digest, self.manifest.fingerprint, leaf.adapter_out)
        if said != meant:
            raise _bad(f"{name} says of itself another round, plan, base or adapter")
        vector = self.layout.flatten(state.adapter)
        if vector_digest(vector) != leaf.adapter_out:
            raise _bad(f"{name} is not the adapter with the digest `adapter_out`")
        return state


def open_run(source: Watched, copy: LogCopy, collected: Collected, lists: Lists) -> Run:
    """The plan and the base's manifest, against leaf 0. Raises ProofError, ArtefactError, PlanError."""
    placed = collected.plan
    plan = read_plan(source, placed)
    text = _decoded(read_subject(source, placed, MANIFEST_NAME), MANIFEST_NAME)
    manifest = parse_any_manifest(text, source=MANIFEST_NAME)
    if not placed.leaf.base == manifest.fingerprint == plan.base.fingerprint:
        raise _bad(f"{MANIFEST_NAME} is of another base than the plan")
    return Run(
        source=source,
        copy=copy,
        log=collected,
        lists=lists,
        recipe=Recipe(plan=plan, manifest=manifest),
        plan_digest=plan.digest,
    )


def read_plan(source: Source, placed: Placed[PlanLeaf]) -> Plan:
    """The plan of leaf 0. Raises ProofError, PlanError."""
    leaf = placed.leaf
    if set(placed.subjects) != {PLAN, MANIFEST_NAME}:
        raise _bad("leaf 0 is not about plan.json and manifest.json")
    plan = plan_from_text(_decoded(read_subject(source, placed, PLAN), PLAN), source=PLAN)
    if plan.digest != leaf.plan:
        raise _bad(f"{PLAN} is not the plan with the digest of leaf 0")
    if leaf.retention_days != plan.audit.retention_days:
        raise _bad(f"leaf 0 keeps vectors {leaf.retention_days} days, {PLAN} says otherwise")
    origin = plan.audit.log.partition("+")[0] or f"fedge/{plan.name}/{leaf.run}"
    if leaf.origin != origin:
        raise _bad("leaf 0 names another origin than that of its plan and run")
    return plan


def read_subject(source: Source, placed: Placed[Any], name: str) -> bytes:
    """A file that the leaf speaks about. Raises ProofError when it is another one."""
    wanted = placed.subjects.get(name)
    if wanted is None:
        raise _bad(f"leaf {placed.index} `{placed.leaf.kind}` does not name {name}")
    data = source.read(name)
    if sha256(data) != wanted:
        raise _bad(f"{name} is not the file of leaf {placed.index} `{placed.leaf.kind}`")
    return data


def checkpoint_path(number: int) -> str:
    """A round's state."""
    return f"rounds/{number:04d}/checkpoint.safetensors"


def adapter_path(number: int, name: str) -> str:
    """A file of a round's adapter."""
    return f"rounds/{number:04d}/adapter/{name}"


def record_path(number: int) -> str:
    """A round's record, which is the coordinator's own; its digest is in the log."""
    return f"rounds/{number:04d}/record.json"


def roster_path(root: str) -> str:
    """A roster by its digest."""
    return f"rosters/{root}.json"


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ArtefactError(f"{name} is no text", "fetch the run again") from None


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
