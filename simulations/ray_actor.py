"""A process of a Ray cluster that runs clients, one after the other; what it has opened stays open.

It is sent what a client sees: records, the node's configuration, its state. Files (the plan, the base, rows)
are read where the paths point to: machines of a cluster share the folder of the run.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict

from simulations.grid import Config, answer, identify, number_message

Answer = tuple[
    RecordDict | Error, RecordDict
]  # the reply's content, or an error; the state after it
SHARED = 4  # large records kept between messages: a round's adapter is the same for all
CODE = ("client", "protocol", "base_model", "storage", "simulations")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A message for a client, and what the client is. ``shared``: records that lie in the object store."""

    records: Mapping[str, Any]
    shared: Mapping[str, Any]
    kind: str
    name: str
    node: int
    node_config: Config
    run_config: Config
    run_id: int
    state: RecordDict


def code_digest() -> str:
    """Of the source of all that a client runs: two machines with one digest compute the same."""
    digest = hashlib.sha256()
    for package in CODE:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class ClientActor:
    """Runs an app, named ``module:attribute``, on messages."""

    def __init__(self, app: str, run_id: int) -> None:
        module, _, attribute = app.partition(":")
        self._app = getattr(importlib.import_module(module), attribute)
        self._shared: OrderedDict[str, Any] = OrderedDict()
        identify(run_id)

    def code(self) -> str:
        """See :func:`code_digest`."""
        return code_digest()

    def run(self, calls: Sequence[Call]) -> tuple[list[Answer], float]:
        """Of each call, in order; and the seconds that they took."""
        begun = time.monotonic()
        answers = [self._run(call) for call in calls]
        return answers, time.monotonic() - begun

    def _run(self, call: Call) -> Answer:
        content = RecordDict({**call.records, **self._held(call.shared)})
        message = Message(content, call.node, call.kind)
        number_message(message, call.name)
        context = Context(call.run_id, call.node, call.node_config, call.state, call.run_config)
        reply = answer(self._app, message, context)
        return (reply.error if reply.has_error() else reply.content), context.state

    def _held(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """What was read for an earlier message is not read again."""
        import ray

        found = {}
        for key, reference in shared.items():
            name = reference.hex()
            if name not in self._shared:
                while len(self._shared) >= SHARED:
                    self._shared.popitem(last=False)
                self._shared[name] = ray.get(reference)
            self._shared.move_to_end(name)
            found[key] = self._shared[name]
        return found
