"""An overview as metrics, and the endpoint on loopback that serves them to Prometheus and its like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from operations.overview import Overview, RunView
from protocol.errors import FedgeError, MachineError

Kind = type[GaugeMetricFamily] | type[CounterMetricFamily]
GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily

# Per run: the family's name, kind and help, and its value; None leaves the run out.
OF_RUNS: tuple[tuple[str, Kind, str, Callable[[RunView], float | None]], ...] = (
    ("run_running", GAUGE, "Whether a run's app is at work.", lambda r: r.state == "running"),
    ("rounds", COUNTER, "Published rounds.", lambda r: r.rounds),
    ("rounds_planned", GAUGE, "Rounds of the plan.", lambda r: r.planned),
    ("rounds_void", COUNTER, "Rounds whose sum could not be opened.", lambda r: r.void_rounds),
    ("sums_refused", COUNTER, "Sums that no honest clients can have sent.", lambda r: r.refused),
    ("client_failures", COUNTER, "Clients that contributed zeros.", lambda r: r.failures),
    ("clipped_share", GAUGE, "Share of the last updates cut at the clip.", lambda r: r.clipped),
    ("attempts_failed", COUNTER, "Attempts without a quorum.", lambda r: r.failed_attempts),
    ("replies", COUNTER, "Updates in published rounds.", lambda r: r.replies),
    ("drops", COUNTER, "Clients asked whose update is missing.", lambda r: r.drops),
    ("epsilon", GAUGE, "The largest epsilon that a client has spent.", lambda r: r.epsilon),
)


class Families(Collector):
    """What ``look`` sees, as Prometheus' families of samples."""

    def __init__(self, look: Callable[[], Overview]) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """Every family, also without samples; none at all where nothing can be seen."""
        try:
            seen = self._look()
        except (FedgeError, OSError):
            return  # the status command says why
        up = {p.name: p.pid is not None for p in seen.processes}
        restarts = {p.name: p.restarts for p in seen.processes}
        online = {site.name: site.status == "online" for site in seen.sites}
        yield _family(GAUGE, "process_up", "Whether a supervised process is up.", "process", up)
        text = "How often it was started again."
        yield _family(COUNTER, "process_restarts", text, "process", restarts)
        text = "Whether an enrolled site is connected."
        yield _family(GAUGE, "site_online", text, "site", online)
        yield GAUGE("fedge_roster_version", "The roster's.", seen.roster_version)
        for name, kind, text, value in OF_RUNS:
            yield _family(kind, name, text, "run", {run.name: value(run) for run in seen.runs})


def _family(
    kind: Kind, name: str, text: str, label: str, values: Mapping[str, float | None]
) -> Metric:
    family = kind(f"fedge_{name}", text, labels=[label])
    for of, value in values.items():
        if value is not None:
            family.add_metric([of], value)
    return family


def serve_metrics(port: int, look: Callable[[], Overview]) -> WSGIServer:
    """Serve them at 127.0.0.1 from a thread. Raises MachineError for a port that is taken."""
    registry = CollectorRegistry()
    registry.register(Families(look))
    try:
        return start_http_server(port, "127.0.0.1", registry)[0]
    except OSError as error:
        raise MachineError(
            f"127.0.0.1:{port} cannot be listened at: {error.strerror}",
            "choose another `private.metrics_port` in config.toml",
        ) from None
