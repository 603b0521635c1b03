"""The in-process Grid: the real ServerApp and ClientApp in one process, without Ray.

Messages are executed lazily: a client runs when its reply is pulled, one client per
``pull_messages``, so the coordinator has stored a reply before the next client starts, and of a
client nothing remains here once its reply is handed over. With ``jobs`` the next few clients of the
same pull run meanwhile, in threads; replies come in the same order. Nothing is copied: all clients of a
round see the same RecordDict object, and **a client must not change what it receives**
(``client.app`` does not).

This file is the only one that touches private names of Flower (1.41 and 1.42): the message id,
the task identity, the empty Run, the error code of an application. (docs/adr/0004)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from protocol.encoding import seed_from
from protocol.errors import FedgeError
from protocol.exchange import Phase
from protocol.secagg.session import ORDER
from protocol.wire import INSTRUCTION, SECAGG
from simulations.ahead import Ahead
from simulations.clients import client_name
from simulations.clock import VirtualClock
from simulations.faults import Fault, Faults, Speeds

SERVER_NODE = 1
FIRST_NODE = 1000
Config = dict[str, UserConfigValue]
App = Callable[[Message, Context], Message]  # a ClientApp, or what calls one elsewhere


def identify(run_id: int) -> None:
    """Give this process the identity that messages need to be made in it."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, SERVER_NODE


def number_message(message: Message, name: str) -> None:
    """Name a message, so that a reply can say which it answers."""
    message.metadata.__dict__["_message_id"] = name


def answer(app: App, message: Message, context: Context) -> Message:
    """The reply of ``app``; an exception becomes an error, as in Flower's own nodes.

    A FedgeError is raised: it is no client's, whose refusals are replies, but of what runs them.
    """
    try:
        return app(message, context)
    except FedgeError:
        raise
    except Exception as error:
        code, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error).__name__}: {error}"
        return Message(Error(code=code, reason=reason), reply_to=message)


def server_context(run_config: Config, *, run_id: int = 1) -> Context:
    """The Context a ServerApp is called with."""
    return Context(run_id, SERVER_NODE, {}, RecordDict(), run_config)


@dataclass(slots=True)
class _Pending:
    """A message whose reply nobody has taken; ``ready`` is virtual seconds. None = never: it is not kept."""

    message: Message | None
    ready: float | None
    deadline: float
    reply: Message | None = None


class InProcessGrid(Grid):
    """``clients`` nodes that run ``app``.

    Args:
        app: the ClientApp, or what runs one elsewhere; it may change the state of the Context.
        clients: number of nodes; node ids are 1000, 1001, …
        run_config: the run's configuration, given to every client.
        data_path: the value of node_config["data-path"] for a partition; absent without it.
        own: more of a partition's node_config.
        faults: who does not answer, or late; questions (``query``) are always answered.
        speeds: how long each trains; whatever else it is asked meanwhile waits, as at a SuperNode.
        ready: whether a partition needs not train for a round: it keeps an update for it.
        clock: shared with the ServerApp.
        deadline_s: the round's deadline: a straggler answers at one and a half times that.
        jobs: clients that run at a time.
        at_once: how many of these are worth it now, where that changes.
    """

    def __init__(
        self,
        app: App,
        clients: int,
        *,
        run_config: Config | None = None,
        data_path: Callable[[int], str] | None = None,
        own: Callable[[int], Config] | None = None,
        faults: Faults | None = None,
        speeds: Speeds | None = None,
        ready: Callable[[int, int], bool] | None = None,
        clock: VirtualClock | None = None,
        deadline_s: float = 600.0,
        run_id: int = 1,
        jobs: int = 1,
        at_once: Callable[[], int] | None = None,
    ) -> None:
        self._ahead: Ahead[Message] = Ahead(jobs, owner=self._node, at_once=at_once)
        self._app, self._clients, self._run_config = app, clients, dict(run_config or {})
        self._data_path, self._own = data_path, own
        self._faults, self._speeds = faults or Faults(), speeds or Speeds()
        self._has_trained = ready or (lambda partition, number: False)
        self._free_at: dict[int, float] = {}  # by node that has begun to train
        self._queues: dict[int, list[str]] = {}  # of each, the messages it has not worked off
        self._clock = clock or VirtualClock()
        self._deadline_s = deadline_s
        self._pending: dict[str, _Pending] = {}
        self._states: dict[int, RecordDict] = {}
        self._count = 0
        self.set_run(Run.create_empty(run_id=run_id))

    def set_run(self, run: Run) -> None:
        """Set the run; Message() needs a process-wide identity of the task it is made in."""
        self._run = run
        identify(run.run_id)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: they are always connected."""
        return range(FIRST_NODE, FIRST_NODE + self._clients)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; no client runs yet. Returns one id per message."""
        now = self._clock.now()
        self._forget_expired(now)
        ids = []
        for message in messages:
            self._count += 1
            name = f"m{self._count}"
            number_message(message, name)
            ready = self._ready_at(message, now)
            kept = None if ready is None else message
            self._pending[name] = _Pending(kept, ready, now + self._deadline_s)
            node = message.metadata.dst_node_id
            if kept and node in self._free_at and INSTRUCTION in message.content:
                self._queues.setdefault(node, []).append(name)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first of these clients that can answer by now and return its reply.

        Returns nothing when none can; the clock is then told what happens next.
        """
        now = self._clock.now()
        waiting: list[_Pending] = []
        if ready := self._ready_by(now, message_ids, waiting):
            self._work_off(ready[0])
            reply = self._pending[ready[0]].reply or self._replied(ready)
            del self._pending[ready[0]]
            return [reply]
        events = {p.deadline for p in waiting} | {p.ready for p in waiting if p.ready is not None}
        if future := [event for event in events if event > now]:
            self._clock.idle_until(min(future))
        return []

    def _ready_by(self, now: float, names: Iterable[str], waiting: list[_Pending]) -> list[str]:
        """The first that can answer by now, as many as may run; before them those for ``waiting``."""
        ready: list[str] = []
        most = self._ahead.most
        for name in names:
            pending = self._pending.get(name)
            if pending is None:
                continue
            if pending.ready is None or pending.ready > now:
                waiting.append(pending)
                continue
            if ready and (pending.reply or not self._may_begin(name, now)):
                continue
            ready.append(name)
            if len(ready) == most:
                break
        return ready

    def _may_begin(self, name: str, now: float) -> bool:
        """Whether nobody need be the first to have it begun.

        It is not too late for it to be taken, and its node has worked off what it was asked before.
        """
        return self._pending[name].deadline > now and self._queue(name)[:1] == [name]

    def _message(self, name: str) -> Message:
        message = self._pending[name].message
        assert message is not None  # of one that will be answered
        return message

    def _node(self, name: str) -> int:
        return self._message(name).metadata.dst_node_id

    def close(self) -> None:
        """No client begins any more."""
        self._ahead.close()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until every reply is there or ``timeout`` virtual seconds are over.

        Without a timeout a silent client ends the wait: it would never answer.
        """
        ids = set(self.push_messages(messages))
        end = None if timeout is None else self._clock.now() + timeout
        replies: list[Message] = []
        while ids:
            if found := list(self.pull_messages(sorted(ids, key=_order))):
                replies += found
                ids -= {reply.metadata.reply_to_message_id for reply in found}
            elif self._nobody_left(ids, end):
                break
            else:
                self._clock.sleep(1.0)
        return replies

    def _nobody_left(self, ids: set[str], end: float | None) -> bool:
        if end is not None:
            return self._clock.now() >= end
        return all(self._pending[name].ready is None for name in ids)

    def _ready_at(self, message: Message, now: float) -> float | None:
        content = message.content
        if message.metadata.message_type.startswith("query") or INSTRUCTION not in content:
            return now
        instruction = content[INSTRUCTION]
        partition = message.metadata.dst_node_id - FIRST_NODE
        client, node = client_name(partition), message.metadata.dst_node_id
        fault = self._faults.of(
            round_number=int(instruction["round"]),
            attempt=int(instruction["attempt"]),
            client=client,
        )
        phase = Phase(message.metadata.message_type.rsplit(".", 1)[-1])
        leaves = self._leaves_at(partition, phase, secret=SECAGG in content)
        if fault is Fault.DROPOUT and ORDER.index(phase) >= leaves:
            return None
        ready = max(now, self._free_at.get(node, now))
        if phase is Phase.MASK and (seconds := self._speeds.seconds(client)):
            trained = self._has_trained(partition, int(instruction["round"]))
            ready = self._free_at[node] = ready + (0.0 if trained else seconds)
        late = fault is Fault.STRAGGLER and phase is Phase.MASK
        return max(ready, now + self._deadline_s) if late else ready  # too late by a hair

    def _queue(self, name: str) -> list[str]:
        """What this message's node has not worked off, in order; the message alone where it never trains."""
        queue = self._queues.get(self._node(name), [])
        return queue if name in queue else [name]

    def _work_off(self, until: str) -> None:
        """What a node was asked before ``until`` it has done before, whether anybody takes it or not."""
        queue = self._queue(until)
        while (name := queue.pop(0)) != until:
            pending = self._pending.get(name)
            if pending is not None and pending.ready is not None:
                pending.reply = self._replied([name])

    def _replied(self, ready: list[str]) -> Message:
        """The first one's reply; the others are begun."""
        return self._numbered(
            self._ahead.first(ready, lambda name: self._execute(self._message(name)))
        )

    def _leaves_at(self, partition: int, phase: Phase, *, secret: bool) -> int:
        """The place in ORDER of the phase before which a client drops out."""
        if not secret:
            return ORDER.index(phase)
        return seed_from("leaves", self._faults.seed, client_name(partition)) % len(ORDER)

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node not in self.get_node_ids():
            return Message(
                Error(code=ErrorCode.NODE_UNAVAILABLE, reason=f"no node {node}"), reply_to=message
            )
        context = self._context(node)
        reply = answer(self._app, message, context)
        if len(context.state):
            self._states[node] = context.state
        else:
            self._states.pop(node, None)
        return reply

    def _numbered(self, reply: Message) -> Message:
        self._count += 1
        number_message(reply, f"m{self._count}")
        return reply

    def _context(self, node: int) -> Context:
        partition = node - FIRST_NODE
        config: Config = {"partition-id": partition, "num-partitions": self._clients}
        if self._data_path is not None:
            config["data-path"] = self._data_path(partition)
        if self._own is not None:
            config |= self._own(partition)
        state = self._states.get(node)
        return Context(
            self._run.run_id,
            node,
            config,
            RecordDict() if state is None else state,
            self._run_config,
        )

    def _forget_expired(self, now: float) -> None:
        """A message nobody can be waiting for any more would keep its round's adapter alive."""
        horizon = now - 2 * self._deadline_s
        for name in [name for name, p in self._pending.items() if p.deadline < horizon]:
            self._ahead.forget(name)
            del self._pending[name]


def _order(message_id: str) -> int:
    return int(message_id[1:])
