"""Runs that tests of adversaries share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adversaries.rich_runs import make_kind
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import Sites, make_run, small_plan


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    plan, manifest = small_plan(cohort=EIGHT)
    return Sites(plan, manifest, tmp_path_factory.mktemp("mutated") / "sites", 8)


@pytest.fixture(scope="session")
def honest(sites: Sites) -> Path:
    return make_run(
        sites.folder.parent / "run", count=8, cohort=EIGHT, lost=some_are_lost, sites=sites
    )


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_kind(kind, tmp_path_factory.mktemp("silence") / "run")
        return made[kind]

    return of
