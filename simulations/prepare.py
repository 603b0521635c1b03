"""Everything a simulated run needs before its first round, written into the run folder.

``experiment.json`` is written last and marks the rest as complete: a run killed while preparing
prepares again, and a run that is resumed with another experiment is refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from base_model.store import read_manifest
from client.batches import encode
from protocol.errors import ArtefactError, DataError, PlanError
from protocol.legality import verify_legal
from protocol.manifest import Manifest
from protocol.plan import Plan, plan_from
from protocol.secagg.roster import render_roster
from simulations.base_cache import ready_base
from simulations.experiment import Experiment, resolve_source
from simulations.files import read_json, write_json, write_jsonl, write_text
from simulations.grid import client_name
from simulations.partitions import Partition, by_column, dirichlet, iid, shards
from simulations.progress import Progress
from simulations.rows import Row, read_rows

MARKER, PLAN, TEST, CLIENTS = "experiment.json", "plan.json", "test.jsonl", "clients"
ROSTER = "roster.json"  # under secure aggregation
BASES = ".bases"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run folder that is ready: ``tokens_per_row`` is the mean over the training rows."""

    out: Path
    experiment: Experiment
    plan: Plan
    base: Path
    manifest: Manifest
    tokens_per_row: float

    def client_file(self, partition: int) -> Path:
        """The private rows of one device."""
        return self.out / CLIENTS / f"{client_name(partition)}.jsonl"

    @property
    def test_file(self) -> Path:
        """The rows everyone is measured on."""
        return self.out / TEST


def prepare(experiment: Experiment, out: Path, *, resume: bool, progress: Progress) -> Prepared:
    """Build or find the base, split the data, complete the plan. Idempotent under ``resume``.

    Raises:
        ArtefactError: ``out`` is not empty and ``resume`` is false, or holds something else.
        PlanError, DataError, MachineError: the experiment cannot be run as it stands.
    """
    if out.exists() and not out.is_dir():
        raise ArtefactError(f"{out} is a file", "name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not resume:
        raise ArtefactError(
            f"the run folder {out} is not empty",
            "add --resume to continue it, or name another folder with --out",
        )
    if (marker := read_json(out / MARKER)) is not None:
        return _reopened(experiment, out, marker)
    _check_leftovers(out)
    # The data first: it is read in a moment, and a base takes much longer.
    rows = _rows(experiment, experiment.plan_for(fingerprint="0" * 64, labels=["a", "b"]))
    out.mkdir(parents=True, exist_ok=True)
    base = ready_base(
        experiment.base, folder=experiment.folder, cache=out.parent / BASES, progress=progress
    )
    return _fresh(experiment, out, base, rows)


def _check_leftovers(out: Path) -> None:
    """Only what a killed preparation leaves may be written over. Raises ArtefactError."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    expected = {
        CLIENTS,
        TEST,
        PLAN,
        ROSTER,
        *(f".{name}.tmp" for name in (TEST, PLAN, ROSTER, MARKER)),
    }
    if odd := sorted(names - expected):
        raise ArtefactError(
            f"{out} is not a run: it has {odd[0]} and no {MARKER}", "name another folder with --out"
        )


def _fresh(
    experiment: Experiment, out: Path, base: Path, rows: tuple[list[Row], list[Row]]
) -> Prepared:
    manifest = read_manifest(base)
    draft = experiment.plan_for(fingerprint=manifest.fingerprint, labels=["a", "b"])
    train, test = rows
    labels = sorted({row[draft.task.label] for row in train + test})
    if len(labels) < 2:
        raise DataError("the data has a single label", "there is nothing to learn; check the files")
    plan = experiment.plan_for(fingerprint=manifest.fingerprint, labels=labels)
    _check_labels(plan, labels)
    verify_legal(plan, manifest)
    parts = split(experiment, plan, train)
    shutil.rmtree(out / CLIENTS, ignore_errors=True)  # of a preparation that was killed
    (out / CLIENTS).mkdir()
    for number, part in enumerate(parts):
        write_jsonl(out / CLIENTS / f"{client_name(number)}.jsonl", (train[row] for row in part))
    if plan.secrecy.exchange == "secagg":
        _enrol(out, len(parts))
    write_jsonl(out / TEST, test)
    write_text(out / PLAN, plan.render())
    tokens = _tokens_per_row(base, plan, [row[plan.task.text] for row in train])
    marker = {
        **experiment.model_dump(mode="json"),
        "base_folder": _relative(base, out),
        "fingerprint": manifest.fingerprint,
        "plan_digest": plan.digest,
        "tokens_per_row": tokens,
        "rows": {"train": len(train), "test": len(test)},
    }
    write_json(out / MARKER, marker)
    return Prepared(
        out=out,
        experiment=experiment,
        plan=plan,
        base=base,
        manifest=manifest,
        tokens_per_row=tokens,
    )


def _enrol(out: Path, clients: int) -> None:
    """An identity for every simulated device, and the roster of all."""
    roster = {}
    for number in range(clients):
        key, name = Ed25519PrivateKey.generate(), client_name(number)
        path = out / CLIENTS / f"{name}.key"
        path.touch(mode=0o600)
        path.write_text(key.private_bytes_raw().hex() + "\n")
        roster[name] = key.public_key().public_bytes_raw()
    write_text(out / ROSTER, render_roster(roster))


def split(experiment: Experiment, plan: Plan, rows: list[Row]) -> Partition:
    """Row numbers per device by the experiment's scheme, seeded by the plan's seed."""
    population, seed = experiment.population, plan.seed
    labels = [row[plan.task.label] for row in rows]
    count, min_rows = population.clients, population.min_rows
    if population.partition == "iid":
        return iid(len(rows), count, seed=seed, min_rows=min_rows)
    if population.partition == "dirichlet":
        return dirichlet(labels, count, alpha=population.alpha, seed=seed, min_rows=min_rows)
    if population.partition == "shards":
        per_client = population.shards_per_client
        return shards(labels, count, per_client=per_client, seed=seed, min_rows=min_rows)
    return by_column([row[population.column] for row in rows], count, min_rows=min_rows)


def _rows(experiment: Experiment, plan: Plan) -> tuple[list[Row], list[Row]]:
    data, columns = experiment.data, [plan.task.text, plan.task.label]
    with_column = [*columns, *filter(None, [experiment.population.column])]
    if data.generator:
        from simulations.generators import home_commands

        made = home_commands(plan.seed)
        return list(made.train), list(made.test)
    train = resolve_source(data.train, folder=experiment.folder)
    test = resolve_source(data.test, folder=experiment.folder)
    return read_rows(train, columns=with_column), read_rows(test, columns=columns)


def _check_labels(plan: Plan, found: Iterable[str]) -> None:
    unknown = sorted(set(found) - set(plan.task.labels))
    if unknown:
        raise DataError(
            f"the data has the label {unknown[0][:40]!r}, which `plan.task.labels` does not list",
            "list every label, or leave task.labels out",
        )


def _reopened(experiment: Experiment, out: Path, marker: dict[str, Any]) -> Prepared:
    for key, value in experiment.model_dump(mode="json").items():
        if marker.get(key) != value:
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
    )


def _tokens_per_row(base: Path, plan: Plan, texts: list[str]) -> float:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    encoded = encode(tokenizer, texts, [0] * len(texts), plan.task.max_length)
    return float(np.mean(encoded.lengths))


def _relative(base: Path, out: Path) -> str:
    """Relative to the run, so that the folder with runs and bases can be moved as one."""
    return os.path.relpath(base.resolve(), out.resolve())
