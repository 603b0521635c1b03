"""Everything a simulated run needs before its first round, written into the run folder.

``experiment.json`` is written last and marks the rest as complete: a run killed while preparing
prepares again, and a run that is resumed with another experiment is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from base_model.decoder.sources import is_file
from base_model.denoisers.source import source_digests
from base_model.places import locate, locate_file
from base_model.verify import read_manifest
from client.data import Rows
from protocol.decoder_manifest import DECODER
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError, PlanError
from protocol.head import HeadStart
from protocol.legality import Finding, verify_legal
from protocol.manifests import AnyManifest
from protocol.media import DRAWN
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rows.read import Table
from protocol.secagg.roster import render_roster
from protocol.start import Start
from server.starting import read_beginning, round_of
from simulations.canaries import planted
from simulations.clients import client_name, list_clients
from simulations.data import experiment_rows
from simulations.experiment import Experiment, expanded
from simulations.files import read_json, write_json, write_jsonl, write_text
from simulations.findings import finding_of, findings_of, labels_of
from simulations.identity import Identities
from simulations.own_rows import OWN_ROWS, OwnRows, own_rows, save_own_rows
from simulations.partitions import Partition, by_column, dirichlet, iid, shards
from simulations.progress import Progress
from simulations.starts import start_for
from simulations.tasks import task_named

MARKER, PLAN, TEST, CLIENTS = "experiment.json", "plan.json", "test.jsonl", "clients"
START_RUN = "start_run"  # in the marker: where the run lies that this one goes on from
IDENTITY = "identity"  # in the marker: what the run hangs on, by content
LISTED = "clients.json"  # which client holds what
ROSTER = "roster.json"  # under secure aggregation
BASES = ".bases"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run folder that is ready: ``tokens_per_row`` is the mean over the training rows."""

    out: Path
    experiment: Experiment
    plan: Plan
    base: Path
    manifest: AnyManifest
    tokens_per_row: float
    warnings: tuple[Finding, ...] = ()
    rows: tuple[int, int] = (0, 0)  # to train on, to test on

    @property
    def sizes(self) -> list[int]:
        """Rows of every client, by partition."""
        listed = read_json(self.out / LISTED, {"clients": {}})["clients"]
        return [listed[name]["rows"] for name in sorted(listed)]

    def client_file(self, partition: int) -> Path:
        """The private rows of one device."""
        return self.out / CLIENTS / f"{client_name(partition)}.jsonl"

    @property
    def test_file(self) -> Path:
        """The rows everyone is measured on."""
        return self.out / TEST


def prepare(
    experiment: Experiment,
    out: Path,
    *,
    resume: bool,
    progress: Progress,
    cache: Path | None = None,
) -> Prepared:
    """Build or find the base, split the data, complete the plan. Idempotent under ``resume``.

    ``cache`` keeps built bases; without it a folder beside ``out``.

    Raises:
        ArtefactError: ``out`` is not empty and ``resume`` is false, or holds something else.
        PlanError, DataError, MachineError: the experiment cannot be run as it stands.
    """
    from simulations.base_cache import ready_base

    admitted = admit(experiment, out, resume=resume)
    if admitted is None:
        return _reopened(experiment, out, read_json(out / MARKER))
    out.mkdir(parents=True, exist_ok=True)
    base = ready_base(
        experiment.base,
        task=experiment.base_task,
        folder=experiment.folder,
        cache=cache or out.parent / BASES,
        progress=progress,
    )
    return _fresh(experiment, out, base, admitted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """An experiment that may be prepared: its rows to train and to test on, divided.

    ``own``: which test rows are whose, where that is asked for.
    """

    rows: tuple[Table, Table]
    labels: list[str]
    parts: Partition
    own: OwnRows | None
    start: Start | None


def admit(experiment: Experiment, out: Path, *, resume: bool) -> Admitted | None:
    """All that can be refused before torch is needed: folder, start, rows, devices, the base's place.

    None for a run folder that goes on. Raises what :func:`prepare` does.
    """
    if out.exists() and not out.is_dir():
        raise ArtefactError(f"{out} is a file", "name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not resume:
        raise ArtefactError(
            f"the run folder {out} is not empty",
            "add --resume to continue it, or name another folder with --out",
        )
    if read_json(out / MARKER) is not None:
        return None
    _check_leftovers(out)
    start = start_for(experiment)
    rows = experiment_rows(experiment)
    labels = labels_of(experiment, rows)
    plan = experiment.plan_for(fingerprint="0" * 64, labels=labels)
    parts = split(experiment, plan, rows[0])
    own = own_rows(experiment, plan, rows, parts) if experiment.yardsticks.personal else None
    if experiment.base.folder:
        read_manifest(experiment.folder / Path(experiment.base.folder).expanduser())
    else:
        verify_there(
            expanded(experiment.base.source), experiment.base_task, beside=experiment.folder
        )
    return Admitted(rows=rows, labels=labels, parts=parts, own=own, start=start)


def verify_there(source: str, task: str, *, beside: Path) -> None:
    """Raises MachineError or ArtefactError for a source that is not on this machine."""
    if task == DECODER and is_file(source):
        locate_file(source, beside=beside)
    elif task == DRAWN.task:
        source_digests(beside / Path(source).expanduser())
    else:
        locate(source, beside=beside)


def _check_leftovers(out: Path) -> None:
    """Only what a killed preparation leaves may be written over. Raises ArtefactError."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    expected = {
        CLIENTS,
        TEST,
        PLAN,
        ROSTER,
        LISTED,
        OWN_ROWS,
        *(f".{name}.tmp" for name in (TEST, PLAN, ROSTER, LISTED, OWN_ROWS, MARKER)),
    }
    if odd := sorted(names - expected):
        raise ArtefactError(
            f"{out} is not a run: it has {odd[0]} and no {MARKER}", "name another folder with --out"
        )


def _fresh(experiment: Experiment, out: Path, base: Path, admitted: Admitted) -> Prepared:
    manifest, rows = read_manifest(base), admitted.rows
    plan = _legal_plan(experiment, base, manifest, admitted)
    findings = findings_of(experiment, plan, manifest, rows)
    secrets = experiment.memorisation
    train, parts = planted(
        plan, rows[0], admitted.parts, count=secrets.canaries, repeats=secrets.repeats
    )
    _write_devices(experiment, out, plan, train, parts)
    if admitted.own is not None:
        save_own_rows(out, admitted.own)
    write_jsonl(out / TEST, _lines(rows[1], plan))
    write_text(out / PLAN, plan.render())
    prepared = Prepared(
        out=out,
        experiment=experiment,
        plan=plan,
        base=base,
        manifest=manifest,
        tokens_per_row=_tokens_per_row(base, plan, train),
        warnings=tuple(each for each in findings if each.severity == "warning"),
        rows=(len(train), len(rows[1])),
    )
    write_json(out / MARKER, _marker(prepared))
    return prepared


def _legal_plan(
    experiment: Experiment, base: Path, manifest: AnyManifest, admitted: Admitted
) -> Plan:
    """The whole plan. Raises PlanError where it may not be run on the base."""
    plan = experiment.plan_for(
        fingerprint=manifest.fingerprint,
        labels=admitted.labels,
        start=admitted.start,
        head=_head(experiment, base, admitted.labels),
    )
    if experiment.start_folder is not None:
        read_beginning(experiment.start_folder, plan, manifest)
    verify_legal(plan, manifest)
    return plan


def _write_devices(
    experiment: Experiment, out: Path, plan: Plan, train: Table, parts: Partition
) -> None:
    """Every device's rows, the list of them and, for secret sums, identities and a roster."""
    shutil.rmtree(out / CLIENTS, ignore_errors=True)  # of a preparation that was killed
    (out / CLIENTS).mkdir()
    column = experiment.population.column
    for number, part in enumerate(parts):
        path = out / CLIENTS / f"{client_name(number)}.jsonl"
        write_jsonl(path, _lines(train.take(part), plan, column))
    write_json(out / LISTED, list_clients(train, parts, column, labels=experiment.has_labels))
    if plan.secrecy.exchange == "secagg":
        _enrol(out, len(parts))


def _marker(prepared: Prepared) -> dict[str, Any]:
    """What a run that is resumed has to be the same in, and what it reads again."""
    experiment, out = prepared.experiment, prepared.out
    return {
        **experiment.model_dump(mode="json"),
        "base_folder": _relative(prepared.base, out),
        START_RUN: _start_run(experiment, out),
        IDENTITY: Identities().of(experiment),
        "fingerprint": prepared.manifest.fingerprint,
        "plan_digest": prepared.plan.digest,
        "tokens_per_row": prepared.tokens_per_row,
        "rows": dict(zip(("train", "test"), prepared.rows, strict=True)),
        "warnings": [asdict(warning) for warning in prepared.warnings],
    }


def _head(experiment: Experiment, base: Path, labels: list[str]) -> HeadStart | None:
    """What the plan's head begins with. Raises PlanError for labels that are not told apart."""
    wanted = experiment.head
    if wanted.start == "random":
        return None
    from edge_runtime.label_vectors import named_head

    listed = experiment.plan.get("task", {}).get("labels", labels)
    return named_head(
        base,
        listed,
        length=wanted.length,
        trained=wanted.trained,
        rank=wanted.rank,
        turns=wanted.turns,
    )


def _start_run(experiment: Experiment, out: Path) -> str:
    start = experiment.start_folder
    return "" if start is None else _relative(round_of(start).parent.parent, out)


def _enrol(out: Path, clients: int) -> None:
    """An identity for every simulated device, and the roster of all."""
    roster = {}
    for number in range(clients):
        key, name = Ed25519PrivateKey.generate(), client_name(number)
        path = out / CLIENTS / f"{name}.key"
        path.touch(mode=0o600)
        path.write_text(key.private_bytes_raw().hex() + "\n", "ascii")
        roster[name] = key.public_key().public_bytes_raw()
    write_text(out / ROSTER, render_roster(roster))


def split(experiment: Experiment, plan: Plan, rows: Table) -> Partition:
    """Row numbers per device by the experiment's scheme, seeded by the plan's seed."""
    population, seed = experiment.population, plan.seed
    count, min_rows = population.clients, population.min_rows
    if population.partition == "iid":
        return iid(len(rows), count, seed=seed, min_rows=min_rows)
    strata = task_named(plan.task.kind).strata(rows.targets)
    if population.partition == "dirichlet":
        return dirichlet(strata, count, alpha=population.alpha, seed=seed, min_rows=min_rows)
    if population.partition == "shards":
        per_client = population.shards_per_client
        return shards(strata, count, per_client=per_client, seed=seed, min_rows=min_rows)
    return by_column(rows.groups, count, min_rows=min_rows)


def _lines(rows: Table, plan: Plan, column: str = "") -> list[dict[str, Any]]:
    """Rows as a site of this plan has them, with the column that made the devices."""
    return [
        ({column: rows.groups[at]} if column else {}) | plan.task.line(text, target)
        for at, (text, target) in enumerate(zip(rows.texts, rows.targets, strict=True))
    ]


def _reopened(experiment: Experiment, out: Path, marker: dict[str, Any]) -> Prepared:
    began = _began_with(marker, out)
    for key, value in experiment.model_dump(mode="json").items():
        stored = began[key]
        if stored != value:
            if key == "plan" and _other_rounds(marker.get(key), value):
                raise PlanError(
                    f"{out} keeps the {marker['plan'].get('rounds', 10)} rounds that its devices agreed to",
                    f"go on in a new folder: fedge simulate … --start {out} --set plan.rounds=MORE --out NEW",
                )
            raise PlanError(
                f"{out} was started with another experiment: `{key}` differs",
                "resume with the same file and the same --set, or name another folder with --out",
            )
    base = (out / marker["base_folder"]).resolve()
    manifest = read_manifest(base)
    if manifest.fingerprint != marker["fingerprint"]:
        raise ArtefactError(
            f"{base} is not the base that {out} was started with", "start again in another folder"
        )
    plan = plan_from(read_json(out / PLAN, {}), source=str(out / PLAN))
    if plan.digest != marker["plan_digest"]:
        raise ArtefactError(f"{out / PLAN} was changed", "restore it, or start in another folder")
    return Prepared(
        out=out,
        experiment=experiment,
        plan=plan,
        base=base,
        manifest=manifest,
        tokens_per_row=float(marker["tokens_per_row"]),
        warnings=tuple(map(finding_of, marker.get("warnings", []))),
        rows=(int(marker["rows"]["train"]), int(marker["rows"]["test"])),
    )


def _began_with(marker: dict[str, Any], out: Path) -> dict[str, Any]:
    """The experiment of a run; keys that an earlier fedge had not have their defaults."""
    content = {key: marker[key] for key in Experiment.model_fields if key in marker}
    try:
        return json_as(Experiment, json.dumps(content)).model_dump(mode="json")
    except OddError as error:
        raise ArtefactError(
            f"{out / MARKER}: {error}",
            "resume with the fedge that began it, or start in another folder",
        ) from None


def _other_rounds(before: object, now: object) -> bool:
    """Whether two plans differ in their rounds alone."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return False
    return before | {"rounds": 0} == now | {"rounds": 0}


def _tokens_per_row(base: Path, plan: Plan, rows: Table) -> float:
    """Mean over the rows. Raises DataError for a row that cannot be learnt."""
    from client.opened_base import opened_base
    from client.tasks import task_named as client_task

    opened = opened_base(plan, base)
    recipe = Recipe(plan=plan, manifest=opened.manifest)
    task = client_task(plan.task.kind)
    targets = task.targets(rows, plan.task)
    encoded = task.encode(
        Rows(texts=rows.texts, targets=targets, places=rows.places), recipe, opened
    )
    return float(np.mean(encoded.lengths))


def _relative(base: Path, out: Path) -> str:
    """Relative to the run, so that the folder with runs and bases can be moved as one."""
    return os.path.relpath(base.resolve(), out.resolve())
