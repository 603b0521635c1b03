"""Flower's ClientApp: messages in, messages out; the work is done by :mod:`client.worker`.

Two kinds of messages (``protocol.wire``): ``query.hello`` asks who the node is and which base it
holds; ``train.mask`` brings an instruction and an adapter and takes a masked contribution or a
refusal back. An expected failure is a refusal with its cause and remedy; of an unexpected one only
the type leaves this machine, its traceback goes to the local log. In a secret sum nothing is told of what
fails once rows are read (:mod:`client.failures`). Nothing that arrives is changed:
the in-process grid gives every client of a round the same objects.

Settings come from ``node_config`` (this machine) or else ``run_config`` (the run): ``plan`` (a
TOML or JSON file), ``base`` (a folder, or a fingerprint), ``data-pattern`` (a path with
``{partition}``), ``threads`` (0 = the engine's default), ``expand-mib`` (memory for frozen weights as
floats, with which steps of few rows are fast). ``node_config`` alone has ``data-path``,
``client-id``, ``partition-id``, ``identity`` (a key file), ``ledger`` (of privacy spent),
``max-epsilon`` (this client's own limit), ``base-mirrors`` (folders and URLs, where a base named by its
fingerprint is fetched from), ``base-cache``, ``controls`` (a folder of control variates), ``sessions``
(one for attempts of secure aggregation; without it Flower's node state has them) and ``kept`` (one of
what was masked last; without it and ``sessions`` that is kept for plans alone that take updates later).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.job import contribution, job_of, worker_of
from client.settings import (
    client_name,
    epsilon_limit,
    identity_path,
    keeps_updates,
    kept_path,
    ledger_path,
    manifest_of,
    openings_path,
    plan_of,
    read_identity,
    receipts_path,
    roster_of,
    sessions_path,
)
from protocol import PROTOCOL_VERSION, wire
from protocol.errors import (
    ArtefactError,
    DataError,
    FedgeError,
    MachineError,
    SecrecyError,
)
from protocol.exchange import Contribution, Phase
from protocol.exchange.plain import PlainClient
from protocol.layout import Vector
from protocol.plan import Plan
from protocol.recipe import Recipe

if TYPE_CHECKING:
    from client.kept_updates import KeptUpdates

log = logging.getLogger("fedge.client")

FOLDERS = re.compile(r"(?<![\w.])/[^:'\"]*/")  # of an absolute path, all but its last part

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Answer with this node's name, base and protocol version; no torch is loaded for it."""
    return _answer(message, lambda: _hello(context))


@app.train("mask")
def mask(message: Message, context: Context) -> Message:
    """Train as instructed and answer with the masked contribution."""
    return _answer(message, lambda: _mask(message, context))


def _secret(phase: Phase) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _in_secret(phase, message, context))

    return handle


for _phase in (Phase.ADVERTISE, Phase.SHARE, Phase.AGREE, Phase.UNMASK):
    app.train(_phase.value)(_secret(_phase))


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    try:
        content = work()
    except FedgeError as error:
        log.warning("refused: %s; %s", error.cause, error.remedy)
        content = _public_refusal(error)
    except Exception as error:  # Flower would send the text of an exception to the coordinator
        log.exception("unexpected failure of this client")
        content = _refusal(
            "internal",
            f"unexpected {type(error).__name__} on this client",
            "see this client's log; it may be a bug of fedge",
        )
    return Message(content, reply_to=message)


def _public_refusal(error: FedgeError) -> RecordDict:
    """What the coordinator is told: nothing of the data but where it does not fit, and no paths."""
    if isinstance(error, DataError):
        return _refusal(_kind(error), error.public, "see this client's log")
    return _refusal(_kind(error), *(FOLDERS.sub("", text) for text in (error.cause, error.remedy)))


def _kind(error: FedgeError) -> str:
    return type(error).__name__.removesuffix("Error").lower()


def _refusal(kind: str, cause: str, remedy: str) -> RecordDict:
    refusal = wire.Refusal(kind=kind, cause=cause, remedy=remedy)
    return RecordDict({wire.REPLY: ConfigRecord(wire.to_record(refusal))})


def _hello(context: Context) -> RecordDict:
    reply = wire.Hello(
        client=client_name(context),
        base=manifest_of(context).fingerprint,
        protocol=PROTOCOL_VERSION,
    )
    return RecordDict({wire.REPLY: ConfigRecord(wire.to_record(reply))})


def _in_secret(phase: Phase, message: Message, context: Context) -> RecordDict:
    """One phase of secure aggregation; nothing leaves before the session after it is kept."""
    import os

    from client.instructed import verify_named
    from client.ledger import FileLedger
    from client.openings import FileOpenings
    from client.receipts import Receipts
    from client.secret import Member, first_digest
    from client.sessions import session_of

    instruction = _instruction(message.content)
    request = _request(message.content)
    plan = plan_of(context)
    manifest = manifest_of(context)
    name, roster = client_name(context), roster_of(context)
    verify_named(plan, name)
    key = read_identity(identity_path(context))
    if roster.get(name) != key.public_key().public_bytes_raw():
        raise MachineError(
            f"the roster does not list this client's key as {name}",
            "name the identity that was enrolled, or the roster it is in",
        )
    recipe = Recipe(plan=plan, manifest=manifest)
    if phase is Phase.MASK:
        _verify_ready(message, context, recipe)
    member = Member(
        name=name,
        key=key,
        roster=roster,
        plan=plan,
        size=recipe.round_layout(instruction.round).size,
        random=os.urandom,
        ledger=FileLedger(ledger_path(context)),
        openings=FileOpenings(openings_path(context)),
        receipts=Receipts(receipts_path(context)),
        first=lambda: first_digest(recipe),
        limit=epsilon_limit(context),
        kept=_kept(context, plan, name, recipe, instruction),
    )
    with session_of(context, sessions_path(context), plan.digest) as kept:
        after, reply = member.answer(
            phase,
            request,
            instruction,
            kept.load(),
            lambda: _contribution(message, context),
            _log_text(message.content),
        )
        kept.keep(after)
    data = np.frombuffer(reply, np.uint8)
    content = RecordDict({wire.MASKED: ArrayRecord({"masked": Array(data)})})
    if phase in (Phase.ADVERTISE, Phase.UNMASK):  # before the next share, whichever comes last
        told = wire.LogText(text=member.told(after.sid).encode())
        content[wire.LOG] = ConfigRecord(wire.to_record(told))
    return content


def _kept(
    context: Context, plan: Plan, name: str, recipe: Recipe, instruction: wire.Instruction
) -> KeptUpdates | None:
    """What this client masked last, where it keeps it. (P-6.10, P-4.14)"""
    late = bool(plan.cohort.late_rounds)
    if not late and not keeps_updates(context):
        return None
    from client.kept_file import FileKept
    from client.kept_updates import KeptUpdates
    from client.late_updates import LateUpdates
    from protocol.secagg.primitives import client_id

    number = instruction.round
    parts, size = recipe.parts(number), recipe.round_layout(number).size
    store = FileKept(kept_path(context), plan.digest, name, parts, size)
    if not late:
        return KeptUpdates(plan, store, recipe.parts)
    key = read_identity(identity_path(context)).public_key().public_bytes_raw()
    return LateUpdates(plan, store, recipe.parts, client_id(key).hex())


def _verify_ready(message: Message, context: Context, recipe: Recipe) -> None:
    """Whatever can be refused without reading a row: behind it no failure is visible. (P-4.4)"""
    from client.instructed import check_instruction, verify_fits

    check_instruction(recipe, *_received(message.content))
    verify_fits(recipe)
    worker_of(job_of(context))


def _mask(message: Message, context: Context) -> RecordDict:
    if wire.SECAGG in message.content:
        return _in_secret(Phase.MASK, message, context)
    plan = plan_of(context)
    from client.budget import verify_limit
    from client.instructed import verify_named

    verify_named(plan, client_name(context))
    if plan.secrecy.exchange != "plain":  # nobody talks a client out of its plan
        raise SecrecyError(
            "exchange.plain",
            f"asked for a plain update, the plan says {plan.secrecy.exchange}",
            "ask the coordinator's operator",
        )
    verify_limit(plan, epsilon_limit(context))
    masked = np.frombuffer(PlainClient().mask(_contribution(message, context)), np.uint8)
    return RecordDict({wire.MASKED: ArrayRecord({"masked": Array(masked)})})


def _contribution(message: Message, context: Context) -> Contribution:
    return contribution(job_of(context), *_received(message.content))


def _instruction(content: RecordDict) -> wire.Instruction:
    instruction = content.get(wire.INSTRUCTION)
    if not isinstance(instruction, ConfigRecord):
        raise _unfit("a record is missing")
    return wire.from_record(wire.Instruction, instruction)


def _request(content: RecordDict) -> bytes:
    record = content.get(wire.SECAGG)
    if not isinstance(record, ArrayRecord) or list(record) != ["message"]:
        raise _unfit("the message of secure aggregation is missing")
    try:
        data = record["message"].numpy()
    except (ValueError, TypeError, EOFError):
        raise _unfit("the message of secure aggregation cannot be decoded") from None
    if data.dtype != np.uint8 or data.ndim != 1:
        raise _unfit("the message of secure aggregation is not bytes")
    return bytes(data.tobytes())


def _log_text(content: RecordDict) -> str | None:
    record = content.get(wire.LOG)
    if record is None:
        return None
    if not isinstance(record, ConfigRecord):
        raise _unfit("what it says of the log is not text")
    return wire.from_record(wire.LogText, record).text


def _received(content: RecordDict) -> tuple[wire.Instruction, Vector, Vector | None]:
    """The instruction, the adapter, and what the run goes on from where that is sent. (P-4.2)"""
    round_0 = _adapter(content[wire.ROUND_0]) if wire.ROUND_0 in content else None
    return _instruction(content), _adapter(content.get(wire.ADAPTER)), round_0


def _adapter(record: object) -> Vector:
    if not isinstance(record, ArrayRecord):
        raise _unfit("a record is missing")
    if list(record) != ["adapter"]:
        raise _unfit("its adapter is not one array named `adapter`")
    try:
        adapter = record["adapter"].numpy()
    except (ValueError, TypeError, EOFError):
        raise _unfit("its adapter cannot be decoded") from None
    if adapter.dtype != np.float32 or adapter.ndim != 1:
        raise _unfit(f"its adapter is {adapter.dtype} with {adapter.ndim} dimensions")
    return adapter


def _unfit(fault: str) -> ArtefactError:
    return ArtefactError(
        f"message train.mask: {fault}", "run the same version of fedge on both sides"
    )
