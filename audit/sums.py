"""One secret sum, executed again from its leaves and masked vectors. (P-8.16)

With all vectors the sum is proven, with some blocks of them it is sampled. Without them signatures,
commitments and seeds are checked and the published words are taken for the sum: that rests on the
coordinator, and on auditors who saw the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import Literal

import numpy as np

from audit.collected import Round, Sum
from audit.order import advert_head
from audit.published import REMEDY, Members, Run
from audit.report import Findings
from audit.sources import MissingError
from protocol.encoding import canonical_json
from protocol.errors import ProofError
from protocol.layout import Vector
from protocol.secagg.agreement import Keys
from protocol.secagg.client import CHUNK, vector_root
from protocol.secagg.graph import NO_SEED, degree, threshold
from protocol.secagg.messages import NO_INDEX
from protocol.secagg.packing import BLOCK
from protocol.secagg.primitives import Word, word_type
from protocol.secagg.task import Exact, Noisy, encoding_for, terms_for
from protocol.secagg.transcript import PairBox, Transcript
from protocol.secagg.verification import (
    verify_transcript,
    verify_transcript_part,
    verify_without_vectors,
)
from protocol.transparency.leaf_codec import sha256
from protocol.transparency.leaves import (
    Adapter,
    Advert,
    Aggregate,
    Alive,
    Cohort,
    Leaf,
    Reveal,
    RoundOpen,
)
from protocol.transparency.proofs import tree_root
from protocol.transparency.sum_leaves import (
    SumLeaves,
    boxes_path,
    parse_boxes,
    sum_path,
    transcript_of,
    vector_path,
)
from protocol.wire import Instruction

Proof = Literal["whole", "sampled", "none"]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much of every sum is added up again: by ``workers`` threads, or a ``spot`` of its blocks.

    ``spot`` is a fraction above 0; which blocks it takes is drawn by ``random``, after all is signed.
    """

    workers: int = 1
    spot: float = 0.0
    vectors: bool = True  # False: this copy was made without masked vectors, which then is no fault
    random: Random = field(default_factory=SystemRandom)


@dataclass(frozen=True, kw_only=True)
class OpenedSum:
    """A group's sum, decoded: mean (d,) and metrics of ``clients`` (names)."""

    group: int
    clients: tuple[str, ...]
    mean: Vector
    metrics: Mapping[str, float]
    proof: Proof


def instruction_after(run: Run, before: Adapter, attempt: int) -> Instruction:
    """What every client of an attempt is told after ``before``: the coordinator chooses nothing of it."""
    number, plan = before.round + 1, run.plan
    return Instruction(
        round=number,
        attempt=attempt,
        plan_digest=run.plan_digest,
        base=run.manifest.fingerprint,
        adapter_digest=before.adapter_out,
        evaluate=number % plan.evaluation.every == 0 or number == plan.rounds,
    )


def verify_terms(run: Run, found: Sum, instruction: Instruction) -> Exact | Noisy:
    """(P-6.11) `round-open` binds masks to what plan, base, roster and instruction give; the encoding."""
    leaf = found.of(RoundOpen)[0].leaf
    size = run.recipe.round_layout(leaf.round).size
    encoding = encoding_for(run.plan, instruction, size=size, clients=len(leaf.ids))
    roster, _ = run.members(found.of(Advert)[0].index)
    terms = terms_for(run.plan, instruction, encoding, bytes.fromhex(roster.root))
    if canonical_json(terms) != canonical_json(leaf.terms) or leaf.count != encoding.count:
        raise _bad(f"the terms of `round-open` are not the plan's ({_odd_term(terms, leaf.terms)})")
    return encoding


def open_sum(
    run: Run, one: Round, found: Sum, before: Adapter, effort: Effort, findings: Findings
) -> OpenedSum:
    """Check a sum and decode it. Raises ProofError, MissingError for what makes it worthless."""
    leaves = found.leaves()
    instruction = instruction_after(run, before, one.adapter.leaf.attempt)
    leaf = leaves.opened
    if (leaf.round, leaves.aggregate.round, leaf.attempt, found.seq) != (
        instruction.round,
        instruction.round,
        instruction.attempt,
        one.adapter.leaf.seq,
    ):
        raise _bad("its leaves are of another round or attempt than the `adapter`")
    _, members = run.members(found.of(Advert)[0].index)
    _check_graph(run, leaves)
    _check_subjects(found, leaves)
    _check_signers(run, leaves)
    _check_named(run, leaves, members)
    encoding = verify_terms(run, found, instruction)
    transcript = transcript_of(
        leaves,
        sid=run.sid.hex(),
        keys=Keys(run.plan.secrecy.keys),
        suite=run.plan.secrecy.suite,
        bits=encoding.bits,
        boxes=_boxes(run, leaf.round, leaves),
    )
    adding = _Adding(run, found, leaves, transcript, members.keys)
    words, proof = adding.words(effort, findings)
    mean, metrics = encoding.opened(words, len(leaves.vectors))
    names = tuple(sorted(members.names[bytes.fromhex(client)] for client in leaves.alive.ids))
    return OpenedSum(group=found.group, clients=names, mean=mean, metrics=metrics, proof=proof)


def _check_graph(run: Run, leaves: SumLeaves) -> None:
    """(P-6.3) Who masks with whom, and how many reveal, follows from how many advertised."""
    cohort, count = leaves.cohort, len(leaves.adverts)
    if count > run.plan.largest_sum:
        raise _bad(f"{count} clients, the plan has {run.plan.largest_sum} in a sum")
    near = degree(count)
    if (cohort.degree, cohort.threshold, cohort.graph_seed) != (
        near,
        threshold(near),
        NO_SEED.hex(),
    ):
        raise _bad("`cohort` has another graph or threshold than follows from its size")
    if (cohort.alive_index is None) == run.plan.witnessed:
        raise _bad("`cohort` plans its alive set in another way than the plan's witnesses ask for")


def _check_subjects(found: Sum, leaves: SumLeaves) -> None:
    """(P-8.7) Every statement is about what it names."""
    path = sum_path(leaves.opened.round, found.group)
    about: dict[type[Leaf], dict[str, str]] = {
        Cohort: {"attempt": leaves.cohort.xid},
        RoundOpen: {"round": leaves.opened.rid},
        Alive: {"round": leaves.alive.rid},
        Reveal: {"round": leaves.reveal.rid},
        Aggregate: {path: leaves.aggregate.sum},
    }
    for kind, subjects in about.items():
        if found.of(kind)[0].subjects != subjects:
            raise _bad(f"`{kind.kind}` is about something else than it says")


def _check_signers(run: Run, leaves: SumLeaves) -> None:
    """(P-8.7) Who signed the alive set is in it; under witnesses its place stands for signatures."""
    signatures = leaves.alive.signed
    if run.plan.witnessed and signatures:
        raise _bad("`alive` holds signatures, where witnesses stand for them")
    if not all(signatures.values()) or not set(signatures) <= set(leaves.alive.ids):
        raise _bad("`alive` holds a signature that is empty, or of somebody who is not in it")


def _check_named(run: Run, leaves: SumLeaves, members: Members) -> None:
    """(P-4.1) Nobody advertised whom the plan leaves out."""
    for advert in leaves.adverts:
        name = members.names.get(bytes.fromhex(advert_head(advert)[1]))
        if name is not None and not run.plan.cohort.takes(name):
            raise _bad(f"{name} is in it, whom `cohort.clients` of the plan does not name")


class _Adding:
    """A sum's words, from its vectors as far as they are there."""

    def __init__(
        self,
        run: Run,
        found: Sum,
        leaves: SumLeaves,
        transcript: Transcript,
        roster: Mapping[bytes, bytes],
    ) -> None:
        self._run, self._leaves, self._transcript = run, leaves, transcript
        self._roster, self._minimum = roster, run.plan.least_sum
        self._vectors = _Vectors(run, leaves)
        self._opened_at = found.of(Aggregate)[0].index
        self._alive_at = NO_INDEX
        if leaves.cohort.alive_index is not None:
            self._alive_at = found.of(type(leaves.alive))[0].index

    def words(self, effort: Effort, findings: Findings) -> tuple[Word, Proof]:
        """(count,) words, and how they were checked. The published file holds the same."""
        words = self._published()
        blocks = -(-len(words) // BLOCK)
        chosen = min(blocks, math.ceil(effort.spot * blocks))
        try:
            if not effort.spot or chosen == blocks:
                return self._whole(effort.workers), "whole"
            drawn = sorted(effort.random.sample(range(blocks), chosen))
            self._part(words, drawn)
        except MissingError:
            group = self._leaves.opened.group
            self._unproven()
            findings.verified.append(f"signatures, members and seeds of group {group}")
            _say_unproven(self._run, self._leaves, self._opened_at, findings)
            _check_retained(self._run, self._leaves, effort, findings)
            return words, "none"
        _say_sampled(self._leaves, chosen, blocks, findings)
        return words, "sampled"

    def _published(self) -> Word:
        path = sum_path(self._leaves.opened.round, self._leaves.opened.group)
        data, kind = self._run.source.read(path), word_type(self._transcript.bits)
        if sha256(data) != self._leaves.aggregate.sum:
            raise _bad(f"{path} is not the sum of `aggregate`")
        if len(data) != self._transcript.count * kind.itemsize:
            raise _bad(f"{path} has {len(data)} bytes")
        words: Word = np.frombuffer(data, kind)
        if int(words.max()) >> self._transcript.bits:
            raise _bad(f"{path} holds words of more than {self._transcript.bits} bits")
        return words

    def _whole(self, workers: int) -> Word:
        return verify_transcript(
            self._transcript,
            self._roster,
            self._vectors.read,
            minimum=self._minimum,
            alive_at=self._alive_at,
            workers=workers,
        )

    def _part(self, words: Word, blocks: list[int]) -> None:
        verify_transcript_part(
            self._transcript,
            self._roster,
            words,
            self._vectors.hashes,
            self._vectors.piece,
            blocks=blocks,
            minimum=self._minimum,
            alive_at=self._alive_at,
        )

    def _unproven(self) -> None:
        verify_without_vectors(
            self._transcript, self._roster, minimum=self._minimum, alive_at=self._alive_at
        )
        self._vectors.check_what_is_there()


def _say_sampled(leaves: SumLeaves, chosen: int, blocks: int, findings: Findings) -> None:
    missed = 0.95**chosen
    findings.leave_open(
        f"{chosen} of {blocks} blocks of group {leaves.opened.group} were added up again",
        f"the others; if one in twenty were wrong, none would have been met with {missed:.0%}",
    )


def _say_unproven(run: Run, leaves: SumLeaves, opened_at: int, findings: Findings) -> None:
    number, group = leaves.opened.round, leaves.opened.group
    deleted = [each.index for each in run.log.retentions if each.leaf.round == number]
    why = f"deleted, says leaf {deleted[0]}" if deleted else "not in this copy"
    rests = "that the published sum is that of the signed vectors rests on the coordinator's word"
    if seen := [
        each.index
        for each in run.log.audits
        if each.leaf.rounds.get(str(number)) == "ok"
        and each.leaf.verdict != "failed"
        and each.leaf.size > opened_at
    ]:
        rests += (
            f" and on the auditors of leaves {', '.join(map(str, seen))}, if you know their keys"
        )
    findings.leave_open(f"the masked vectors of group {group} are {why}", rests)


def _check_retained(run: Run, leaves: SumLeaves, effort: Effort, findings: Findings) -> None:
    """A masked vector stays for the plan's days; when they are over, a `retention` leaf says so."""
    number = leaves.opened.round
    deleted = any(each.leaf.round == number for each in run.log.retentions)
    if effort.vectors and run.plan.audit.retention_days and not deleted:
        findings.fault(
            f"masked vectors of group {leaves.opened.group} are missing, and no `retention` leaf says that "
            f"their {run.plan.audit.retention_days} days are over"
        )


class _Vectors:
    """A sum's masked vectors with the lists of their pieces' hashes."""

    def __init__(self, run: Run, leaves: SumLeaves) -> None:
        self._source, self._leaves = run.source, leaves
        self._root = {leaf.client: leaf.root for leaf in leaves.vectors}

    def read(self, one: bytes) -> bytes:
        """A client's packed vector; its list of hashes has the root that it signed."""
        data = self._source.read(self._path(one))
        if tree_root(self.hashes(one)).hex() != self._root[one.hex()]:
            raise _bad(f"{self._path(one)}.chunks is not what the client's signed root covers")
        return data

    def hashes(self, one: bytes) -> list[bytes]:
        """The leaf hashes of its pieces."""
        name = f"{self._path(one)}.chunks"
        data = self._source.read(name)
        if len(data) % 32:
            raise _bad(f"{name} has {len(data)} bytes")
        return [data[at : at + 32] for at in range(0, len(data), 32)]

    def piece(self, one: bytes, number: int) -> bytes:
        """One of its pieces."""
        return self._source.read(self._path(one), start=number * CHUNK, length=CHUNK)

    def check_what_is_there(self) -> None:
        """Some vectors are missing: those that are not have the signed roots."""
        for leaf in self._leaves.vectors:
            try:
                data = self.read(bytes.fromhex(leaf.client))
            except MissingError:
                continue
            if vector_root(data).hex() != leaf.root:
                raise _bad(f"the vector of {leaf.client} is not the one it signed")

    def _path(self, one: bytes) -> str:
        opened = self._leaves.opened
        return vector_path(opened.round, opened.group, one.hex())


def _boxes(run: Run, number: int, leaves: SumLeaves) -> list[PairBox]:
    """The boxes of lost pairs, in the hybrid form."""
    if not leaves.reveal.boxes:
        return []
    path = boxes_path(number, leaves.opened.group)
    data = run.source.read(path)
    if sha256(data) != leaves.reveal.boxes:
        raise _bad(f"{path} is not the file of `reveal`")
    try:
        return parse_boxes(data)
    except ProofError as error:
        raise _bad(f"{path}: {error.cause}") from None


def _odd_term(mine: Mapping[str, object], given: Mapping[str, object]) -> str:
    for name in sorted(mine.keys() | given.keys()):
        if canonical_json({"": mine.get(name)}) != canonical_json({"": given.get(name)}):
            return f"`{name}`"
    return "`count`"


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
