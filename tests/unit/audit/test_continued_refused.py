"""Starts of which nothing can go on: damaged, of another plan or base, or past the budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.continued import start_of
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from fedge.plans import app as plans
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError, PlanError
from protocol.legality import verify_legal
from protocol.plan import Plan, plan_from_text
from protocol.recipe import Recipe
from protocol.start import SpentBefore
from protocol.step.checkpoint import Note, decode_checkpoint, encode_checkpoint
from server.starting import read_beginning
from tests.methods import CORES
from tests.unit.audit.continuing import (
    CENTRAL,
    NOISE,
    PLAIN,
    PROMPT,
    _legal,
    _plan_after,
)
from tests.unit.audit.runs import make_run, small_plan
from tests.unit.audit.small_bases import small_manifest

Damage = Callable[[Path], None]


def cut(run: Path) -> None:
    path = run / "rounds/0003/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def not_a_number(run: Path) -> None:
    path = run / "rounds/0003/checkpoint.safetensors"
    state, note = decode_checkpoint(path.read_bytes(), source="x")
    name = sorted(state.adapter)[0]
    state.adapter[name][...] = np.nan
    layout = Recipe(plan=small_plan()[0], manifest=small_manifest()).layout
    said = Note(**(vars(note) | {"adapter_digest": vector_digest(layout.flatten(state.adapter))}))
    path.write_bytes(encode_checkpoint(state, said))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no file": (
        lambda run: (run / "rounds/0003/checkpoint.safetensors").unlink(),
        "is no adapter of a run's round",
    ),
    "no plan": (lambda run: (run / "plan.json").unlink(), "is no adapter of a run's round"),
    "cut": (cut, "checkpoint.safetensors"),
    "nothing in it": (
        lambda run: (run / "rounds/0003/checkpoint.safetensors").write_bytes(b""),
        "checkpoint.safetensors",
    ),
    "another run": (
        lambda run: (run / "plan.json").write_text(small_plan(seed=9)[0].render()),
        "of a run of plan",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_start_is_refused(damage: str, runs: tuple[Path, Path], tmp_path: Path) -> None:
    plan = _plan_after(runs[0])
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    DAMAGES[damage][0](run)
    with pytest.raises(ArtefactError, match=DAMAGES[damage][1]):
        read_beginning(run / "rounds/0003/adapter", plan, small_manifest())


def test_a_start_that_is_not_finite_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """Also where plan and file agree on it."""
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    not_a_number(run)
    _, note = decode_checkpoint(
        (run / "rounds/0003/checkpoint.safetensors").read_bytes(), source="x"
    )
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    plan = small_plan(start=start | {"adapter": note.adapter_digest})[0]
    with pytest.raises(ArtefactError, match="NaN"):
        read_beginning(run, plan, small_manifest())


def test_folders_that_are_no_run_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    plan = _plan_after(runs[0])
    for path in (tmp_path, tmp_path / "nowhere", runs[0] / "log", runs[0] / "rounds/0009/adapter"):
        with pytest.raises(ArtefactError, match="is no adapter of a run's round"):
            read_beginning(path, plan, small_manifest())
    copy = shutil.copytree(runs[0] / "rounds/0003/adapter", tmp_path / "adapter")
    with pytest.raises(ArtefactError, match="runs/x/rounds/0008/adapter"):
        read_beginning(Path(copy), plan, small_manifest())


SETTINGS: dict[str, dict[str, Any]] = {
    "another alpha": {"rank": 2, "alpha": 64.0, "targets": ["query"]},
    "another rank": {"rank": 4, "alpha": 8.0, "targets": ["query"]},
    "other targets": {"rank": 2, "alpha": 4.0, "targets": "all-linear"},
    "another method": {"method": "prompt"},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_adapter_means_what_it_meant_before(kind: str, tmp_path: Path) -> None:
    """With other settings the same tensors are another model: whoever checks the plan refuses that.

    What the remedy says is a plan that may be run.
    """
    first = make_run(tmp_path / "first", rounds=1, **PLAIN)
    document = PLAIN | {"rounds": 1} | {"adapter": SETTINGS[kind]}
    with pytest.raises(PlanError, match=r"`adapter`: .*other settings"):
        _legal(first, 1, **document)
    fit = _plan_after(first, 1, **(PLAIN | {"rounds": 1}))
    verify_legal(fit, small_manifest())
    read_beginning(first, fit, small_manifest())


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "labels in another order": ({"task": {"labels": ["b", "a", "c"]}}, "in another order"),
    "other labels": ({"task": {"labels": ["a", "b", "x"]}}, "other labels"),
    "another rank": ({"adapter": {"rank": 3, "targets": ["query"]}}, "settings"),
    "another method": (PROMPT, "settings"),
    "cores": ({"adapter": CORES}, "settings"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_plan_of_other_tensors_cannot_go_on(kind: str, runs: tuple[Path, Path]) -> None:
    sections, why = UNFIT[kind]
    plan = _plan_after(runs[0], **sections)
    with pytest.raises((ArtefactError, PlanError), match=why):
        _begun(runs[0], plan)


def _begun(run: Path, plan: Plan) -> None:
    """As before a run: the plan is looked at, then what it goes on from."""
    verify_legal(plan, small_manifest())
    read_beginning(run, plan, small_manifest())


def test_an_adapter_of_another_base_cannot_go_on(runs: tuple[Path, Path]) -> None:
    plan = _plan_after(runs[0])
    other = plan.model_copy(update={"base": plan.base.model_copy(update={"fingerprint": "b" * 64})})
    with pytest.raises(PlanError, match="was trained on base"):
        read_beginning(runs[0], other, small_manifest())


def test_a_plan_that_starts_anew_takes_no_start_and_one_that_goes_on_needs_it(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="starts anew"):
        make_run(tmp_path / "anew", begin=runs[0])
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    with pytest.raises(PlanError, match="nobody says where it is"):
        make_run(tmp_path / "nowhere", start=start)
    for folder in ("anew", "nowhere"):
        assert not (tmp_path / folder / "plan.json").exists()  # nothing was begun


SPENT = {
    "none before": ({"privacy": NOISE, "rule": {"name": "first"}}, {}, "no noise"),
    "another noise": (
        {"privacy": NOISE, "rule": {"name": "first"}},
        {"mechanism": "central", "sums": 3},
        "had central noise",
    ),
    "central rounds unlike": (
        {
            "privacy": CENTRAL,
            "rule": {"name": "first"},
            "secrecy": {"exchange": "plain"},
            "cohort": {"size": 6, "quorum": 1},
        },
        {"mechanism": "central", "sums": 3, "noise_multiplier": 1.0, "sampling": 0.9},
        "rounds that are alike",
    ),
}


@pytest.mark.parametrize("kind", SPENT)
def test_an_epsilon_that_would_not_hold_is_refused(kind: str, runs: tuple[Path, Path]) -> None:
    sections, spent, why = SPENT[kind]
    start = start_of(load_run(Folder(runs[0]), Trust()), 3)
    changed = start.model_copy(update={"spent": SpentBefore.model_validate(spent)})
    with pytest.raises(PlanError, match=why):
        _legal(runs[0], **sections, start=changed.model_dump(mode="json"))


def test_round_0_is_nothing_to_go_on_from(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """What a plan begins with is a plan anew: clients have agreed to a sum of it under that plan.

    So the command writes one without a start, with another seed.
    """
    with pytest.raises(PlanError, match="round 0 is nobody's work"):
        start_of(load_run(Folder(runs[0]), Trust()), 0)
    command = ["continue", str(runs[0] / "rounds/0000/adapter"), "--rounds", "1"]
    assert CliRunner().invoke(plans, [*command, "--out", str(tmp_path / "p.toml")]).exit_code == 0
    anew = plan_from_text((tmp_path / "p.toml").read_text(), source="p.toml")
    before = plan_from_text((runs[0] / "plan.json").read_text(), source="plan.json")
    assert (anew.start, anew.seed) == (None, before.seed + 1)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a key that nobody knows": ({"roots": "x"}, "unknown key `start.roots`"),
    "a short digest": ({"adapter": "ab"}, "`start.adapter`"),
    "more rounds than there were": ({"round": 9}, "round 9 of 3 rounds"),
    "round 0": ({"round": 0}, "start anew"),
    "no rounds": ({"round": 0, "rounds": 0}, "start anew"),
    "no settings": ({"settings": ""}, "`start.settings`"),
    "no plan": ({"plans": []}, "`start.plans`"),
    "a plan twice": ({"plans": ["1" * 64, "1" * 64]}, "listed twice"),
    "less than nothing spent": ({"spent": {"rho": -0.1}}, "`start.spent.rho`"),
    "a number as text": ({"round": "2"}, "`start.round`"),
    "another word for a mechanism": ({"spent": {"mechanism": "local"}}, "`start.spent.mechanism`"),
    "no root": ({"root": None}, "`start.root`"),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_start_that_is_none_is_no_plan(kind: str, runs: tuple[Path, Path]) -> None:
    start = start_of(load_run(Folder(runs[0]), Trust()), 3).model_dump(mode="json")
    changed, why = ODD[kind]
    with pytest.raises(PlanError, match=why) as caught:
        small_plan(start=start | changed)
    if kind == "a key that nobody knows":
        assert "`root`" in caught.value.remedy
