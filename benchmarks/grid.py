"""What a client round costs when the client does nothing: in one process, over Ray, by Flower's engine.

    python benchmarks/grid.py [--clients 1000] [--few 100] [--rounds 3] [--no-ray] [--json]

The client echoes a ready update; the coordinator is the real one, with its checks, its durable
replies and its sum. Adapter: 294,912 float32 coordinates (1.18 MB). Reported: CPU milliseconds per
client and round of the whole process tree, the growth of resident memory with the number of
clients, and where Ray is installed (`pip install -e '.[ray]'`) the same over our actors, without their
start, and by Flower's simulation engine, with its start; all in this one run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.process_tree import cpu_of_tree

ROOT = Path(__file__).resolve().parent.parent
SIDE = 384
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
PAIRS = 48  # linears of 384 x 384, r 8, A and B: 48 * 2 * 8 * 384 = 294,912 coordinates


def no_op_manifest(pairs: int = PAIRS) -> Any:
    """A base that nobody opens, of so many linears."""
    from protocol.manifest import (
        FileEntry,
        Graph,
        Head,
        Linear,
        Manifest,
        TensorEntry,
        fingerprint_of,
    )

    listed = Manifest(
        fingerprint="0" * 64,
        source="none",
        task="sequence-classification",
        family="bert",
        pooling="mean",
        bits=32,
        block=32,
        hidden_size=SIDE,
        embedding_size=SIDE,
        layers=1,
        vocab_size=8,
        max_positions=512,
        embedding_std=0.05,
        parameters=1,
        linears=[
            Linear(path=f"m.{i:03d}.query", in_features=SIDE, out_features=SIDE)
            for i in range(pairs)
        ],
        head=Head(path="classifier", in_features=SIDE, labels=2),
        graph=Graph(
            file="graph.onnx",
            opset=20,
            accuracy_level=0,
            inputs=["input_ids"],
            output="logits",
            slots=[],
        ),
        tensors={"w": TensorEntry(dtype="F32", shape=[1], sha256="0" * 64)},
        files={
            name: FileEntry(sha256="0" * 64, bytes=1)
            for name in ("graph.onnx", "config.json", "tokenizer.json")
        },
        made_with={},
    )
    return listed.model_copy(update={"fingerprint": fingerprint_of(listed)})


def prepare(folder: Path, *, clients: int, rounds: int) -> dict[str, Any]:
    """A plan and the manifest in ``folder``; returns the run configuration."""
    manifest = no_op_manifest()
    (folder / "base").mkdir()
    (folder / "base" / "manifest.json").write_text(manifest.to_json())
    (folder / "plan.toml").write_text(
        f'name = "no-op"\nrounds = {rounds}\n[base]\nfingerprint = "{manifest.fingerprint}"\n'
        f'[task]\nlabels = ["a", "b"]\n[adapter]\ntargets = ["query"]\n[rule]\nname = "mean"\n'
        f'[cohort]\nsize = {clients}\nquorum = {clients}\n[secrecy]\nexchange = "plain"\n'
    )
    return {
        "plan": str(folder / "plan.toml"),
        "base": str(folder / "base"),
        "run": str(folder / "run"),
    }


def echo_app(manifest: Any = None) -> Any:
    """A ClientApp that answers with a constant update of the right size, with the base of ``manifest``."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    from protocol import PROTOCOL_VERSION, wire
    from protocol.exchange import Contribution
    from protocol.exchange.plain import PlainClient
    from protocol.tasks.classification import METRICS

    app = ClientApp()
    ready: dict[int, Any] = {}
    base = (manifest or no_op_manifest()).fingerprint

    @app.query("hello")
    def hello(message: Message, context: Any) -> Message:
        name = f"client-{int(context.node_config['partition-id']):04d}"
        answer = wire.Hello(client=name, base=base, protocol=PROTOCOL_VERSION)
        return Message(
            RecordDict({wire.REPLY: ConfigRecord(wire.to_record(answer))}), reply_to=message
        )

    @app.train("mask")
    def mask(message: Message, context: Any) -> Message:
        (size,) = message.content.array_records[wire.ADAPTER]["adapter"].shape
        if size not in ready:  # a client that does nothing does not encode anew either
            update = np.random.default_rng(0).normal(0, 1e-3, size).astype(np.float32)
            data = PlainClient().mask(
                Contribution(update=update, weight=1, metrics=dict.fromkeys(METRICS, 1.0))
            )
            ready[size] = ArrayRecord({"masked": Array(np.frombuffer(data, np.uint8))})
        return Message(RecordDict({wire.MASKED: ready[size]}), reply_to=message)

    return app


def cpu() -> float:
    """CPU seconds of this process and of its finished children."""
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def in_process(clients: int, rounds: int, folder: Path) -> dict[str, float]:
    from server.app import make_app
    from simulations.clock import VirtualClock
    from simulations.grid import InProcessGrid, server_context

    config = prepare(folder, clients=clients, rounds=rounds)
    clock = VirtualClock()
    grid = InProcessGrid(echo_app(), clients, run_config=config, clock=clock)
    started, wall = cpu(), time.perf_counter()
    make_app(clock=clock)(grid, server_context(config))
    return {
        "cpu_ms": (cpu() - started) / clients / rounds * 1e3,
        "wall_ms": (time.perf_counter() - wall) / clients / rounds * 1e3,
        "peak_bytes": resident(),
    }


@lru_cache(maxsize=1)
def _echo() -> Any:
    return echo_app()


def echo(message: Any, context: Any) -> Any:
    """:func:`echo_app` by a name that an actor can import."""
    return _echo()(message, context)


def over_ray(clients: int, rounds: int, folder: Path) -> dict[str, float]:
    """Ours: the same grid, with actors of a cluster of this machine."""
    from server.app import make_app
    from simulations.clock import VirtualClock
    from simulations.grid import InProcessGrid, server_context
    from simulations.ray_clients import LOCAL, RayClients

    config, clock = prepare(folder, clients=clients, rounds=rounds), VirtualClock()
    actors = RayClients(LOCAL, actors=2, app="benchmarks.grid:echo", rerun=lambda *_: None)
    grid = InProcessGrid(
        actors,
        clients,
        run_config=config,
        clock=clock,
        jobs=actors.jobs,
        at_once=actors.at_once,
    )
    started, wall = tree_cpu(), time.perf_counter()
    make_app(clock=clock)(grid, server_context(config))
    measured = {
        "cpu_ms": (tree_cpu() - started) / clients / rounds * 1e3,
        "wall_ms": (time.perf_counter() - wall) / clients / rounds * 1e3,
        "peak_bytes": resident(),
    }
    grid.close()
    actors.close()
    return measured


def tree_cpu() -> float:
    """CPU seconds of this process and of all that it and its children have started and that still run."""
    return sum(cpu_of_tree(os.getpid()).values())


class ConfiguredApp:
    """An app with a run's configuration: Flower's ``run_simulation`` has no argument for it."""

    def __init__(self, app: Any, run_config: dict[str, Any]) -> None:
        self._inner, self._config = app, run_config

    def __call__(self, message: Any, context: Any) -> Any:
        from flwr.app import Context

        config = {**context.run_config, **self._config}  # Flower refuses a changed run_config
        own = Context(context.run_id, context.node_id, context.node_config, context.state, config)
        return self._inner(message, own)


def over_flower(clients: int, rounds: int, folder: Path) -> dict[str, float]:
    """Flower's own simulation engine, start-up included: it gives no moment between."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from server.app import make_app
    from simulations.grid import server_context

    config, ours, configured = (
        prepare(folder, clients=clients, rounds=rounds),
        make_app(),
        ServerApp(),
    )

    @configured.main()
    def main(grid: Any, context: Any) -> None:
        ours(grid, server_context(config, run_id=context.run_id))

    started, wall = cpu(), time.perf_counter()
    run_simulation(
        configured,
        ConfiguredApp(echo_app(), config),  # type: ignore[arg-type]
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}},
    )
    return {
        "cpu_ms": (cpu() - started) / clients / rounds * 1e3,
        "wall_ms": (time.perf_counter() - wall) / clients / rounds * 1e3,
        "peak_bytes": resident(),
    }


BACKENDS = {"in-process": in_process, "ray": over_ray, "flower": over_flower}


def measure(backend: str, clients: int, rounds: int) -> dict[str, float]:
    """One backend in a fresh process, so that peaks and imports do not mix."""
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            "--backend",
            backend,
            "--clients",
            str(clients),
            "--rounds",
            str(rounds),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
    )
    if done.returncode:
        raise SystemExit(f"{backend}: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--few", type=int, help="clients whose peak memory is compared; a tenth")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--backend", choices=sorted(BACKENDS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.backend:
        with tempfile.TemporaryDirectory() as name:
            print(
                json.dumps(
                    BACKENDS[arguments.backend](arguments.clients, arguments.rounds, Path(name))
                )
            )
        return
    few = arguments.few or max(2, arguments.clients // 10)
    results = {
        "in_process": measure("in-process", arguments.clients, arguments.rounds),
        "in_process_few": measure("in-process", few, arguments.rounds),
    }
    growth = results["in_process"]["peak_bytes"] / results["in_process_few"]["peak_bytes"]
    ray_clients = min(arguments.clients, 100)
    ratio = None
    try:
        import ray  # noqa: F401

        has_ray = not arguments.no_ray
    except ImportError:
        has_ray = False
    if has_ray:
        results["ray"] = measure("ray", ray_clients, arguments.rounds)
        results["flower"] = measure("flower", ray_clients, arguments.rounds)
        ratio = results["flower"]["cpu_ms"] / results["ray"]["cpu_ms"]
    if arguments.json:
        print(json.dumps({**results, "memory_growth": growth, "ray_ratio": ratio}))
        return
    one = results["in_process"]
    print(f"{arguments.clients} no-op clients, 1.18 MB adapter, {arguments.rounds} rounds")
    print(
        f"  in-process grid: {one['cpu_ms']:.2f} CPU-ms, {one['wall_ms']:.2f} ms wall per client and round (aim: 0.8)"
    )
    print(f"  peak memory, {arguments.clients} over {few} clients: {growth:.2f}x (aim: 1.10)")
    if ratio is None:
        print("  over Ray: not measured here (pip install -e '.[ray]')")
    else:
        print(
            f"  {ray_clients} clients over Ray: {results['ray']['cpu_ms']:.1f} CPU-ms (target: 5), Flower's own engine with "
            f"its start-up {results['flower']['cpu_ms']:.1f}, {ratio:.0f}x"
        )


if __name__ == "__main__":
    main()
