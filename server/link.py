"""Flower's SuperLink behind a gate: ``python -m server.link SETTINGS``, run by the coordinator's supervisor.

The only file that knows the inside of Flower's server. It differs from ``flower-superlink`` in three
points: :mod:`server.gateway` stands in front of it, on two ports; the nodes that it knows are those of
the signed roster, whenever that changes; and a node that comes back before its heartbeats were missed
takes its own place instead of being refused for a minute.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    TRANSPORT_TYPE_GRPC_RERE,
)
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.servicer.fleet import fleet_handlers
from pydantic import BaseModel, ConfigDict
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from protocol.enrolment import MAX_BYTES, verify_roster
from protocol.errors import FedgeError, MachineError, ProofError
from server.gateway import Gate

log = logging.getLogger("fedge.link")
LOOK_S = 1.0  # at the roster
HEADERS_S = 20.0  # from a connection to its first request


class LinkSettings(BaseModel):
    """What the supervisor tells this process; ``operator`` is a raw public key in hex, the rest paths."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    public_address: str
    public_port: int
    private_port: int
    database: str
    certificate: str
    key: str
    authority: str
    superexec_secret: str
    control_token: str
    roster: str
    operator: str
    request_bytes: int


class Impatient(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Closes a connection on which nobody asks for anything: strangers would take the places of sites."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Uvicorn itself waits for a first request for ever."""
        super().connection_made(transport)

        def leave() -> None:
            if self.cycle is None:  # its headers are not here
                transport.abort()

        self.loop.call_later(HEADERS_S, leave)


class Enrolled:
    """The nodes of the signed roster; looks at its file again whenever asked."""

    def __init__(self, path: Path, operator: bytes) -> None:
        self._path, self._operator = path, operator
        self._seen: tuple[int, int] | None = None
        self._version = 1
        self.statement = b""
        self.keys: dict[bytes, str] = {}

    def refresh(self) -> bool:
        """Whether the roster has changed; a file that does not verify changes nothing."""
        try:
            found = self._path.stat()
            if self._seen == (found.st_mtime_ns, found.st_size) or found.st_size > MAX_BYTES:
                return False
            data = self._path.read_bytes()
            self._seen = (found.st_mtime_ns, found.st_size)
            roster = verify_roster(
                data, self._operator, least=self._version, source=self._path.name
            )
        except FileNotFoundError:
            return False
        except (OSError, ProofError) as error:
            log.error("the roster stays as it was: %s", error)
            return False
        self.statement, self._version = data, roster.version
        self.keys = {site.node_key_pem: site.name for site in roster.sites}
        log.info("roster version %d: %d sites", roster.version, len(roster.sites))
        return True

    def forget(self) -> None:
        """Look at the file as if it had changed."""
        self._seen = None

    def register(self, state: Any) -> None:
        """Make Flower know the roster's nodes, and take those off line that are not in it any more.

        They are not deleted: Flower would never take their keys again.
        """
        known = {n.public_key: n for n in state.get_node_info(owner_aids=[NOOP_FLWR_AID])}
        for key, name in self.keys.items():
            if key not in known:
                state.create_node(
                    NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name
                )
        for key, node in known.items():
            if key not in self.keys:
                state.deactivate_node(node.node_id)


def serve(settings: LinkSettings) -> None:
    """Serve until told to stop. Raises MachineError for a port that is taken."""
    application = create_app(_flower(settings), SuperLinkLifespan)
    state = application.state.linkstate_factory.state()
    enrolled = Enrolled(Path(settings.roster), bytes.fromhex(settings.operator))
    enrolled.refresh()
    enrolled.register(state)
    _let_nodes_return()
    gate = Gate(
        application,
        public_port=settings.public_port,
        private_port=settings.private_port,
        token=Path(settings.control_token).read_text("ascii").strip(),
        enrolled=lambda key: key in enrolled.keys,
        roster=lambda: enrolled.statement,
        now=lambda: datetime.now(UTC),
        request_bytes=settings.request_bytes,
    )
    _open_many_files()
    sockets = [
        _listen(settings.public_address, settings.public_port),
        _listen("127.0.0.1", settings.private_port),
    ]
    config = uvicorn.Config(
        gate,
        access_log=False,
        server_header=False,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        http=Impatient,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
        log_config=None,
        lifespan="on",
    )
    asyncio.run(_serve(uvicorn.Server(config), sockets, enrolled, state))


async def _serve(
    server: uvicorn.Server, sockets: list[socket.socket], enrolled: Enrolled, state: Any
) -> None:
    async def watch() -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await asyncio.to_thread(enrolled.refresh):
                    await asyncio.to_thread(enrolled.register, state)
            except Exception as error:  # a database that is busy must not end the looking
                log.error("the roster's nodes: %s; tried again", type(error).__name__)
                enrolled.forget()

    watching = asyncio.create_task(watch())
    try:
        await server.serve(sockets=sockets)
    finally:
        watching.cancel()


def _let_nodes_return() -> None:
    """A node that was killed and started again is still online for Flower, which refuses it then."""
    activate = fleet_handlers.activate_node

    def activate_again(request: Any, state: Any) -> Any:
        node = state.get_node_id_by_public_key(request.public_key)
        if node is not None:
            state.deactivate_node(node)
        return activate(request=request, state=state)

    fleet_handlers.activate_node = activate_again


def _flower(settings: LinkSettings) -> SuperLinkLifespanConfig:
    certificates = tuple(
        Path(path).read_bytes() for path in (settings.authority, settings.certificate, settings.key)
    )
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=settings.private_port,
        insecure=False,
        certificates=certificates,
        superexec_auth_secret=Path(settings.superexec_secret).read_bytes(),
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=settings.authority,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
        database=settings.database,
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        raise MachineError(
            f"{address}:{port} cannot be listened at: {error.strerror}",
            "choose another port in config.toml, or end the process that has it",
        ) from None
    listener.set_inheritable(True)
    return listener


def _open_many_files() -> None:
    """As many connections as this user may have: the usual 1024 are soon taken."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system may have no such number
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main(arguments: list[str]) -> int:
    """The process: one argument, a JSON file with :class:`LinkSettings`."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s : %(message)s", stream=sys.stdout)
    logging.getLogger("flwr").propagate = False  # it writes its lines itself
    try:
        serve(LinkSettings.model_validate_json(Path(arguments[0]).read_text("utf-8")))
    except FedgeError as error:
        log.error("%s; %s", error.cause, error.remedy)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
