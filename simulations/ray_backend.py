"""The same two apps through Flower's Ray simulation: for scale-out and as the reference in a test.

Deadlines run on the real clock here and faults are not simulated. Each Ray actor is a process with
its own resident base. Needs the extra ``ray``.
"""

from __future__ import annotations

import os
from importlib import util

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from protocol.errors import MachineError
from simulations.grid import Config, server_context

# Flower's and Ray's telemetry and update checks; a simulation has no business on the network.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class ConfiguredApp(ClientApp):
    """``app`` with a run's configuration: ``run_simulation`` has no argument for it."""

    def __init__(self, app: ClientApp, run_config: Config) -> None:
        super().__init__()
        self._inner, self._config = app, run_config

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the app with the configuration beside what the context has; the state is shared."""
        config = {**context.run_config, **self._config}  # Flower refuses a changed run_config
        own = Context(context.run_id, context.node_id, context.node_config, context.state, config)
        return self._inner(message, own)


def simulate_over_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    clients: int,
    run_config: Config,
    cpus_per_client: float = 1.0,
) -> None:
    """Run both apps until the ServerApp returns; what it raises is raised here.

    Args:
        server_app: for instance ``server.app.make_app()``.
        client_app: for instance ``client.app.app``.
        clients: number of simulated nodes, with partition ids from 0.
        run_config: the run's configuration, as over any grid.
        cpus_per_client: Ray's resource per client; it decides the number of actors.

    Raises:
        MachineError: Ray is not installed.
    """
    if util.find_spec("ray") is None:
        raise MachineError("Ray is not installed", "install fedge with the extra `ray`")
    os.environ.update(QUIET)
    from flwr.simulation import run_simulation

    configured = ServerApp()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(grid, server_context(run_config, run_id=context.run_id))

    run_simulation(
        configured,
        ConfiguredApp(client_app, run_config),
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": cpus_per_client, "num_gpus": 0.0},
        },
    )
