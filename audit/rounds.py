"""One round: its sums, the step they make, the files it published. (P-8.16)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from audit.collected import Placed, Round
from audit.order import advert_head
from audit.published import (
    REMEDY,
    Run,
    adapter_path,
    checkpoint_path,
    read_subject,
    record_path,
)
from audit.records import RecordCheck
from audit.releases import check_release
from audit.report import Findings, RoundVerdict, Verdict
from audit.sums import Effort, OpenedSum, open_sum
from protocol.encoding import vector_digest
from protocol.errors import ProofError
from protocol.layout import Tensors
from protocol.openers import opener_of
from protocol.peft_format import (
    CARD_FILE,
    CONFIG_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    folder_head,
    has_opener,
    peft_config,
    render_config,
    to_peft,
)
from protocol.peft_opener import OPENER_FILE
from protocol.recipe import Recipe, verify_magnitude
from protocol.step.robust import Robust, robust_mean
from protocol.step.state import State, apply_mean, initial_state
from protocol.tensor_file import decode_tensors
from protocol.transparency.leaves import Adapter, Advert, Aggregate

PLAIN = "the updates were shown to the coordinator, and to nobody else"


class RoundCheck:
    """All checks of one round; what it finds is in ``findings``."""

    def __init__(
        self,
        run: Run,
        round_: Round,
        before: Placed[Adapter] | None,
        effort: Effort,
        *,
        alone: bool = False,
    ) -> None:
        """``alone``: of the runs that this one goes on from nothing is known."""
        self._run, self._round, self._before, self._effort = run, round_, before, effort
        self._leaf = round_.adapter.leaf
        self._believed = alone and run.plan.start is not None
        self.findings = Findings()
        self._opened: list[OpenedSum] = []
        # Recomputed: of a round without sums there are none.
        nothing = before is None or bool(round_.adapter.leaf.void)
        self._metrics: dict[str, float] | None = {} if nothing else None
        self._robust: Robust | None = None

    def verdict(self, found_before: Sequence[str]) -> RoundVerdict:
        """Check everything. ``found_before``: faults of this round that its leaves alone showed."""
        findings, leaf = self.findings, self._leaf
        findings.faults += found_before
        with findings.checking("its place in the chain of adapters"):
            self._check_chain()
        if self._before is None:
            with findings.checking("the start"):
                self._check_start()
        elif leaf.void:
            with findings.checking("a void round: the model as it was"):
                self._check_void(self._before)
        elif leaf.exchange == "plain":
            self._check_plain(self._before)
        else:
            self._check_secret(self._before)
        self._check_files()
        return RoundVerdict(
            round=leaf.round,
            verdict=self._verdict(),
            clients=sum(group_sum.summands for group_sum in leaf.sums),
            verified=tuple(findings.verified),
            unverified=tuple(findings.unverified),
            faults=tuple(findings.faults),
        )

    def _verdict(self) -> Verdict:
        if self.findings.faults:
            return "failed"
        if self._leaf.void:
            return "void"
        if self._before is None:
            return "unverifiable" if self._believed else "ok"
        proofs = {opened.proof for opened in self._opened}
        if not proofs or "none" in proofs:
            return "unverifiable"
        return "ok-sampled" if "sampled" in proofs else "ok"

    # -- what every round has ---------------------------------------------------------------------

    def _check_chain(self) -> None:
        leaf, run = self._leaf, self._run
        before = self._before.leaf.adapter_out if self._before else ""
        if leaf.adapter_in != before:
            raise _bad("`adapter_in` is not the output of the round before")
        if leaf.exchange != run.plan.secrecy.exchange:
            raise _bad(f"the exchange is `{leaf.exchange}`, not the plan's")
        if leaf.round > run.plan.rounds:
            raise _bad(f"the plan has {run.plan.rounds} rounds")
        if (leaf.round == 0 or leaf.void or leaf.exchange == "plain") and leaf.sums:
            raise _bad("it lists sums where there are none")

    def _check_start(self) -> None:
        """(P-2.3) It follows from the plan and the base's manifest, bit for bit; or the plan names it."""
        run, leaf = self._run, self._leaf
        state = run.state(self._round.adapter)
        if run.plan.start is not None:
            if leaf.adapter_out != run.plan.start.adapter:
                raise _bad("it is not the adapter that the plan goes on from")
            verify_magnitude(run.layout.flatten(state.adapter))
        else:
            derived = initial_state(run.plan, run.manifest)
            for name, value in derived.adapter.items():
                if not _same_tensors({name: state.adapter[name]}, {name: value}):
                    raise _bad(f"{name} is not what the plan's seed gives")
        if state.moments.first.any() or state.moments.second.any():
            raise _bad("its moments are not zero")

    def _check_void(self, before: Placed[Adapter]) -> None:
        if not any(abort.leaf.revealed for abort in self._round.aborts):
            raise _bad("no attempt is logged as opened in vain")
        if self._round.sums:
            raise _bad("a sum was opened all the same")
        if not _same(self._run.state(self._round.adapter), self._run.state(before)):
            raise _bad("the model has changed")

    def _check_plain(self, before: Placed[Adapter]) -> None:
        self.findings.leave_open(
            PLAIN, "that the adapter is made of what clients sent rests on the coordinator's word"
        )
        if self._round.sums:
            self.findings.fault("secret sums in a plain round")
        with self.findings.checking("nothing moved but what the round trains"):
            self._check_still(before)

    def _check_still(self, before: Placed[Adapter]) -> None:
        run, leaf = self._run, self._leaf
        after, start = run.state(self._round.adapter), run.state(before)
        parts = run.recipe.parts(leaf.round)
        layout = run.layout
        for spec in layout.specs:
            where = layout.slices[spec.name]
            pairs = (
                (after.adapter[spec.name], start.adapter[spec.name]),
                (after.moments.first[where], start.moments.first[where]),
                (after.moments.second[where], start.moments.second[where]),
            )
            if spec.part not in parts and any(a.tobytes() != b.tobytes() for a, b in pairs):
                raise _bad(f"{spec.name} has changed, which this round does not train")

    # -- secret rounds ----------------------------------------------------------------------------

    def _check_secret(self, before: Placed[Adapter]) -> None:
        for group_sum in self._round.sums:
            if not group_sum.complete:
                self.findings.fault(
                    f"the sum of group {group_sum.group}: its leaves are not complete"
                )
                continue
            with self.findings.checking(f"the sum of group {group_sum.group}"):
                opened = open_sum(
                    self._run, self._round, group_sum, before.leaf, self._effort, self.findings
                )
                self._opened.append(opened)
        with self.findings.checking("who is in its sums"):
            self._check_members()
        if len(self._opened) == len(self._round.sums) > 0:
            with self.findings.checking("the step from the sums to the adapter"):
                self._check_step(before)

    def _check_members(self) -> None:
        """Enough clients, each in one sum of the round; no sum beside these."""
        run, leaf = self._run, self._leaf
        ends = [
            group_sum.of(Aggregate)[-1].leaf
            for group_sum in self._round.sums
            if group_sum.of(Aggregate)
        ]
        aggregates = {end.group: end.summands for end in ends}
        listed = [
            (listed_sum.group, listed_sum.rid, listed_sum.summands) for listed_sum in leaf.sums
        ]
        if [(end.group, end.rid, end.summands) for end in ends] != listed:
            raise _bad("`adapter` lists other sums than those in the log")
        failed = {abort.leaf.group for abort in self._round.aborts if abort.leaf.seq == leaf.seq}
        if {*aggregates} & failed or {*aggregates} | failed != {*range(run.plan.secrecy.groups)}:
            raise _bad("a group ends neither in a sum nor in an `abort`, or in both")
        ids = Counter(
            advert_head(advert.leaf)[1]
            for group_sum in self._round.sums
            for advert in group_sum.of(Advert)
        )
        if repeated := sorted(client for client, times in ids.items() if times > 1):
            raise _bad(
                f"{repeated[0]} is in two sums of this round: their difference shows updates"
            )
        if sum(aggregates.values()) < run.plan.cohort.quorum:
            raise _bad(
                f"{sum(aggregates.values())} clients, the quorum is {run.plan.cohort.quorum}"
            )
        largest = max(aggregates.values(), default=0)
        if largest > run.plan.largest_sum:
            raise _bad(f"a sum of {largest} clients, the plan's largest is {run.plan.largest_sum}")
        # The same attempt may be asked again after a crash: clients open the very same sum then. (P-6.10)
        before = [abort.leaf for abort in self._round.aborts if abort.leaf.revealed]
        if any(abort.attempt != self._leaf.attempt for abort in before):
            raise _bad("an attempt before this one was opened: of a round one sum is opened")

    def _check_step(self, before: Placed[Adapter]) -> None:
        run, leaf = self._run, self._leaf
        combined = robust_mean(
            [opened.mean for opened in self._opened],
            [len(opened.clients) for opened in self._opened],
            run.plan.secrecy,
        )
        if list(combined.kept) != [listed.kept for listed in leaf.sums]:
            raise _bad("the groups that were left out are not those that are far")
        after = apply_mean(
            run.state(before),
            combined.mean,
            recipe=run.recipe,
            number=leaf.round,
        )
        vector = run.layout.flatten(after.adapter)
        self._robust = combined
        if vector_digest(vector) != leaf.adapter_out:
            raise _bad("the sums make another adapter than `adapter_out`")
        if not _same(run.state(self._round.adapter), after):
            raise _bad(f"{checkpoint_path(leaf.round)} is not the state that the sums make")
        names = {name for opened in self._opened for name in opened.metrics}
        self._metrics = {n: sum(opened.metrics[n] for opened in self._opened) for n in names}

    # -- files ------------------------------------------------------------------------------------

    def _check_files(self) -> None:
        run, placed, findings = self._run, self._round.adapter, self.findings
        released = [
            release for release in run.log.releases if release.leaf.round == self._leaf.round
        ]
        files = Findings()
        for name in sorted(placed.subjects):
            if name == adapter_path(self._leaf.round, RELEASE_FILE) and released:
                continue  # written again with the release, which its own leaf covers
            if name == record_path(self._leaf.round):
                continue  # the coordinator's own: it may be missing
            with files.checking(name):
                read_subject(run.source, placed, name)
        findings.take(files, "files are those of the log")
        with findings.checking("its leaf is about the files of the round"):
            if set(placed.subjects) != subjects_of(self._leaf.round, self._run.recipe):
                raise _bad("`adapter` is about other files than those of a round")
        RecordCheck(run, self._round, self._before, self._opened, self._robust).run(findings)
        with findings.checking("the published adapter is the checkpoint's"):
            tensors = self._check_published()
            with findings.checking("what its release says"):
                check_release(
                    run,
                    placed,
                    released,
                    tensors=tensors,
                    metrics=self._metrics,
                    findings=findings,
                )

    def _check_published(self) -> Tensors:
        """The PEFT folder holds the adapter of the checkpoint. (P-5.1)"""
        run, leaf = self._run, self._leaf
        recipe = run.recipe
        plain = recipe.published(run.state(self._round.adapter).adapter)
        if vector_digest(recipe.published_layout.flatten(plain)) != leaf.published:
            raise _bad("`published` is not the digest of the published adapter")
        weights = adapter_path(leaf.round, WEIGHTS_FILE)
        data = read_subject(run.source, self._round.adapter, weights)
        tensors, _ = decode_tensors(data, source=weights)
        head = folder_head(run.manifest, recipe.method)
        if not _same_tensors(tensors, to_peft(plain, method=recipe.method, head=head)):
            raise _bad(f"{weights} holds another adapter")
        name = adapter_path(leaf.round, CONFIG_FILE)
        config = peft_config(recipe, base_name=run.manifest.source)
        if read_subject(run.source, self._round.adapter, name) != render_config(config):
            raise _bad(f"{name} is not the plan's")
        if not has_opener(run.manifest, recipe.method):
            return plain
        name = adapter_path(leaf.round, OPENER_FILE)
        if read_subject(run.source, self._round.adapter, name) != opener_of(run.manifest).encode():
            raise _bad(f"{name} is a program of somebody else's")
        return plain


def subjects_of(number: int, recipe: Recipe) -> set[str]:
    """The files that the `adapter` leaf of a round is about. (P-8.7)"""
    opener = [OPENER_FILE] if has_opener(recipe.manifest, recipe.method) else []
    files = (CARD_FILE, CONFIG_FILE, *opener, WEIGHTS_FILE, RELEASE_FILE)
    return {
        checkpoint_path(number),
        record_path(number),
        *(adapter_path(number, name) for name in files),
    }


def _same(left: State, right: State) -> bool:
    return _same_tensors(left.adapter, right.adapter) and _same_moments(left, right)


def _same_moments(left: State, right: State) -> bool:
    same_first = left.moments.first.tobytes() == right.moments.first.tobytes()
    return same_first and left.moments.second.tobytes() == right.moments.second.tobytes()


def _same_tensors(left: Tensors, right: Tensors) -> bool:
    """Bit for bit: also where a value is not a number."""
    return left.keys() == right.keys() and all(
        np.shape(left[name]) == np.shape(right[name])
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
