"""``summary.json``: a run in figures, under plain keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audit.report import Report
from protocol.bitmap_form import sent_size
from protocol.errors import FedgeError
from protocol.peft_format import EDGE_FILE, ParityError, ReleaseNote
from protocol.section import Section
from simulations.breakdown import breakdown
from simulations.files import path_text, read_json
from simulations.forecasts import load_forecast
from simulations.forgetting import load_forgetting
from simulations.memorisation import MEMORISATION
from simulations.prepare import Prepared
from simulations.prompt_words import PROMPT_WORDS
from simulations.records import adapter_folder
from simulations.reruns import load_reruns
from simulations.samples import SAMPLES, scores_of
from simulations.tasks import task_named
from simulations.timings import Timings
from simulations.yardsticks import DIVERGED, diverged

QUALITIES = ("accuracy", "nrmse", "perplexity", "noise_error")  # of which a task has one
OWN = {"personal": "personal", "federated": "global_on_own", "alone": "alone_on_own"}


class Summary(Section):
    """``accuracy`` and ``macro_f1`` are shares of the test rows, ``nrmse`` is one of the values' range,
    ``perplexity`` and ``token_accuracy`` are of the tokens that count, ``noise_error`` is the mean square of
    the noise that a model which draws does not find.

    Losses are the task's, of a row or a token. ``None`` where none was asked for, or the task has no such
    figure. ``exposure`` (bits) and ``membership_auc``: see :mod:`simulations.memorisation`.
    ``exact_match``, ``chrf`` and ``bleu`` are of a device's answers, in per cent: :mod:`simulations.samples`.
    ``personal``, ``global_on_own`` and ``alone_on_own`` are of devices' own test rows:
    :mod:`simulations.personal`. ``forgetting`` is that of :mod:`simulations.forgetting`, by run before.
    ``parity_tokens``: written alike by torch and a device, of so many.

    ``reruns``: clients that were run again, as a Ray cluster lost what ran them (:mod:`simulations.reruns`).
    ``per_label`` and ``per_client`` are those of :mod:`simulations.breakdown`. ``seconds_by_part`` add up to
    ``seconds``; ``seconds_forecast`` is what was expected of them. ``started`` and ``ended`` are seconds of
    the epoch.

    ``refused`` says why the adapter is not released; parity is then what was measured of it, if anything was.
    ``audit`` is the verdict of an audit from the published files. ``failures`` (contributions of zeros) and
    ``clipped_share`` (of all updates) are of secret sums with counters. ``prompt_words`` are those of
    :mod:`simulations.prompt_words`; only adapters with a soft prompt have the key.
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
    accuracy_federated: float | None
    accuracy_alone_mean: float | None
    accuracy_pooled: float | None
    nrmse_federated: float | None
    nrmse_alone_mean: float | None
    nrmse_pooled: float | None
    perplexity_before: float | None
    perplexity_federated: float | None
    perplexity_alone_mean: float | None
    perplexity_pooled: float | None
    noise_error_before: float | None
    noise_error_federated: float | None
    noise_error_alone_mean: float | None
    noise_error_pooled: float | None
    token_accuracy_federated: float | None
    token_accuracy_alone_mean: float | None
    token_accuracy_pooled: float | None
    loss_federated: float
    loss_alone_mean: float | None
    loss_pooled: float | None
    macro_f1_federated: float | None
    macro_f1_alone_mean: float | None
    macro_f1_pooled: float | None
    accuracy_personal_mean: float | None
    accuracy_global_on_own_mean: float | None
    accuracy_alone_on_own_mean: float | None
    nrmse_personal_mean: float | None
    nrmse_global_on_own_mean: float | None
    nrmse_alone_on_own_mean: float | None
    perplexity_personal_mean: float | None
    perplexity_global_on_own_mean: float | None
    perplexity_alone_on_own_mean: float | None
    noise_error_personal_mean: float | None
    noise_error_global_on_own_mean: float | None
    noise_error_alone_on_own_mean: float | None
    forgetting: list[dict[str, Any]]
    accuracy_forgotten_mean: float | None
    nrmse_forgotten_mean: float | None
    perplexity_forgotten_mean: float | None
    noise_error_forgotten_mean: float | None
    exact_match_before: float | None
    exact_match_federated: float | None
    chrf_before: float | None
    chrf_federated: float | None
    bleu_before: float | None
    bleu_federated: float | None
    exposure: float | None
    membership_auc: float | None
    per_label: dict[str, dict[str, Any]]
    per_client: dict[str, dict[str, Any]]
    passes: float
    reruns: int = 0
    seconds: float
    seconds_by_part: dict[str, float]
    seconds_forecast: dict[str, float]
    seconds_federated: float
    seconds_pooled: float
    seconds_alone: float
    adapter_bytes: int | None
    adapter_sent_bytes: int | None
    upload_bytes_per_client_round: int
    download_bytes_per_client_round: int
    parity_max_relative: float | None
    parity_label_agreement: float | None
    parity_tokens: list[int] | None
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
    unawaited: int  # of those dropped: nobody waited for them
    failures: int | None
    clipped_share: float | None
    base: str
    adapter: str
    report: str | None
    prompt_words: list[dict[str, Any]] | None

    def document(self) -> dict[str, Any]:
        """Plain values, as files have them."""
        absent = {"prompt_words"} if self.prompt_words is None else set()
        return self.model_dump(mode="json", exclude=absent)


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
    last = records[-1]
    folder = adapter_folder(prepared.out, int(last["round"]))
    return Summary(
        **_setting(prepared, last),
        **_quality(prepared, evaluations[-1], yardsticks),
        **_durations(prepared, timings),
        passes=passes,
        reruns=sum(map(len, load_reruns(prepared.out).values())),
        tokens_per_second=_speed(prepared, records),
        **_traffic(folder, records),
        **_release(note, refused),
        **_protection(prepared, records),
        warnings=[warning.line for warning in prepared.warnings]
        + [f"{title}: {DIVERGED}" for title in diverged(yardsticks)],
        audit=audited.verdict,
        rounds_verified=sum(
            outcome.round > 0 and outcome.verdict in ("ok", "void") for outcome in audited.rounds
        ),
        **_absences(records),
        base=path_text(prepared.base),
        adapter=path_text(folder),
        report=report,
        prompt_words=read_json(prepared.out / PROMPT_WORDS),
    )


def _setting(prepared: Prepared, last: dict[str, Any]) -> dict[str, Any]:
    """What was run, over how many devices, rows and labels."""
    task = prepared.plan.task
    return {
        "name": prepared.experiment.name,
        "rounds": int(last["round"]),
        "clients": prepared.experiment.population.clients,
        "rule": prepared.plan.rule.name,
        "server_optimizer": prepared.plan.server.optimizer,
        "seed": prepared.plan.seed,
        "rows_train": prepared.rows[0],
        "rows_test": prepared.rows[1],
        "labels": len(task_named(task.kind).labels(task)),
    }


def _quality(
    prepared: Prepared, federated: dict[str, Any], yardsticks: dict[str, Any]
) -> dict[str, Any]:
    """The federated model's scores beside the yardsticks', and by label and device."""
    memorised = read_json(prepared.out / MEMORISATION) or {}
    alone, pooled = yardsticks.get("alone", {}), yardsticks.get("pooled", {})
    per_label, per_client = breakdown(prepared)
    quality = prepared.plan.task.QUALITY.name
    personal = yardsticks.get("personal", {"mean": {}, "per_client": {}})
    for client, figures in personal["per_client"].items():
        per_client[client] |= {name: figures[key] for key, name in OWN.items() if key in figures}
    alone = alone | ({quality: alone["mean"]} if alone else {})
    trainings = {"federated": federated, "alone_mean": alone, "pooled": pooled}
    return {
        **{
            f"{figure}_{name}": figures.get(figure)
            for figure in (*QUALITIES, "token_accuracy", "loss", "macro_f1")
            for name, figures in trainings.items()
        },
        **{
            f"{figure}_{name}_mean": personal["mean"].get(key) if figure == quality else None
            for figure in QUALITIES
            for key, name in OWN.items()
        },
        **_forgetting(load_forgetting(prepared.out), quality),
        **{
            f"{figure}_before": yardsticks.get("before", {}).get(figure)
            for figure in ("perplexity", "noise_error")
        },
        **scores_of(read_json(prepared.out / SAMPLES)),
        **{name: memorised.get(name) for name in ("exposure", "membership_auc")},
        "per_label": per_label,
        "per_client": per_client,
    }


def _forgetting(entries: list[dict[str, Any]], quality: str) -> dict[str, Any]:
    lost = [entry["forgotten"] for entry in entries if "forgotten" in entry]
    mean = sum(lost) / len(lost) if lost else None
    return {"forgetting": entries} | {
        f"{figure}_forgotten_mean": mean if figure == quality else None for figure in QUALITIES
    }


def _durations(prepared: Prepared, timings: Timings) -> dict[str, Any]:
    parts = timings.table()
    return {
        "started": timings.started,
        "ended": timings.ended,
        "seconds": sum(parts.values()),
        "seconds_by_part": parts,
        "seconds_forecast": load_forecast(prepared.out),
        "seconds_federated": timings.parts.get("federated", 0.0),
        "seconds_pooled": timings.parts.get("pooled", 0.0),
        "seconds_alone": timings.parts.get("alone", 0.0),
    }


def _traffic(folder: Path, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bytes of the adapter in ``folder``, and of a client's round."""
    edge = folder / EDGE_FILE
    adapter = edge.read_bytes() if edge.is_file() else None
    return {
        "adapter_bytes": None if adapter is None else len(adapter),
        "adapter_sent_bytes": None if adapter is None else sent_size(adapter),
        "upload_bytes_per_client_round": _mean(records, "bytes_up_per_client"),
        "download_bytes_per_client_round": _mean(records, "bytes_down_per_client"),
    }


def _release(note: ReleaseNote, refused: FedgeError | None) -> dict[str, Any]:
    parity = note.parity or (refused.parity if isinstance(refused, ParityError) else None)
    return {
        "adapter_digest": note.adapter_digest,
        "parity_max_relative": None if parity is None else parity.max_relative,
        "parity_label_agreement": None if parity is None else parity.label_agreement,
        "parity_tokens": None if parity is None or parity.tokens is None else list(parity.tokens),
        "refused": None if refused is None else refused.cause,
    }


def _protection(prepared: Prepared, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How updates were exchanged, and what noise bounds what the adapter tells of a row."""
    last = records[-1]
    privacy = last["privacy"] or {}
    return {
        "exchange": str(last["exchange"]),
        "epsilon": privacy.get("epsilon"),
        "delta": privacy.get("delta"),
        "insecure": insecurities(prepared, records),
    }


def _absences(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Updates that were not used; failures and clipped ones where the rounds have counters."""
    counters = [record for record in records if record.get("failures") is not None]
    return {
        "dropped": sum(len(record["dropped"]) for record in records),
        "unawaited": sum(
            drop["reason"] == "unawaited" for record in records for drop in record["dropped"]
        ),
        "failures": sum(record["failures"] for record in counters) if counters else None,
        "clipped_share": _clipped(counters),
    }


def insecurities(prepared: Prepared, records: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must not believe about this run."""
    cautions = ["simulated: all devices are one process on one machine"]
    if not all(record["secure"] for record in records):
        cautions.append("exchange `plain`: the coordinator sees the update of every single device")
    if prepared.plan.privacy.mechanism == "none":
        cautions.append("no differential privacy: the adapter may reveal single rows of a device")
    if prepared.plan.privacy.mechanism == "central":
        cautions.append(
            "central noise: it protects readers of the adapter, not devices from the coordinator"
        )
    return cautions


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
