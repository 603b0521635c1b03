"""Flower's ClientApp: messages in, messages out; the work is done by :mod:`client.worker`.

Two kinds of messages (``protocol.wire``): ``query.hello`` asks who the node is and which base it
holds; ``train.mask`` brings an instruction and an adapter and takes a masked contribution or a
refusal back. An expected failure is a refusal with its cause and remedy; of an unexpected one only
the type leaves this machine, its traceback goes to the local log. Nothing that arrives is changed:
the in-process grid gives every client of a round the same objects.

Settings come from ``node_config`` (this machine) or else ``run_config`` (the run): ``plan`` (a
TOML or JSON file), ``base`` (a folder), ``data-pattern`` (a path with ``{partition}``), ``threads``
(0 = torch's default). ``node_config`` alone has ``data-path``, ``client-id``, ``partition-id``.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol import PROTOCOL_VERSION, wire
from protocol.adapter import adapter_layout
from protocol.encoding import canonical_json
from protocol.errors import (
    ArtefactError,
    DataError,
    FedgeError,
    MachineError,
    PlanError,
    SecrecyError,
)
from protocol.exchange import Contribution, Phase
from protocol.exchange.plain import PlainClient
from protocol.layout import Vector
from protocol.manifest import MANIFEST_NAME, Manifest, parse_manifest
from protocol.plan import Plan, plan_from_text
from protocol.rules import rule_named
from protocol.secagg.roster import parse_roster
from protocol.secagg.session import Session

if TYPE_CHECKING:
    from client.batches import Encoded
    from client.worker import Worker

log = logging.getLogger("fedge.client")

FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s:'\"]+/)+")  # of an absolute path, all but its last part
FileKey = tuple[str, int, int]  # path, mtime in ns, bytes

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


def client_name(context: Context) -> str:
    """The roster name: ``client-id``, or ``client-0007`` for partition 7. Raises MachineError."""
    if (name := context.node_config.get("client-id")) is not None:
        return str(name)
    if (partition := context.node_config.get("partition-id")) is not None:
        return f"client-{int(partition):04d}"
    raise MachineError(
        "this node has no name", "start it with --node-config 'client-id=\"…\"' or partition-id"
    )


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
        base=_manifest(_key(_path(context, "base") / MANIFEST_NAME, ArtefactError)).fingerprint,
        protocol=PROTOCOL_VERSION,
    )
    return RecordDict({wire.REPLY: ConfigRecord(wire.to_record(reply))})


def _in_secret(phase: Phase, message: Message, context: Context) -> RecordDict:
    """One phase of secure aggregation; the session lives in the node's state."""
    import os

    from client.secret import Member

    instruction = _instruction(message.content)
    request = _request(message.content)
    plan = _plan(_key(_path(context, "plan"), PlanError))
    manifest = _manifest(_key(_path(context, "base") / MANIFEST_NAME, ArtefactError))
    name, roster = client_name(context), _roster(_key(_path(context, "roster"), PlanError))
    key = read_identity(_identity_path(context))
    if roster.get(name) != key.public_key().public_bytes_raw():
        raise MachineError(
            f"the roster does not list this client's key as {name}",
            "name the identity that was enrolled, or the roster it is in",
        )
    roles = rule_named(plan.rule.name).roles(instruction.round)
    member = Member(
        name=name,
        key=key,
        roster=roster,
        plan=plan,
        size=adapter_layout(plan, manifest).only(roles).size,
        random=os.urandom,
    )
    held = context.state.get(wire.SECAGG)
    session = (
        Session.model_validate_json(str(held["session"]))
        if isinstance(held, ConfigRecord)
        else None
    )
    after, reply = member.answer(
        phase, request, instruction, session, lambda: _contribution(message, context)
    )
    context.state[wire.SECAGG] = ConfigRecord({"session": after.model_dump_json()})
    data = np.frombuffer(reply, np.uint8)
    return RecordDict({wire.MASKED: ArrayRecord({"masked": Array(data)})})


def _mask(message: Message, context: Context) -> RecordDict:
    if wire.SECAGG in message.content:
        return _in_secret(Phase.MASK, message, context)
    plan = _plan(_key(_path(context, "plan"), PlanError))
    if plan.secrecy.exchange != "plain":  # nobody talks a client out of its plan
        raise SecrecyError(
            "exchange.plain",
            f"asked for a plain update, the plan says {plan.secrecy.exchange}",
            "ask the coordinator's operator",
        )
    contribution = _contribution(message, context)
    masked = np.frombuffer(PlainClient().mask(contribution), np.uint8)
    return RecordDict({wire.MASKED: ArrayRecord({"masked": Array(masked)})})


def _contribution(message: Message, context: Context) -> Contribution:
    instruction, adapter = _received(message.content)
    plan = _plan(_key(_path(context, "plan"), PlanError))
    from client.worker import worker_for

    _set_threads(context)
    worker = worker_for(plan, _path(context, "base"))
    worker.check(instruction, adapter)  # a request that does not belong reads no private data
    return worker.contribute(
        client=client_name(context),
        instruction=instruction,
        adapter=adapter,
        rows=rows_cache.get(data_path(context), worker),
    )


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


def read_identity(path: Path) -> Ed25519PrivateKey:
    """A client's own key: 64 hex digits. Raises MachineError that shows none of them."""
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read: {error.strerror}", "name this client's identity file"
        ) from None
    except ValueError:
        raise MachineError(f"{path}: not an identity", "it holds 64 hex digits") from None


def _identity_path(context: Context) -> Path:
    if (path := context.node_config.get("identity")) is None:
        raise MachineError(
            "this node has no identity", "start it with --node-config 'identity=\"…\"'"
        )
    return Path(str(path))


def _received(content: RecordDict) -> tuple[wire.Instruction, Vector]:
    instruction, record = _instruction(content), content.get(wire.ADAPTER)
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
    return instruction, adapter


def _unfit(fault: str) -> ArtefactError:
    return ArtefactError(
        f"message train.mask: {fault}", "run the same version of fedge on both sides"
    )


def data_path(context: Context) -> Path:
    """The file with this node's rows. Raises MachineError when none is set."""
    if (path := context.node_config.get("data-path")) is not None:
        return Path(str(path))
    pattern, partition = _setting(context, "data-pattern"), context.node_config.get("partition-id")
    if not pattern or partition is None:
        raise MachineError("this node has no data", "start it with --node-config 'data-path=\"…\"'")
    return _filled(pattern, "data-pattern", int(partition))


def _filled(pattern: str, name: str, partition: int) -> Path:
    try:
        return Path(pattern.format(partition=partition))
    except (KeyError, IndexError, ValueError, AttributeError):
        raise PlanError(
            f"{name} {pattern!r} is not a path with {{partition}}",
            "write for example clients/client-{partition:04d}.jsonl",
        ) from None


def _setting(context: Context, name: str) -> str:
    """A machine's own setting goes before the run's: its folders are its own.

    A machine with an identity takes part in secret sums: there the run's settings, which are the
    coordinator's, count for nothing.
    """
    own = context.node_config.get(name)
    if own or "identity" in context.node_config:
        return str(own or "")
    return str(context.run_config.get(name) or "")


def _path(context: Context, name: str) -> Path:
    if not (value := _setting(context, name)):
        raise MachineError(f"`{name}` is not set", f"set `{name}` in the run's or node's config")
    return Path(value)


def _set_threads(context: Context) -> None:
    import torch

    threads = int(context.node_config.get("threads") or context.run_config.get("threads") or 0)
    if threads > 0 and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _key(path: Path, kind: type[FedgeError]) -> FileKey:
    try:
        found = path.stat()
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}", "check the path") from None
    return str(path), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _plan(key: FileKey) -> Plan:
    return plan_from_text(_text(key, PlanError), source=key[0])


@lru_cache(maxsize=8)
def _roster(key: FileKey) -> dict[str, bytes]:
    return parse_roster(_text(key, PlanError), source=key[0])


@lru_cache(maxsize=8)
def _manifest(key: FileKey) -> Manifest:
    return parse_manifest(_text(key, ArtefactError), source=key[0])


def _text(key: FileKey, kind: type[FedgeError]) -> str:
    try:
        return Path(key[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise kind(f"{key[0]}: cannot be read ({type(error).__name__})", "check the file") from None


class RowsCache:
    """Encoded rows of files that have not changed; those not used for longest go first.

    ``budget`` bounds the tokens kept (4 bytes each), whatever the number of clients.
    """

    def __init__(self, budget: int = 2**24) -> None:
        self._budget = budget
        self._held: OrderedDict[tuple[object, ...], Encoded] = OrderedDict()
        self._tokens = 0

    def get(self, path: Path, worker: Worker) -> Encoded:
        """The rows of ``path`` for the worker's task and base. Raises DataError."""
        from client.data import load_rows

        task = worker.plan.task
        settings = canonical_json(task.model_dump(mode="json"))
        key = (*_key(path, DataError), settings, worker.manifest.fingerprint)
        if (found := self._held.get(key)) is not None:
            self._held.move_to_end(key)
            return found
        rows = worker.encode(load_rows(path, task))
        self._held[key] = rows
        self._tokens += len(rows.ids)
        while self._tokens > self._budget and len(self._held) > 1:
            _, gone = self._held.popitem(last=False)
            self._tokens -= len(gone.ids)
        return rows

    def __len__(self) -> int:
        return len(self._held)


rows_cache = RowsCache()
