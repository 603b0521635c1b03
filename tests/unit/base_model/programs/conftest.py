"""The program of a plan on the tiny base."""

from __future__ import annotations

from pathlib import Path

import pytest

from base_model.programs.folder import (
    Program,
    make_program,
)
from base_model.verify import read_manifest
from protocol.plan import Plan
from protocol.recipe import Recipe
from tests.unit.base_model.programs.trained_plan import plan_for


@pytest.fixture(scope="module")
def plan(tiny_base: Path) -> Plan:
    return plan_for(read_manifest(tiny_base).fingerprint)


@pytest.fixture(scope="module")
def program(tiny_base: Path, plan: Plan) -> Program:
    return make_program(tiny_base, Recipe(plan=plan, manifest=read_manifest(tiny_base)))
