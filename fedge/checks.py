"""What ``fedge plan check`` finds out about a plan or an experiment; it leaves nothing but a built base."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.forecast import Forecast, forecast
from fedge.plans import read_manifest
from protocol.documents import OddError, parse_toml
from protocol.legality import Finding, check
from protocol.manifests import AnyManifest
from protocol.media_manifest import MediaManifest
from protocol.plan import Plan
from simulations.experiment import Experiment, experiment_path, load_experiment
from storage.regular import read_settings_text

if TYPE_CHECKING:
    from client.examples import Examples
    from client.worker import Worker
    from simulations.pace import Pace

RUNS = Path("runs")  # where `fedge simulate` keeps runs and bases
UNKNOWN = "0" * 64  # fingerprint of a base that nobody has looked at
OF_EXPERIMENTS = {"plan", "data", "population", "faults", "yardsticks"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumed:
    """What a forecast is made of: rows of a client, tokens of a row, tokens trained in a second."""

    rows: int
    tokens: int
    speed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """``pace`` where steps were timed; ``seconds`` by part where a simulation was forecast by them."""

    plan: Plan
    findings: list[Finding]
    cost: Forecast | None
    experiment: Experiment | None = None
    pace: Pace | None = None
    seconds: dict[str, float] | None = None

    @property
    def legal(self) -> bool:
        """Whether it may be run."""
        return all(finding.severity != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. An experiment's digest is known once its base is."""
        known = self.plan.base.fingerprint != UNKNOWN
        return {
            "legal": self.legal,
            "kind": "plan" if self.experiment is None else "experiment",
            "digest": self.plan.digest if known else None,
            "findings": [asdict(finding) for finding in self.findings],
            "forecast": self.cost.to_dict() if self.cost else None,
            "measured": self.pace.to_dict() if self.pace else None,
            "simulation_seconds": self.seconds,
        }


def is_experiment(argument: str) -> bool:
    """Whether it is an experiment that ships, or a file with tables that only experiments have."""
    path = experiment_path(argument)
    if str(path) != argument:
        return True
    try:
        return bool(OF_EXPERIMENTS & parse_toml(read_settings_text(path)).keys())
    except (OSError, UnicodeDecodeError, OddError):
        return False  # whoever reads it as a plan says what is wrong


def check_plan(
    plan: Plan, manifest: AnyManifest | None, assumed: Assumed, base: Path | None, *, measure: bool
) -> Checked:
    """Check ``plan``; with ``measure`` a few steps on ``base`` take the place of the speed assumed."""
    checked = Checked(plan=plan, findings=check(plan, manifest), cost=None)
    if manifest is None or not checked.legal:
        return checked
    pace = _pace_of(plan, base, assumed.tokens) if measure and base is not None else None
    if pace is not None:
        speed = round(plan.local.batch_size * assumed.tokens / pace.step)
        assumed = replace(assumed, speed=max(1, speed))
    return replace(checked, cost=_cost(plan, manifest, assumed), pace=pace)


def check_experiment(
    argument: str,
    overrides: list[str],
    assumed: Assumed,
    base: Path | None,
    *,
    measure: bool,
) -> Checked:
    """Check an experiment over its own rows, with its base where that is there, or ``measure`` builds it.

    Raises PlanError, DataError, MachineError, ArtefactError as ``fedge simulate`` would.
    """
    experiment = load_experiment(experiment_path(argument), overrides)
    if measure:
        return _measured(experiment, assumed)
    from simulations.data import experiment_rows, verify_files
    from simulations.findings import findings_of, labels_of
    from simulations.prepare import split
    from simulations.starts import start_for

    rows = experiment_rows(experiment)
    folder = base or (
        experiment.folder / experiment.base.folder if experiment.base.folder else None
    )
    manifest = read_manifest(folder) if folder else None
    if manifest is not None:
        verify_files(rows, manifest)
    labels = labels_of(experiment, rows)
    plan = experiment.plan_for(
        fingerprint=manifest.fingerprint if manifest else UNKNOWN,
        labels=labels,
        start=start_for(experiment),
    )
    split(experiment, plan, rows[0])  # refuses devices that the rows cannot fill
    findings = [_without_base(each) for each in findings_of(experiment, plan, manifest, rows)]
    checked = Checked(plan=plan, findings=findings, cost=None, experiment=experiment)
    if manifest is None or not checked.legal:
        return checked
    each = replace(assumed, rows=max(1, len(rows[0]) // experiment.population.clients))
    return replace(checked, cost=_cost(plan, manifest, each))


def _without_base(finding: Finding) -> Finding:
    if finding.field == "base" and finding.severity == "note":
        return replace(finding, remedy="pass --base DIR, or --measure to build it and time steps")
    return finding


def _measured(experiment: Experiment, assumed: Assumed) -> Checked:
    """Prepare the run in a folder of its own, time steps, and remove the folder."""
    from client.worker import Worker
    from simulations.forecasts import forecast_run
    from simulations.jobs import EXPAND_MIB
    from simulations.prepare import BASES, prepare
    from simulations.progress import NoProgress

    RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measure-", dir=RUNS) as folder:
        out = Path(folder) / "run"
        prepared = prepare(
            experiment, out, resume=False, progress=NoProgress(), cache=(RUNS / BASES).resolve()
        )
        plan, sizes = prepared.plan, prepared.sizes
        pace, seconds = forecast_run(prepared, Worker(plan, prepared.base, expand_mib=EXPAND_MIB))
    findings = [
        *prepared.warnings,
        *(f for f in check(plan, prepared.manifest) if f.severity == "note"),
    ]
    tokens = max(1, round(prepared.tokens_per_row))
    each = Assumed(
        rows=max(1, sum(sizes) // len(sizes)),
        tokens=tokens,
        speed=max(1, round(plan.local.batch_size * tokens / pace.step)),
    )
    return Checked(
        plan=plan,
        findings=findings,
        cost=_cost(plan, prepared.manifest, each),
        experiment=experiment,
        pace=pace,
        seconds=seconds,
    )


def _pace_of(plan: Plan, base: Path, tokens: int) -> Pace:
    """Of rows of ``tokens`` tokens each: a plan has no rows."""
    from client.worker import Worker
    from simulations.pace import measure_pace

    worker = Worker(plan, base)
    return measure_pace(worker, _invented(worker, plan, tokens))


def _invented(worker: Worker, plan: Plan, tokens: int) -> Examples:
    """Rows of a batch that nobody has."""
    import numpy as np

    from client.batches import Encoded
    from client.examples import media_rows
    from client.noisy_images import NoisyImages
    from protocol.denoiser_manifest import DenoiserManifest
    from protocol.rows.media import codec_of

    manifest, batch = worker.manifest, plan.local.batch_size
    if isinstance(manifest, MediaManifest):
        values = np.stack([codec_of(manifest).example()] * batch)
        if isinstance(manifest, DenoiserManifest):
            return NoisyImages.of(manifest, values, np.zeros(batch, np.int64))
        return media_rows(manifest, values, np.zeros(batch, np.int64))
    length = min(tokens, plan.task.longest)
    by_token = plan.task.ANSWERS == "text"
    kind = np.float32 if plan.task.ANSWERS == "range" else np.int64
    return Encoded(
        ids=(np.arange(batch * length) % manifest.vocab_size).astype(np.int32),
        offsets=np.arange(0, batch * length + 1, length, dtype=np.int64),
        targets=np.zeros(batch * length if by_token else batch, kind),
        by_token=by_token,
        types=np.zeros(batch * length, np.int8) if worker.recipe.typed else None,
        boxes=np.zeros((batch * length, 4), np.int16) if worker.recipe.boxed else None,
        pad_id=0,
    )


def _cost(plan: Plan, manifest: AnyManifest, assumed: Assumed) -> Forecast:
    return forecast(
        plan,
        manifest,
        rows_per_client=assumed.rows,
        tokens_per_row=assumed.tokens,
        tokens_per_second=assumed.speed,
    )
