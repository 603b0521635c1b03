"""Clients on a Ray cluster: an app for the in-process grid whose work is done by actors. (docs/adr/0095)

The grid, the coordinator, deadlines and faults are those of a run in one process; each of the grid's threads
waits for the answer to one message, and the first of them sends the next batch to an idle actor
(:mod:`simulations.ray_batches`). An actor that is lost, with its node or alone, is replaced where the cluster
has room, and what it ran is run again: a client's answer hangs on its message, its rows and its state, not on
where it is computed. Needs the extra ``ray``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib import util
from typing import Any

from flwr.app import ArrayRecord, Context, Message

from client.leaving import check_leaving
from protocol.errors import MachineError
from protocol.wire import INSTRUCTION
from simulations.clients import client_name
from simulations.grid import FIRST_NODE, identify
from simulations.ray_actor import SHARED, Call, ClientActor, code_digest
from simulations.ray_batches import MOST, Batches, Task

LOCAL = "local"  # an address: a cluster of this machine alone, that ends with the process
APP = "client.app:app"
LARGE = 2**16  # bytes of a record that is worth a place of its own in the object store
PATIENCE_S = 30.0  # for an actor to start
CONNECT_S = 5.0
POLL_S = 0.5  # between looks whether the process leaves
MOST_WAITING = 64  # messages in batches, whatever the number of actors: their replies lie in memory
TRIES = 3  # of a message whose actor was lost each time: it may be what ends them
# Flower's and Ray's telemetry and update checks; a simulation has no business on the network.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_gcs_server_request_timeout_seconds": "10",  # of an address where something else listens
}
Rerun = Callable[[int, str, str], None]  # (round, client, cause)


def verify_usable(address: str) -> None:
    """Raises MachineError without Ray, and where nobody listens at HOST:PORT.

    Ray itself would wait there for minutes.
    """
    if util.find_spec("ray") is None:
        raise MachineError("Ray is not installed", "install fedge with the extra `ray`")
    if address == LOCAL:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise _no_cluster(address, "it is no HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, f"nobody listens there ({type(error).__name__})") from None


def _no_cluster(address: str, cause: str) -> MachineError:
    return MachineError(
        f"--ray {address}: {cause}",
        "`ray start --head` prints the address of a cluster; `local` starts one here",
    )


class RayClients:
    """``RayClients(...)(message, context)`` is what the app would answer, computed by an actor."""

    def __init__(
        self, address: str, *, actors: int = 0, app: str = APP, rerun: Rerun, run_id: int = 1
    ) -> None:
        """Connect to ``address``, or start a cluster here, and start ``actors`` (0: one per core).

        ``rerun`` is told of every message that is run again. Raises MachineError without Ray, for an address
        where no cluster is, and for nodes that have other code than this process.
        """
        verify_usable(address)
        os.environ.update(QUIET)
        import ray

        self._ray, self._app, self._run_id, self._rerun = ray, app, run_id, rerun
        errors = ray.exceptions
        # The last: of a reply whose node was lost when the client was through.
        self._lost = (errors.RayActorError, errors.WorkerCrashedError, errors.ObjectLostError)
        self._batches: Batches[Any] = Batches()
        self._lock = threading.Lock()
        self._closed = False
        self._alive = 0  # actors, those that start in the place of lost ones among them
        self._shared: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        self._connect(address, actors)
        self.actors = actors or self._cores()
        self._code = code_digest()
        try:
            self._start()
            if not self._alive:
                raise MachineError(
                    f"no actor has started within {PATIENCE_S:.0f} s", "see `ray status`"
                )
        except BaseException:
            self.close()
            raise

    @property
    def jobs(self) -> int:
        """Messages that may wait for an answer at a time, each in a thread."""
        return max(self.actors, min(self.actors * MOST, MOST_WAITING))

    def at_once(self) -> int:
        """As many as are worth it now: a batch for each actor."""
        return min(self.actors * self._batches.size(), self.jobs)

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply; ``context.state`` is what the client leaves.

        Raises MachineError when no node is left, RuntimeError for a client that ended every actor.
        """
        task = Task(message, self._call(message, context))
        self._batches.put(task)
        while not task.ended:
            if taken := self._batches.take():
                self._work(*taken)
            elif not task.woken.wait(POLL_S):
                self._verify_going()
            task.woken.clear()
        if task.answer is None:
            assert task.error is not None
            raise task.error
        content, context.state = task.answer
        return Message(content, reply_to=message)

    def _work(self, actor: Any, batch: list[Task]) -> None:
        """Let ``actor``, which nobody else has, answer a batch."""
        try:
            answers, seconds = self._answer(actor.run.remote([task.call for task in batch]))
        except self._lost as error:
            self._again(batch, error)
            self._replace(actor)
        except BaseException as error:
            self._batches.free(actor)
            self._batches.failed(batch, error)  # whoever waits for one of them raises it
            if not isinstance(error, Exception):
                raise
        else:
            self._batches.answered(batch, answers, seconds)
            self._batches.free(actor)

    def _again(self, batch: list[Task], error: Exception) -> None:
        """An actor was lost: what it ran is run again, the first first."""
        for task in reversed(batch):
            task.losses += 1
            self._note(task.message, error)
            if task.losses < TRIES:
                self._batches.put(task, first=True)
            else:
                fault = RuntimeError(f"{TRIES} actors were lost that ran this client")
                self._batches.failed([task], fault)

    def _answer(self, reference: Any) -> Any:
        """What an actor gives; whoever waits for it leaves with the process, and the actor after it."""
        while True:
            try:
                return self._ray.get(reference, timeout=POLL_S)
            except self._ray.exceptions.GetTimeoutError:
                check_leaving()

    def close(self) -> None:
        """End the actors, and the connection."""
        self._closed = True
        self._ray.shutdown()

    # -- messages ---------------------------------------------------------------------------------

    def _call(self, message: Message, context: Context) -> Call:
        small, shared = {}, {}
        for key, record in message.content.items():
            if isinstance(record, ArrayRecord) and _size(record) >= LARGE:
                shared[key] = self._reference(record)
            else:
                small[key] = record
        return Call(
            records=small,
            shared=shared,
            kind=message.metadata.message_type,
            name=message.metadata.message_id,
            node=message.metadata.dst_node_id,
            node_config=context.node_config,
            run_config=context.run_config,
            run_id=context.run_id,
            state=context.state,
        )

    def _reference(self, record: ArrayRecord) -> Any:
        """Where a record lies in the object store; the same one is put there once."""
        with self._lock:
            key = id(record)  # of one that is held here, so no other has it
            if key not in self._shared:
                while len(self._shared) >= SHARED * self.actors:
                    self._shared.popitem(last=False)
                self._shared[key] = record, self._ray.put(record)
            self._shared.move_to_end(key)
            return self._shared[key][1]

    # -- actors -----------------------------------------------------------------------------------

    def _connect(self, address: str, actors: int) -> None:
        settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == LOCAL:
            settings |= {"num_cpus": actors or None, "include_dashboard": False}
        else:
            settings |= {"address": address}
        try:
            self._ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, str(error).splitlines()[0][:200]) from None
        identify(self._run_id)

    def _cores(self) -> int:
        alive = (node for node in self._ray.nodes() if node["Alive"])
        return max(1, int(sum(node["Resources"].get("CPU", 0) for node in alive)))

    def _actor(self) -> Any:
        actor = self._ray.remote(ClientActor).options(num_cpus=1, max_restarts=0)
        return actor.remote(self._app, self._run_id)

    def _start(self) -> None:
        """As many as start before a time in which none does: a cluster may have no room for all."""
        until = time.monotonic() + PATIENCE_S
        for actor in [self._actor() for _ in range(self.actors)]:
            if self._take_on(actor, seconds=max(0.0, until - time.monotonic())):
                self._alive += 1
                until = time.monotonic() + PATIENCE_S

    def _take_on(self, actor: Any, *, seconds: float = PATIENCE_S) -> bool:
        """Let ``actor`` work, once it says that it has our code; one that does not start is let go."""
        try:
            code = self._ray.get(actor.code.remote(), timeout=seconds)
        except (self._ray.exceptions.GetTimeoutError, *self._lost):
            self._ray.kill(actor)
            return False
        if code != self._code:
            raise MachineError(
                "a node of the Ray cluster has other code than this process",
                "install the same fedge on all machines, and start `ray` outside of any working tree",
            )
        self._batches.free(actor)
        return True

    def _verify_going(self) -> None:
        """Raises KeyboardInterrupt where the process leaves, MachineError where no actor is left."""
        check_leaving()
        if self._closed:
            raise KeyboardInterrupt from None
        if not self._alive:
            raise MachineError(
                "no node of the Ray cluster is left", "start nodes, then resume the run"
            ) from None

    def _replace(self, actor: Any) -> None:
        """Another actor for one that is lost, where the cluster has a core for it."""
        if self._closed:
            raise KeyboardInterrupt from None
        self._ray.kill(actor)  # one that cannot be reached may still have its core
        started = False
        try:
            with self._lock:
                room = self._alive <= self._cores()
            started = room and self._take_on(self._actor())
        finally:
            if not started:
                with self._lock:
                    self._alive -= 1

    def _note(self, message: Message, error: Exception) -> None:
        content, node = message.content, message.metadata.dst_node_id
        number = int(content[INSTRUCTION]["round"]) if INSTRUCTION in content else 0
        self._rerun(number, client_name(node - FIRST_NODE), type(error).__name__)


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())
