"""``summary.json``: a run in figures, under plain keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from audit.report import Report
from protocol.errors import FedgeError
from protocol.peft_format import EDGE_FILE, ParityError, ReleaseNote
from protocol.plan import Section
from simulations.breakdown import breakdown
from simulations.files import path_text
from simulations.forecasts import load_forecast
from simulations.prepare import Prepared
from simulations.records import adapter_folder
from simulations.timings import Timings
from simulations.yardsticks import DIVERGED, diverged


class Summary(Section):
    """Accuracies are shares of the test rows, losses nats a row; ``None`` where none was asked for.

    ``per_label`` and ``per_client`` are those of :mod:`simulations.breakdown`. ``seconds_by_part`` add up to
    ``seconds``; ``seconds_forecast`` is what was expected of them. ``started`` and ``ended`` are seconds of
    the epoch.

    ``refused`` says why the adapter is not released; parity is then what was measured of it, if anything was.
    ``audit`` is the verdict of an audit from the published files. ``failures`` (contributions of zeros) and
    ``clipped_share`` (of all updates) are of secret sums with counters.
    """

    name: str
    rounds: int
    clients: int
    rule: str
    server_optimizer: str
    seed: int
    rows_train: int
    rows_test: int
    labels: int
    started: float
    ended: float
    accuracy_federated: float
    accuracy_alone_mean: float | None
    accuracy_pooled: float | None
    loss_federated: float
    loss_alone_mean: float | None
    loss_pooled: float | None
    macro_f1_federated: float | None
    macro_f1_alone_mean: float | None
    macro_f1_pooled: float | None
    per_label: dict[str, dict[str, Any]]
    per_client: dict[str, dict[str, Any]]
    passes: float
    seconds: float
    seconds_by_part: dict[str, float]
    seconds_forecast: dict[str, float]
    seconds_federated: float
    seconds_pooled: float
    seconds_alone: float
    adapter_bytes: int | None
    upload_bytes_per_client_round: int
    download_bytes_per_client_round: int
    parity_max_relative: float | None
    parity_label_agreement: float | None
    refused: str | None
    tokens_per_second: float
    exchange: str
    epsilon: float | None
    delta: float | None
    insecure: list[str]
    warnings: list[str]
    adapter_digest: str
    audit: str
    rounds_verified: int
    dropped: int
    failures: int | None
    clipped_share: float | None
    base: str
    adapter: str
    report: str | None


def summarise(
    prepared: Prepared,
    *,
    records: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    yardsticks: dict[str, Any],
    note: ReleaseNote,
    refused: FedgeError | None,
    timings: Timings,
    passes: float,
    audited: Report,
    report: str | None,
) -> Summary:
    """Put a finished run's records together. ``records`` are those of all rounds, in order."""
    last, measured = records[-1], evaluations[-1]
    alone, pooled = yardsticks.get("alone", {}), yardsticks.get("pooled", {})
    labels, clients = breakdown(prepared)
    folder = adapter_folder(prepared.out, int(last["round"]))
    parts = timings.table()
    counters = [record for record in records if record.get("failures") is not None]
    parity = note.parity or (refused.parity if isinstance(refused, ParityError) else None)
    edge = folder / EDGE_FILE
    return Summary(
        name=prepared.experiment.name,
        rounds=int(last["round"]),
        clients=prepared.experiment.population.clients,
        rule=prepared.plan.rule.name,
        server_optimizer=prepared.plan.server.optimizer,
        seed=prepared.plan.seed,
        rows_train=prepared.rows[0],
        rows_test=prepared.rows[1],
        labels=len(prepared.plan.task.labels),
        started=timings.started,
        ended=timings.ended,
        accuracy_federated=measured["accuracy"],
        accuracy_alone_mean=alone.get("mean"),
        accuracy_pooled=pooled.get("accuracy"),
        loss_federated=measured["loss"],
        loss_alone_mean=alone.get("loss"),
        loss_pooled=pooled.get("loss"),
        macro_f1_federated=measured.get("macro_f1"),
        macro_f1_alone_mean=alone.get("macro_f1"),
        macro_f1_pooled=pooled.get("macro_f1"),
        per_label=labels,
        per_client=clients,
        passes=passes,
        seconds=sum(parts.values()),
        seconds_by_part=parts,
        seconds_forecast=load_forecast(prepared.out),
        seconds_federated=timings.parts.get("federated", 0.0),
        seconds_pooled=timings.parts.get("pooled", 0.0),
        seconds_alone=timings.parts.get("alone", 0.0),
        adapter_bytes=edge.stat().st_size if edge.is_file() else None,
        upload_bytes_per_client_round=_mean(records, "bytes_up_per_client"),
        download_bytes_per_client_round=_mean(records, "bytes_down_per_client"),
        parity_max_relative=None if parity is None else parity.max_relative,
        parity_label_agreement=None if parity is None else parity.label_agreement,
        refused=None if refused is None else refused.cause,
        tokens_per_second=_speed(prepared, records),
        exchange=str(last["exchange"]),
        epsilon=(last["privacy"] or {}).get("epsilon"),
        delta=(last["privacy"] or {}).get("delta"),
        insecure=insecurities(prepared, records),
        warnings=[warning.line for warning in prepared.warnings]
        + [f"{whose}: {DIVERGED}" for whose in diverged(yardsticks)],
        adapter_digest=note.adapter_digest,
        audit=audited.verdict,
        rounds_verified=sum(o.round > 0 and o.verdict in ("ok", "void") for o in audited.rounds),
        dropped=sum(len(record["dropped"]) for record in records),
        failures=sum(counted["failures"] for counted in counters) if counters else None,
        clipped_share=_clipped(counters),
        base=path_text(prepared.base),
        adapter=path_text(folder),
        report=report,
    )


def insecurities(prepared: Prepared, records: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must not believe about this run."""
    said = ["simulated: all devices are one process on one machine"]
    if not all(record["secure"] for record in records):
        said.append("exchange `plain`: the coordinator sees the update of every single device")
    if prepared.plan.privacy.mechanism == "none":
        said.append("no differential privacy: the adapter may reveal single rows of a device")
    if prepared.plan.privacy.mechanism == "central":
        said.append(
            "central noise: it protects readers of the adapter, not devices from the coordinator"
        )
    return said


def _clipped(counters: Sequence[dict[str, Any]]) -> float | None:
    """The share of updates that were cut, of those that were no failures."""
    updates = sum(record["weight"] - record["failures"] for record in counters)
    cut = sum(record["metrics"]["clipped"] for record in counters)
    return float(cut / updates) if updates else None


def _mean(records: Sequence[dict[str, Any]], key: str) -> int:
    return round(sum(record[key] for record in records) / len(records))


def _speed(prepared: Prepared, records: Sequence[dict[str, Any]]) -> float:
    """Trained tokens per second of local training, with the mean row of the whole population."""
    # Under differential privacy no metrics leave a device.
    examples = sum(record["metrics"].get("examples", 0.0) for record in records)
    seconds = sum(record["metrics"].get("train_seconds", 0.0) for record in records)
    return float(examples * prepared.tokens_per_row / seconds) if seconds > 0 else 0.0
