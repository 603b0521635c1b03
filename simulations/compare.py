"""Runs beside one another: those that differ by their seed alone are one group. (docs/adr/0037)"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ArtefactError
from simulations.files import SEEDS, SUMMARY, read_json

Json = dict[str, Any]
NAMES = {"name", "plan.name", "plan.seed", "format", "plan.format"}  # make no other run
FIGURES = {
    "accuracy_federated": "accuracy, federated",
    "accuracy_pooled": "accuracy, all data in one place",
    "accuracy_alone_mean": "accuracy, devices alone (mean)",
    "nrmse_federated": "NRMSE, federated",
    "nrmse_pooled": "NRMSE, all data in one place",
    "nrmse_alone_mean": "NRMSE, devices alone (mean)",
    "perplexity_before": "perplexity before",
    "perplexity_federated": "perplexity, federated",
    "perplexity_pooled": "perplexity, all data in one place",
    "perplexity_alone_mean": "perplexity, devices alone (mean)",
    "noise_error_before": "noise error before",
    "noise_error_federated": "noise error, federated",
    "noise_error_pooled": "noise error, all data in one place",
    "noise_error_alone_mean": "noise error, devices alone (mean)",
    "token_accuracy_federated": "tokens foreseen, federated",
    "token_accuracy_pooled": "tokens foreseen, all data in one place",
    "token_accuracy_alone_mean": "tokens foreseen, devices alone (mean)",
    "loss_federated": "loss, federated",
    "loss_pooled": "loss, all data in one place",
    "loss_alone_mean": "loss, devices alone (mean)",
    "macro_f1_federated": "macro-F1, federated",
    "macro_f1_pooled": "macro-F1, all data in one place",
    "macro_f1_alone_mean": "macro-F1, devices alone (mean)",
    "accuracy_global_on_own_mean": "accuracy on own test rows, federated (mean)",
    "accuracy_personal_mean": "accuracy on own test rows, personal (mean)",
    "accuracy_alone_on_own_mean": "accuracy on own test rows, alone (mean)",
    "nrmse_global_on_own_mean": "NRMSE on own test rows, federated (mean)",
    "nrmse_personal_mean": "NRMSE on own test rows, personal (mean)",
    "nrmse_alone_on_own_mean": "NRMSE on own test rows, alone (mean)",
    "perplexity_global_on_own_mean": "perplexity on own test rows, federated (mean)",
    "perplexity_personal_mean": "perplexity on own test rows, personal (mean)",
    "perplexity_alone_on_own_mean": "perplexity on own test rows, alone (mean)",
    "noise_error_global_on_own_mean": "noise error on own test rows, federated (mean)",
    "noise_error_personal_mean": "noise error on own test rows, personal (mean)",
    "noise_error_alone_on_own_mean": "noise error on own test rows, alone (mean)",
    "accuracy_forgotten_mean": "accuracy lost on test rows of runs before (mean)",
    "nrmse_forgotten_mean": "NRMSE lost on test rows of runs before (mean)",
    "perplexity_forgotten_mean": "perplexity lost on test rows of runs before (mean)",
    "noise_error_forgotten_mean": "noise error lost on test rows of runs before (mean)",
    "exact_match_federated": "answers that are the same, federated, %",
    "chrf_federated": "chrF, federated, %",
    "bleu_federated": "BLEU, federated, %",
    "exposure": "exposure of planted secrets, bits",
    "membership_auc": "membership inference, AUC",
    "rounds": "rounds",
    "upload_bytes_per_client_round": "bytes up per client and round",
    "download_bytes_per_client_round": "bytes down per client and round",
    "adapter_bytes": "bytes of the adapter on a device",
    "adapter_sent_bytes": "of these sent to a device",
    "epsilon": "epsilon spent by a device",
    "seconds": "seconds",
}


CURVES = ("accuracy", "nrmse", "perplexity", "noise_error", "loss")  # by round


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """What a run folder has to be compared by. ``settings`` are dotted keys without names and seed."""

    folder: Path
    name: str
    seed: int
    settings: Json
    summary: Json
    evaluations: list[Json]
    pooled: Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that are the same but for their seed; ``name`` says what sets them apart from the others."""

    name: str
    runs: tuple[RunFiles, ...]

    def values(self, key: str) -> list[float]:
        """A figure of the runs that have it."""
        return [float(run.summary[key]) for run in self.runs if run.summary.get(key) is not None]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(round, mean over the runs) of an evaluated figure, for the rounds that all runs have."""
        tables = [{e["round"]: e[key] for e in run.evaluations if key in e} for run in self.runs]
        common = set(tables[0]).intersection(*tables[1:])
        return [(float(n), statistics.mean(table[n] for table in tables)) for n in sorted(common)]


def run_files(folder: Path) -> list[RunFiles]:
    """The run in ``folder``, or those of several seeds in it. Raises ArtefactError."""
    if read_json(folder / SEEDS) is not None:
        found = [each for each in sorted(folder.glob("seed-*")) if each.is_dir()]
        return [run for each in found for run in run_files(each)]
    plan = read_json(folder / "plan.json")
    if not isinstance(plan, dict):
        raise ArtefactError(f"{folder} is not a run: there is no plan.json", "name run folders")
    experiment = read_json(folder / "experiment.json", {})
    kept = ("base", "data", "population", "faults", "yardsticks", "head")
    settings = _flat({"plan": plan} | {key: experiment[key] for key in kept if key in experiment})
    return [
        RunFiles(
            folder=folder,
            name=str(plan.get("name", folder.name)),
            seed=int(plan.get("seed", 0)),
            settings={key: value for key, value in settings.items() if key not in NAMES},
            summary=read_json(folder / SUMMARY, {}),
            evaluations=read_json(folder / "evaluations.json", {"test": []})["test"],
            pooled=read_json(folder / "yardsticks.json", {}).get("pooled", {}),
        )
    ]


def grouped(runs: Sequence[RunFiles]) -> list[Group]:
    """In the order in which they were named; yardsticks make no other group."""
    by_settings: dict[str, list[RunFiles]] = {}
    for run in runs:
        own = {k: v for k, v in run.settings.items() if not k.startswith("yardsticks.")}
        by_settings.setdefault(json.dumps(own, sort_keys=True), []).append(run)
    groups = [Group(name=members[0].name, runs=tuple(members)) for members in by_settings.values()]
    keys = [key for key in differences(groups) if not key.startswith("yardsticks.")]
    names = [_name(group, keys) for group in groups]
    twice = {name for name in names if names.count(name) > 1}
    return [
        Group(
            name=f"{name} ({group.runs[0].folder.name})" if name in twice else name, runs=group.runs
        )
        for name, group in zip(names, groups, strict=True)
    ]


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Settings that differ, each with its value in every group; None where a group has none."""
    settings = [group.runs[0].settings for group in groups]
    keys = dict.fromkeys(key for each in settings for key in each)
    table = {key: [each.get(key) for each in settings] for key in keys}
    return {
        key: values
        for key, values in table.items()
        if any(value != values[0] for value in values[1:])
    }


def comparison(groups: Sequence[Group]) -> Json:
    """All as plain data: of every figure ``values``, their ``mean`` and ``spread`` (sd, or None)."""
    return {
        "groups": [
            {
                "name": group.name,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "figures": {
                    key: spread(values) for key in FIGURES if (values := group.values(key))
                },
                "rounds": {key: group.curve(key) for key in CURVES},
            }
            for group in groups
        ],
        "differences": differences(groups),
    }


def spread(values: Sequence[float]) -> Json:
    """``values`` of a figure, their ``mean`` and ``spread`` (sd, or None of one)."""
    return {
        "mean": statistics.mean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "values": list(values),
    }


def shown_figure(key: str, figure: Json | None) -> str:
    """``91.52 % ± 0.31``; shares in per cent."""
    if figure is None:
        return "-"
    scale, digits = 1.0, 0 if abs(figure["mean"]) >= 100 else 2
    unit = ""
    if key.startswith(("accuracy", "macro", "nrmse", "token")):
        scale, unit = 100.0, " %"
    elif key.startswith(("loss", "noise_error")):
        digits = 4
    spread = figure["spread"]
    text = f"{scale * figure['mean']:,.{digits}f}"
    return text + ("" if spread is None else f" ± {scale * spread:,.{digits}f}") + unit


def shown_value(value: Any) -> str:
    """A setting in a cell."""
    text = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _name(group: Group, keys: Sequence[str]) -> str:
    """The settings that set it apart, where they are short; else the plan's name."""
    values = group.runs[0].settings
    words = sorted(keys, key=lambda key: not isinstance(values.get(key), str))  # a name says most
    own = [
        f"{key.removeprefix('plan.')} = {shown_value(values.get(key))}"
        for key in words
        if key.rpartition(".")[2] not in ("fingerprint", "labels")
    ]
    text = ", ".join(own[:2])
    return text if 0 < len(own) <= 2 and len(text) <= 60 else group.runs[0].name


def _flat(document: Json, prefix: str = "") -> Json:
    flat: Json = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
