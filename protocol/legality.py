"""Whether a valid plan may be run: do rule, exchange, adapter and base fit together?

Every check is derived from rule, method and the base's manifest; nothing asks for a name of theirs.
Findings are data, so that a command can print them in words and in JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from protocol.decoder_manifest import DecoderManifest
from protocol.errors import PlanError, ProofError
from protocol.head_tensors import MOST_PHASES, head_turns, turns_together
from protocol.initial import ONES
from protocol.legality_of_controls import said_of_controls, said_of_controls_on
from protocol.legality_of_head import said_of_head, said_of_head_on, said_of_round_0
from protocol.legality_of_kind import said_of_kind
from protocol.legality_of_late import said_of_late, said_of_late_on
from protocol.legality_of_release import said_of_release, said_of_release_on
from protocol.legality_of_secrecy import said_of_groups, said_of_secrecy
from protocol.legality_of_start import said_of_start
from protocol.manifests import AnyManifest
from protocol.methods import method_of
from protocol.methods.base import rank_axis
from protocol.plan import Plan
from protocol.privacy.legality import said_of, said_with_sizes
from protocol.privacy.planned import round_sizes
from protocol.recipe import Recipe
from protocol.rules import AggregationRule, exact_instead, rule_named
from protocol.step_sizes import said_of_steps
from protocol.transparency.policy import policy_of

LEAST_TEXT = 3  # tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing to know about a plan; an ``error`` makes it illegal."""

    severity: Literal["error", "warning", "note"]
    field: str
    cause: str
    remedy: str

    @property
    def line(self) -> str:
        """As people read it."""
        return f"{self.severity} `{self.field}`: {self.cause}" + (
            f" ({self.remedy})" if self.remedy else ""
        )


def check(plan: Plan, manifest: AnyManifest | None = None) -> list[Finding]:
    """All findings, errors first. Without a manifest the checks against the base are left out."""
    try:
        rule = rule_named(plan.rule.name)
    except PlanError as error:
        return [_error("rule.name", error.cause.removeprefix("`rule.name`: "), error.remedy)]
    findings = [
        *_rule(plan, rule),
        *_cohort(plan),
        *_exposure(plan, rule),
        *_witnesses(plan),
    ]
    findings += [*_terms(plan, rule), *_engine(plan)]
    said = (*said_of_head(plan), *said_of_release(plan), *said_of_start(plan))
    findings += [_finding(*row) for row in said]
    if manifest is None:
        findings.append(
            _note("base", "the base was not looked at", "pass --base DIR to check it too")
        )
    else:
        findings += [*_base(Recipe(plan=plan, manifest=manifest)), *_memory(plan, manifest)]
    order = {"error": 0, "warning": 1, "note": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def warnings_of(plan: Plan, manifest: AnyManifest | None = None) -> list[Finding]:
    """What :func:`check` warns of."""
    return [finding for finding in check(plan, manifest) if finding.severity == "warning"]


def verify_legal(plan: Plan, manifest: AnyManifest | None = None) -> None:
    """Raises PlanError with the first error of :func:`check`."""
    for finding in check(plan, manifest):
        if finding.severity == "error":
            raise PlanError(f"`{finding.field}`: {finding.cause}", finding.remedy)


def _rule(plan: Plan, rule: AggregationRule) -> Iterator[Finding]:
    method = method_of(plan.adapter)
    phases, exact = rule.phases(method), rule.exact(method)
    opening, turns = rule.opening(method), len(head_turns(plan.head))
    again = len(phases) - opening
    count = opening + turns_together(again, plan.head)
    if not rule.takes(method):
        yield _error(
            "rule.name",
            f"method `{method.name}` learns in a first round what it trains in the others, and rule "
            f"`{rule.name}` trains the same in all",
            "use `alternating`",
        )
    if count > MOST_PHASES:
        yield _error(
            "head.directions.turns",
            f"{turns} turns of the head beside {len(phases)} of rule `{rule.name}` are {count} different "
            f"rounds, and a program has graphs for {MOST_PHASES}",
            "take a number that has a divisor in common with the other, or fewer turns",
        )
    if count > plan.rounds:
        yield _warning(
            "rounds",
            f"{plan.rounds} round(s) do not reach every phase of rule `{rule.name}`"
            + (f" and every turn of the head, {turns}" if turns > 1 else ""),
            f"plan at least {count} rounds",
        )
    if again > 1 and exact:
        yield _note(
            "rule.name",
            f"rule `{rule.name}` trains each factor in one round of {again}",
            "with few rounds and no privacy noise `mean` gets further (docs/results.md)",
        )
    if bent := rule.trained(method) & method.nonlinear:
        yield _note(
            "rule.name",
            f"rule `{rule.name}` averages {', '.join(sorted(bent))}, in which the adapter is not linear",
            f"{exact_instead(method)}: that is exact in every round",
        )
    elif not exact:
        yield _note(
            "rule.name",
            f"rule `{rule.name}` averages factors, which is not the mean of their products",
            "`alternating` is exact in every round",
        )


def _cohort(plan: Plan) -> Iterator[Finding]:
    if plan.cohort.quorum == 1:
        yield _warning("cohort.quorum", "one update alone may become the model", "raise the quorum")
    if 0 < len(plan.cohort.clients) < plan.cohort.asked:
        most = len(plan.cohort.clients)
        yield _warning(
            "cohort.spare" if most >= plan.cohort.size else "cohort.size",
            f"no round has {plan.cohort.asked} clients: `cohort.clients` names {most}",
            f"size = {min(plan.cohort.size, most)}"
            + (f" with spare = {max(0, most - plan.cohort.size)}" if plan.cohort.spare else "")
            + ", or name more",
        )
    if plan.cohort.spare:
        yield _note(
            "cohort.spare",
            f"a round asks {plan.cohort.asked} clients and closes with the first {plan.cohort.size}: data of "
            "slower ones count less in the model",
            "spare = 0 waits for everybody",
        )
    yield from (_finding(*row) for row in said_of_late(plan))
    yield from (_warning(*row) for row in said_of_steps(plan))


def _terms(plan: Plan, rule: AggregationRule) -> Iterator[Finding]:
    """Terms of the loss that hang on the weights alone."""
    local, method = plan.local, method_of(plan.adapter)
    if local.l2_sp and plan.start is not None and plan.rounds > 1:
        yield _note(
            "local.l2_sp",
            "clients are sent what the run goes on from in every round, to be pulled to it",
            "twice the bytes down",
        )
    if local.l2_sp and method.opening:
        yield _error(
            "local.l2_sp",
            f"it pulls to round 0, which method `{method.name}` leaves for good after its first rounds",
            "leave it out, or take `proximal_mu`, which pulls to what a round began with",
        )
    yield from (_finding(*row) for row in said_of_controls(plan))
    trained = rule.trained(method) & method.free.keys()
    if local.orthogonality and all(rank_axis(method.free[part]) is None for part in trained):
        yield _error(
            "local.orthogonality",
            f"method `{method.name}` under rule `{rule.name}` trains no matrix with rows of a rank",
            "leave it out, or use a method with low-rank factors, such as `lora`",
        )


def _engine(plan: Plan) -> Iterator[Finding]:
    if plan.local.precision == "bf16" and plan.local.engine != "torch":
        yield _note(
            "local.precision",
            "ONNX Runtime, which trains where the engine is not torch, computes in float32",
            'it is for `local.engine = "torch"`',
        )


def _memory(plan: Plan, manifest: AnyManifest) -> Iterator[Finding]:
    if not plan.local.memory:
        return
    if not isinstance(manifest, DecoderManifest) or plan.local.engine == "torch":
        yield _note(
            "local.memory",
            "nothing is bounded by it here",
            "it is for bases that write text, trained with ONNX Runtime",
        )


def _exposure(plan: Plan, rule: AggregationRule) -> Iterator[Finding]:
    if plan.secrecy.exchange == "plain":
        yield _warning(
            "secrecy.exchange",
            "INSECURE: the coordinator sees every client's update",
            "for simulation and research only",
        )
        if plan.secrecy.groups > 1:
            yield _error("secrecy.groups", "groups are for secret sums", "use groups = 1")
    else:
        yield from (_finding(*row) for row in said_of_secrecy(plan))
    yield from (_finding(*row) for row in said_of_groups(plan.secrecy))
    yield from (_finding(*row) for row in said_of(plan, rule))


def _base(recipe: Recipe) -> Iterator[Finding]:
    plan, manifest = recipe.plan, recipe.manifest
    if plan.base.fingerprint != manifest.fingerprint:
        yield _error(
            "base.fingerprint",
            f"the plan names {plan.base.fingerprint[:12]}…, the base is {manifest.fingerprint[:12]}…",
            "copy the fingerprint of `fedge base inspect DIR`",
        )
    if manifest.task != plan.task.BASE:
        yield _error(
            "task.kind",
            f"the base was built for {manifest.task}, a task `{plan.task.kind}` needs {plan.task.BASE}",
            f"fedge base build SOURCE --task {plan.task.BASE}",
        )
        return  # nothing else of it would mean anything
    yield from (_finding(*row) for row in said_of_kind(recipe))
    yield from _positions(recipe)
    yield from (_finding(*row) for row in recipe.remarks())
    yield from (_finding(*row) for row in said_of_head_on(recipe))
    try:
        specs = recipe.layout.specs
    except PlanError:
        return  # a target that is not there: said already
    yield from (_finding(*row) for row in said_of_round_0(recipe))
    yield from (_finding(*row) for row in said_of_controls_on(recipe))
    yield from (_finding(*row) for row in said_of_late_on(recipe))
    yield from (_finding(*row) for row in said_of_release_on(recipe))
    if plan.local.weight_decay and any(spec.law == ONES for spec in specs):
        yield _warning(
            "local.weight_decay",
            f"it pulls the factors of method `{plan.adapter.method}` to 0, where 1 leaves the base as it is",
            "use weight_decay = 0",
        )
    if plan.private and (
        plan.privacy.mechanism == "central" or plan.least_sum > plan.privacy.corrupt
    ):
        sizes = round_sizes(plan, manifest)
        yield from (_finding(*row) for row in said_with_sizes(plan, sizes))


def _positions(recipe: Recipe) -> Iterator[Finding]:
    """Texts, and the prompt before them, fit the base; of other media it is the base that says how long."""
    plan, positions = recipe.plan, recipe.manifest.max_positions
    most = positions - recipe.tokens
    if plan.task.longest and plan.task.longest > most:
        prompt = f" and a prompt of {recipe.tokens}" if recipe.tokens else ""
        yield _error(
            "task.max_length",
            f"{plan.task.longest} tokens{prompt} exceed the base's {positions} positions",
            f"at most {most}" if most >= LEAST_TEXT else "shorten the prompt: adapter.tokens",
        )


def _finding(
    severity: Literal["error", "warning", "note"], field: str, cause: str, remedy: str
) -> Finding:
    return Finding(severity=severity, field=field, cause=cause, remedy=remedy)


def _witnesses(plan: Plan) -> Iterator[Finding]:
    audit = plan.audit
    if not plan.witnessed:
        if audit.log or audit.witness_quorum:
            yield _error(
                "audit.witnesses",
                "a log key or a quorum of witnesses, and no witnesses",
                "list their verifier keys, or leave audit.log and audit.witness_quorum out",
            )
        return
    if plan.secrecy.exchange != "secagg":
        yield _error(
            "audit.witnesses",
            "witnesses confirm whose sum is opened; a plain exchange has none",
            'use exchange = "secagg", or no witnesses',
        )
    if not len(audit.witnesses) < 2 * audit.witness_quorum <= 2 * len(audit.witnesses):
        yield _error(
            "audit.witness_quorum",
            f"{audit.witness_quorum} of {len(audit.witnesses)} witnesses: two quorums may share none",
            "more than half of them, and f more than that over two if f may be dishonest (P-8.12)",
        )
        return
    try:
        policy_of(audit)
    except ProofError as error:
        yield _error("audit.log", error.cause, error.remedy)


def _error(field: str, cause: str, remedy: str) -> Finding:
    return Finding(severity="error", field=field, cause=cause, remedy=remedy)


def _warning(field: str, cause: str, remedy: str) -> Finding:
    return Finding(severity="warning", field=field, cause=cause, remedy=remedy)


def _note(field: str, cause: str, remedy: str) -> Finding:
    return Finding(severity="note", field=field, cause=cause, remedy=remedy)
