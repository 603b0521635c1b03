"""An overview as OpenMetrics text, and the endpoint on loopback that serves it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fedge.operations.overview import Overview
from protocol.errors import MachineError

TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
Sample = tuple[dict[str, str], float]


def render(overview: Overview) -> str:
    """Every family with its help and type, ``# EOF`` at the end."""
    runs = [({"run": run.name}, run) for run in overview.runs]
    lines: list[str] = []
    for name, kind, text, samples in (
        (
            "fedge_process_up",
            "gauge",
            "Whether a supervised process is up.",
            [({"process": p.name}, float(p.pid is not None)) for p in overview.processes],
        ),
        (
            "fedge_process_restarts",
            "counter",
            "How often a process was started again.",
            [({"process": p.name}, float(p.restarts)) for p in overview.processes],
        ),
        (
            "fedge_site_online",
            "gauge",
            "Whether an enrolled site is connected.",
            [({"site": s.name}, float(s.status == "online")) for s in overview.sites],
        ),
        ("fedge_roster_version", "gauge", "The roster's.", [({}, float(overview.roster_version))]),
        (
            "fedge_run_running",
            "gauge",
            "Whether a run's app is at work.",
            [(labels, float(run.state == "running")) for labels, run in runs],
        ),
        (
            "fedge_rounds",
            "counter",
            "Published rounds.",
            [(labels, float(run.rounds)) for labels, run in runs],
        ),
        (
            "fedge_rounds_planned",
            "gauge",
            "Rounds of the plan.",
            [(labels, float(run.planned)) for labels, run in runs],
        ),
        (
            "fedge_rounds_void",
            "counter",
            "Rounds whose sum could not be opened.",
            [(labels, float(run.void_rounds)) for labels, run in runs],
        ),
        (
            "fedge_attempts_failed",
            "counter",
            "Attempts without a quorum.",
            [(labels, float(run.failed_attempts)) for labels, run in runs],
        ),
        (
            "fedge_replies",
            "counter",
            "Updates in published rounds.",
            [(labels, float(run.replies)) for labels, run in runs],
        ),
        (
            "fedge_drops",
            "counter",
            "Clients asked whose update is missing.",
            [(labels, float(run.drops)) for labels, run in runs],
        ),
        (
            "fedge_epsilon",
            "gauge",
            "The largest epsilon that a client has spent.",
            [(labels, run.epsilon) for labels, run in runs if run.epsilon is not None],
        ),
    ):
        lines += _family(name, kind, text, samples)
    return "\n".join([*lines, "# EOF"]) + "\n"


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> list[str]:
    suffix = "_total" if kind == "counter" else ""
    lines = [f"# TYPE {name} {kind}", f"# HELP {name} {text}"]
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        lines.append(
            f"{name}{suffix}{{{inner}}} {value:g}" if inner else f"{name}{suffix} {value:g}"
        )
    return lines


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def serve_metrics(port: int, look: Callable[[], Overview]) -> ThreadingHTTPServer:
    """Serve ``/metrics`` at 127.0.0.1 from a thread. Raises MachineError for a port that is taken."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            try:
                body = render(look()).encode()
            except Exception:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: standard error is the supervisor's log."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise MachineError(
            f"127.0.0.1:{port} cannot be listened at: {error.strerror}",
            "choose another `private.metrics_port` in config.toml",
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
