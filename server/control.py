"""An operator's requests to the SuperLink behind :mod:`server.gateway`: runs and nodes.

A run's bundle holds a reference to the installed ``server.app`` and ``client.app``, and no code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from protocol.errors import MachineError
from server.gateway import DOUBLED_PATH, TOKEN_HEADER

BUNDLE = b"""
[project]
name = "fedge"
version = "1.0.0"
license = "Apache-2.0"
description = "The installed fedge; no code of its own"
[tool.flwr.app]
publisher = "fedge"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
plan = ""
base = ""
run = ""
resume = false
roster = ""
log-key = ""
witnesses = ""
data-pattern = ""
start = ""
threads = 0
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """How Flower sees a run: ``pending``, ``starting``, ``running``, or ``finished`` and how."""

    status: str
    sub_status: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether it will not go on by itself."""
        return self.status == "finished"

    @property
    def failed_by_itself(self) -> bool:
        """Whether its app raised something, rather than died or was stopped."""
        silent = "heartbeat" in self.details.lower()
        return self.finished and self.sub_status == "failed" and not silent


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeState:
    """A node by its key (PEM); ``status`` as Flower says it."""

    key: bytes
    status: str
    last_activated_at: str


class Control:
    """Talks to the Control API on loopback. Every call raises MachineError when there is no answer."""

    def __init__(self, port: int, *, authority: bytes, token: str) -> None:
        """``authority`` is the PEM certificate of the coordinator's CA."""
        self._token = token
        self._client = _Direct.from_server_address(
            f"127.0.0.1:{port}",
            insecure=False,
            root_certificates=authority,
            interceptors=[_WithToken(token)],
        )

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def start_run(self, config: dict[str, str | bool | int]) -> int:
        """Submit a run with this run configuration; its number."""
        content, _ = build_fab_from_files({"pyproject.toml": BUNDLE})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(config)
        )
        answer = _answered(lambda: self._client.StartRun(request))
        if not answer.run_id:
            raise MachineError("the SuperLink did not accept the run", "see the coordinator's log")
        return int(answer.run_id)

    def stop_run(self, run: int) -> None:
        """End a run; one that has ended already is left as it is."""
        _answered(lambda: self._client.StopRun(StopRunRequest(run_id=run)))

    def run_state(self, run: int) -> RunState:
        """How a run stands."""
        answer = _answered(lambda: self._client.ListRuns(ListRunsRequest(run_id=run)))
        found = answer.run_dict[run].status
        return RunState(status=found.status, sub_status=found.sub_status, details=found.details)

    def nodes(self) -> list[NodeState]:
        """Every node that was ever enrolled."""
        answer = _answered(lambda: self._client.ListNodes(ListNodesRequest()))
        return [
            NodeState(
                key=node.public_key, status=node.status, last_activated_at=node.last_activated_at
            )
            for node in answer.nodes_info
        ]

    def doubled(self) -> list[bytes]:
        """The keys (PEM) of sites that run twice."""
        answer = _answered(lambda: self._client.get(DOUBLED_PATH, self._token))
        return [str(key).encode() for key in answer.json()]


class _Direct(ControlHttpClient):  # type: ignore[misc]
    """Asks loopback itself: a proxy of the environment is for elsewhere."""

    _client: httpx.Client

    def __init__(self, base_url: str, *, verify: Any = True, **options: Any) -> None:
        super().__init__(base_url, verify=verify, **options)
        self._client.close()
        self._client = httpx.Client(verify=verify, timeout=30.0, trust_env=False)

    def get(self, path: str, token: str) -> httpx.Response:
        """Ask the gate itself."""
        headers = {TOKEN_HEADER.decode(): token}
        return self._client.get(f"{self._base_url}{path}", headers=headers).raise_for_status()


class _WithToken:
    """Adds the operator's token to every request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept(self, context: Any, call_next: Callable[[Any], httpx.Response]) -> httpx.Response:
        context.request.headers[TOKEN_HEADER.decode()] = self._token
        return call_next(context)


def _answered(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except httpx.HTTPStatusError as error:
        raise MachineError(
            f"the SuperLink refused: HTTP {error.response.status_code}", "see the coordinator's log"
        ) from None
    except (httpx.HTTPError, OSError) as error:
        raise MachineError(
            f"the SuperLink does not answer ({type(error).__name__})",
            "start it with `fedge coordinator start`",
        ) from None
