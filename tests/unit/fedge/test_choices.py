"""``fedge methods`` and ``fedge rules``: lists, and what is legal on a base under a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from base_model.verify import read_manifest
from fedge.choices import methods, rules
from fedge.forecast import forecast
from protocol.legality import check
from protocol.methods import METHODS
from protocol.plan import plan_from
from protocol.rules import RULES

app = typer.Typer()
app.command()(methods)
app.command()(rules)


def rows(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def plan_file(base: Path, folder: Path, **tables: Any) -> Path:
    document: dict[str, Any] = {
        "name": "judged",
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"labels": ["a", "b", "c"], "max_length": 16},
    }
    path = folder / "plan.json"
    path.write_text(plan_from(document | tables, source="test").render(), "utf-8")
    return path


def test_without_a_base_all_are_listed() -> None:
    assert [row["name"] for row in rows("methods")] == list(METHODS)
    assert [row["name"] for row in rows("rules")] == list(RULES)
    lora = next(row for row in rows("methods") if row["name"] == "lora")
    assert lora["turns"] == [["lora_B"], ["lora_A"]]
    assert lora["keys"] == ["targets", "layers", "rank", "alpha", "rank_stabilised"]
    first = next(row for row in rows("rules") if row["name"] == "first")
    assert first["methods"]["lora"] == {"phases": [["head", "lora_B"]], "exact": True}
    assert "legal" not in lora


def test_on_a_base_each_is_judged_as_the_check_judges_it(tiny_base: Path, tmp_path: Path) -> None:
    """Legal is what the check finds no error in; costs are the forecast's; reasons are the check's."""
    manifest = read_manifest(tiny_base)
    plan = plan_file(tiny_base, tmp_path, adapter={"method": "lora", "rank": 2, "targets": ["key"]})
    legal = set()
    for row in rows("methods", "--base", tiny_base, "--plan", plan):
        keys = METHODS[row["name"]].settings.model_fields
        adapter: dict[str, Any] = {"method": row["name"]}
        adapter |= {"targets": ["key"]} if "targets" in keys else {}
        adapter |= {"rank": 2} if row["name"] == "lora" else {}
        document = json.loads(plan.read_text("utf-8")) | {"adapter": adapter}
        same = plan_from(document, source="test")
        errors = [f for f in check(same, manifest) if f.severity == "error"]
        assert row["legal"] == (not errors)
        if errors:
            assert (row["reason"], row["remedy"]) == (errors[0].cause, errors[0].remedy)
            continue
        legal.add(row["name"])
        cost = forecast(same, manifest)
        phases = cost.trained_parameters_by_phase.values()
        assert row["trainable"] == round(sum(phases) / len(phases))
        assert row["download_bytes_per_round"] == cost.download_bytes_per_client_round
        assert row["client_memory_bytes_estimate"] == cost.client_memory_bytes_estimate
    assert {"lora", "norm", "head"} <= legal
    assert {"prefix", "bias"}.isdisjoint(legal)  # keys have no bias that matters


def test_rules_are_judged_with_the_plans_method(tiny_base: Path, tmp_path: Path) -> None:
    plan = plan_file(tiny_base, tmp_path, adapter={"method": "lora", "targets": ["query"]})
    costs = {
        row["name"]: row["trainable"] for row in rows("rules", "--base", tiny_base, "--plan", plan)
    }
    assert costs["mean"] > costs["alternating"] == costs["first"]


@pytest.mark.parametrize("command", ["methods", "rules"])
def test_for_people_the_costs_and_the_reasons(tiny_base: Path, command: str) -> None:
    done = CliRunner().invoke(app, [command, "--base", str(tiny_base)])
    assert done.exit_code == 0, done.output
    assert "KiB up" in done.stdout
    assert ("prefix: only a base that writes text" in done.stdout) == (command == "methods")
    listed = CliRunner().invoke(app, [command])
    assert "KiB up" not in listed.stdout


def test_a_plan_alone_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    plan = plan_file(tiny_base, tmp_path)
    done = CliRunner().invoke(app, ["methods", "--plan", str(plan)])
    assert done.exit_code == 2
    assert "--plan needs --base" in done.output


def test_files_are_forecast_with_the_positions_that_the_base_makes_of_each(
    tiny_denoiser: Path,
) -> None:
    """Whatever is assumed of texts."""
    manifest = read_manifest(tiny_denoiser)
    document = {
        "name": "p",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "image-generation", "labels": ["a", "b"]},
    }
    plan = plan_from(document, source="test")
    assert forecast(plan, manifest).assumed_tokens_per_row == manifest.max_positions == 4
    assert forecast(plan, manifest, tokens_per_row=99) == forecast(plan, manifest)
