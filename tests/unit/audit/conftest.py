"""One small secret run with losses per session; a test that changes files takes a copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.exchange import Phase
from tests.unit.audit.continuing import FOUR
from tests.unit.audit.runs import Sites, go_on, make_run, small_plan
from tests.unit.audit.small_bases import small_manifest
from tests.unit.audit.withdrawing import NINE, SECTIONS, World, stopped_after

EIGHT = {"size": 8, "quorum": 3, "deadline_s": 30.0}


def some_are_lost(number: int, attempt: int, phase: Phase, site: int) -> bool:
    """Site 5 before it shares; in round 1 site 1 before it masks, in round 2 site 2 at the end."""
    lost = {(1, 1): Phase.MASK, (2, 2): Phase.UNMASK}.get((number, site))
    return phase is (Phase.SHARE if site == 5 else lost)


@pytest.fixture(scope="session")
def lossy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sites, two rounds, losses in both. Not to be changed."""
    folder = tmp_path_factory.mktemp("audit") / "run"
    return make_run(folder, count=8, cohort=EIGHT, lost=some_are_lost)


@pytest.fixture
def copied(lossy_run: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy of ``lossy_run``."""

    def make() -> Path:
        made = tmp_path / "copy"
        shutil.rmtree(made, ignore_errors=True)
        return Path(shutil.copytree(lossy_run, made))

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three rounds, and two more of them in secret. Not to be changed."""
    folder = tmp_path_factory.mktemp("continued")
    first = make_run(folder / "first", rounds=3, cohort=FOUR, count=4)
    return first, go_on(first, folder / "second", rounds=2, cohort=FOUR, count=4)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("withdrawals")
    plan, manifest = small_plan(**SECTIONS)
    sites = Sites(plan, manifest, folder / "sites", NINE)
    run = stopped_after(3, folder / "run", count=NINE, sites=sites, **SECTIONS)
    from tests.adversaries.rich_runs import release  # which imports this module

    release(run, 3, {"accuracy": 0.9})
    return World(run, plan, sites)


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """A copy of it, sites' memories too."""
    shutil.copytree(first.run, tmp_path / "run")
    shutil.copytree(first.sites.folder, tmp_path / "sites")
    return moved(first, tmp_path)


def moved(first: World, folder: Path) -> World:
    sites = Sites(first.plan, small_manifest(), folder / "sites", NINE, keys=first.sites.keys)
    return World(folder / "run", first.plan, sites)
