"""An overview as OpenMetrics text, and the endpoint on loopback that serves it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from operations.overview import Overview, RunView
from protocol.errors import MachineError

TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
Sample = tuple[dict[str, str], float]


# Per run: the family's name, kind and help, and its value; None leaves the run out.
OF_RUNS: tuple[tuple[str, str, str, Callable[[RunView], float | None]], ...] = (
    (
        "fedge_run_running",
        "gauge",
        "Whether a run's app is at work.",
        lambda r: r.state == "running",
    ),
    ("fedge_rounds", "counter", "Published rounds.", lambda r: r.rounds),
    ("fedge_rounds_planned", "gauge", "Rounds of the plan.", lambda r: r.planned),
    (
        "fedge_rounds_void",
        "counter",
        "Rounds whose sum could not be opened.",
        lambda r: r.void_rounds,
    ),
    (
        "fedge_sums_refused",
        "counter",
        "Sums that no honest clients can have sent.",
        lambda r: r.refused,
    ),
    ("fedge_client_failures", "counter", "Clients that contributed zeros.", lambda r: r.failures),
    (
        "fedge_clipped_share",
        "gauge",
        "Updates of the last round that were cut at the clip.",
        lambda r: r.clipped,
    ),
    ("fedge_attempts_failed", "counter", "Attempts without a quorum.", lambda r: r.failed_attempts),
    ("fedge_replies", "counter", "Updates in published rounds.", lambda r: r.replies),
    ("fedge_drops", "counter", "Clients asked whose update is missing.", lambda r: r.drops),
    ("fedge_epsilon", "gauge", "The largest epsilon that a client has spent.", lambda r: r.epsilon),
)


def render(overview: Overview) -> str:
    """Every family with its help and type, ``# EOF`` at the end."""
    processes = [({"process": p.name}, p) for p in overview.processes]
    up = [(labels, float(p.pid is not None)) for labels, p in processes]
    restarts = [(labels, float(p.restarts)) for labels, p in processes]
    online = [({"site": s.name}, float(s.status == "online")) for s in overview.sites]
    version: list[Sample] = [({}, float(overview.roster_version))]
    lines = [
        *_family("fedge_process_up", "gauge", "Whether a supervised process is up.", up),
        *_family("fedge_process_restarts", "counter", "How often it was started again.", restarts),
        *_family("fedge_site_online", "gauge", "Whether an enrolled site is connected.", online),
        *_family("fedge_roster_version", "gauge", "The roster's.", version),
    ]
    for name, kind, text, value in OF_RUNS:
        found = [({"run": run.name}, value(run)) for run in overview.runs]
        samples = [(labels, float(value)) for labels, value in found if value is not None]
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
