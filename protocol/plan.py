"""The plan: everything the parties of a run must agree on, as one validated document.

``parse_plan`` reads TOML text into a frozen :class:`Plan`; ``Plan.digest`` is what clients check
(and, with secure aggregation, sign). Unknown keys are refused with the nearest known one. Whether
a *valid* plan is also *legal* (rule, exchange, base and adapter fit together) is decided in
``protocol.legality``.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from protocol import methods, tasks
from protocol.documents import OddError, parse_json, parse_toml
from protocol.encoding import canonical_json, digest
from protocol.errors import PlanError, shortened
from protocol.head import HeadStart
from protocol.known_keys import key_hint
from protocol.methods import METHODS, Adapter
from protocol.plan_sections import (
    Audit,
    Base,
    Cohort,
    Evaluation,
    Local,
    Privacy,
    Release,
    Rule,
    Secrecy,
    Server,
)
from protocol.section import Name, Positive, Section
from protocol.start import NOTHING_BEFORE, SpentBefore, Start
from protocol.tasks import Task
from protocol.tasks.classification import Labelled
from protocol.variants import UNKNOWN, untagged

M = TypeVar("M", bound=BaseModel)

FORMAT: Literal[2] = 2  # 1 had one table of keys for all methods (docs/adr/0046)
REFUSALS = {
    "method": methods.refusal,
    "kind": tasks.refusal,
}  # by the key that tells variants of a table apart
STARTS = 20  # times that a run may be begun and resumed


class Plan(Section):
    """A whole run. Field order is the order of a written plan."""

    format: Literal[2] = Field(default=FORMAT, description="of this file")
    name: Name = Field(description="of the run; another name makes another plan")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="of everything that is drawn, noise and keys apart"
    )
    rounds: Positive = Field(default=10, description="after which the run is finished")
    base: Base
    task: Task
    adapter: Adapter = METHODS["lora"].settings()
    rule: Rule = Rule()
    cohort: Cohort = Cohort()
    local: Local = Local()
    server: Server = Server()
    evaluation: Evaluation = Evaluation()
    release: Release = Release()
    secrecy: Secrecy = Secrecy()
    privacy: Privacy = Privacy()
    audit: Audit = Audit()
    head: HeadStart | None = None  # this and `start` are left out of the digest where there is none
    start: Start | None = None

    @model_validator(mode="after")
    def _head_fits_task(self) -> Plan:
        if self.head is not None:
            labels = self.task.labels if isinstance(self.task, Labelled) else []
            if labels and not self.task.outputs:
                raise ValueError(f"head: task `{self.task.kind}` has none, the base itself answers")
            if len(labels) != len(self.head.rows):
                raise ValueError(
                    f"head: it has {len(self.head.rows)} rows, the task {len(labels)} labels"
                )
        return self

    def turn(self, number: int) -> int:
        """Round ``number``, counted over the runs before as well: seeds and turns hang on it. (P-1.4)"""
        return number + (self.start.rounds if self.start else 0)

    @property
    def spent_before(self) -> SpentBefore:
        """What clients have spent in the runs that this one goes on from."""
        return self.start.spent if self.start else NOTHING_BEFORE

    @property
    def witnessed(self) -> bool:
        """Whether alive sets are agreed on by their place in a witnessed log."""
        return bool(self.audit.witnesses)

    @property
    def least_sum(self) -> int:
        """Fewest clients of one sum: the quorum, or a group's part of it."""
        return self.cohort.quorum // self.secrecy.groups

    @property
    def most_attempts(self) -> int:
        """Highest number of an attempt at one round, however often the run is resumed."""
        return STARTS * self.cohort.attempts

    @property
    def most_numbers(self) -> int:
        """Highest number of an attempt in the run, those that a killed coordinator left among them."""
        return STARTS * self.rounds * self.cohort.attempts

    @property
    def largest_sum(self) -> int:
        """Most clients of one sum."""
        return -(-self.cohort.asked // self.secrecy.groups)

    @property
    def private(self) -> bool:
        """Whether clients are protected by differential privacy."""
        return self.privacy.mechanism != "none"

    @property
    def adapter_settings(self) -> str:
        """The digest of [adapter]: with the same settings the same tensors mean the same. (P-4.11)"""
        return digest(
            "adapter-settings",
            canonical_json(self.adapter.model_dump(mode="json", exclude=self.adapter.unsaid)),
        )

    @property
    def digest(self) -> str:
        """The plan's identity: comments, order and spelling of defaults do not change it. (P-1.2)"""
        return digest("plan", canonical_json(self._content()))

    def render(self) -> str:
        """The text of a run's ``plan.json``: every default filled in but those that came later."""
        return json.dumps(self._content(), indent=1, sort_keys=True) + "\n"

    def _content(self) -> dict[str, Any]:
        """Without what says nothing: keys that plans before it had not leave their digests alone."""
        unsaid: dict[str, Any] = {
            name: True for name in ("head", "start") if getattr(self, name) is None
        }
        if self.head is not None:
            unsaid["head"] = self.head.unsaid
        unsaid |= {
            "cohort": self.cohort.unsaid,
            "local": self.local.unsaid,
            "adapter": self.adapter.unsaid,
            "release": self.release.unsaid,
            "secrecy": self.secrecy.unsaid,
        }
        return self.model_dump(mode="json", exclude=unsaid)


def parse_plan(text: str, *, source: str) -> Plan:
    """Read a plan from TOML. ``source`` names the text in errors. Raises PlanError."""
    try:
        document = parse_toml(text)
    except OddError as odd:
        raise PlanError(f"{source}: {odd}", "correct the line named") from None
    return plan_from(document, source=source)


def plan_from_text(text: str, *, source: str) -> Plan:
    """Read a plan from JSON when ``source`` ends in ``.json``, from TOML else. Raises PlanError."""
    if not source.endswith(".json"):
        return parse_plan(text, source=source)
    try:
        document = parse_json(text)
    except OddError as odd:
        raise PlanError(f"{source}: not valid JSON ({odd})", "write the plan again") from None
    return plan_from(document, source=source)


def plan_from(document: dict[str, Any], *, source: str) -> Plan:
    """The same for a document that is already parsed."""
    return validated(Plan, document, source=source)


def validated(
    model: type[M], document: Any, *, source: str, inner: dict[str, type[BaseModel]] | None = None
) -> M:
    """Validate ``document`` as ``model``; the first fault becomes one PlanError with its field.

    ``inner`` names tables that are another model's, though ``model`` takes anything there.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _plan_error(model, error, source, inner or {}) from None


def _plan_error(
    model: type[BaseModel],
    error: ValidationError,
    source: str,
    inner: dict[str, type[BaseModel]],
) -> PlanError:
    # An unknown key explains a missing one, and a wrong value is nearer than an absent one.
    order = {"extra_forbidden": 0, "missing": 2}
    faults = sorted(
        error.errors(),
        key=lambda fault: (fault["loc"] != ("format",), order.get(fault["type"], 1)),
    )
    fault = faults[0]
    place = [shortened(str(part), 100) for part in fault["loc"]]
    path = untagged(model, place)
    field = ".".join(path)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        hint = key_hint(model, place, inner)
        return PlanError(f"{source}: unknown key `{field}`{more}", hint)
    if fault["type"] == "missing":
        return PlanError(
            f"{source}: `{field}` is missing{more}", "add it; `fedge init` shows every key"
        )
    if fault["type"] == UNKNOWN:
        return _unknown_variant(fault, source, field)
    if path == ["format"]:
        expected, noun = model.model_fields["format"].default, model.__name__.lower()
        return PlanError(
            f"{source}: `format` is {fault['input']!r}, this fedge's {noun}s have {expected}",
            "write it anew: `fedge init` shows every key, CHANGELOG.md what has moved",
        )
    message = fault["msg"].removeprefix("Value error, ")
    if not path and ": " in message:  # validators of the whole document begin with the field
        field, _, message = message.partition(": ")
    shown = repr(fault["input"])
    got = f"; got {shown}" if len(shown) <= 60 and not isinstance(fault["input"], dict) else ""
    return PlanError(f"{source}: `{field}`: {message}{got}{more}", "correct this value")


def _unknown_variant(fault: Any, source: str, field: str) -> PlanError:
    """A table whose kind there is not."""
    key, value = fault["ctx"]["key"], fault["input"]
    if not isinstance(value, dict):
        above, _, last = field.rpartition(".")
        table = f"[[{above}]]" if last.isdecimal() else f"[{field}]"
        return PlanError(f"{source}: `{field}` is no table", f"write {table} with its keys")
    kind = shortened(repr(value.get(key)), 60)
    above, _, last = field.rpartition(".")
    cause = f"{source}: `{field}.{key}`: there is no {key} {kind}"
    if last.isdecimal():
        cause = f"{source}: `{field}.{key}`: {kind} is none of what `{above}` may have"
    return PlanError(cause, REFUSALS[key](value.get(key)))
