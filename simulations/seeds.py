"""One experiment with several seeds: a run folder each, resumable like one run, and a summary over them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ArtefactError, PlanError
from simulations.experiment import Experiment, load_experiment
from simulations.files import SEEDS

MOST_SEEDS = 100
PART = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedRun:
    """One of them: its seed, what is run, and its folder."""

    seed: int
    experiment: Experiment
    folder: Path


def seeds_of(text: str) -> list[int]:
    """``1,2,3`` or ``1-5`` or both, in order. Raises PlanError."""
    seeds: list[int] = []
    for part in text.split(","):
        match = PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < MOST_SEEDS:
            raise PlanError(
                f"--seeds {text}: {part.strip() or 'nothing'} is no seed and no range of seeds",
                f"write --seeds 1,2,3 or --seeds 1-5, at most {MOST_SEEDS}",
            )
        seeds += range(first, last + 1)
    if len(set(seeds)) != len(seeds) or len(seeds) > MOST_SEEDS:
        raise PlanError(
            f"--seeds {text}: a seed stands there twice, or there are more than {MOST_SEEDS}",
            "name each seed once",
        )
    return seeds


def seed_runs(
    path: Path, overrides: list[str], seeds: list[int], out: Path | None, *, resume: bool
) -> tuple[Path, list[SeedRun]]:
    """(their folder, the runs). Nothing is written.

    Raises:
        PlanError: the experiment is wrong, or ``overrides`` have a seed of their own.
        ArtefactError: the folder is not empty and ``resume`` is false, or holds something else.
    """
    if any(override.partition("=")[0].strip() == "plan.seed" for override in overrides):
        raise PlanError(
            "--set plan.seed and --seeds contradict each other", "leave one of them out"
        )
    experiments = [load_experiment(path, [*overrides, f"plan.seed={seed}"]) for seed in seeds]
    folder = out or Path("runs") / experiments[0].name
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{folder} is a file", "name a folder with --out")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if names and not resume:
        raise ArtefactError(
            f"the folder {folder} is not empty",
            "add --resume to continue it, or name another folder with --out",
        )
    odd = [name for name in names if not re.fullmatch(rf"seed-\d+|\.?{SEEDS}(\.tmp)?", name)]
    if odd:
        raise ArtefactError(
            f"{folder} is not of several seeds: it has {odd[0]}", "name another folder with --out"
        )
    runs = [
        SeedRun(seed=seed, experiment=experiment, folder=folder / f"seed-{seed}")
        for seed, experiment in zip(seeds, experiments, strict=True)
    ]
    return folder, runs
