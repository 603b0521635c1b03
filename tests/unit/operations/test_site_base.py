"""What a site checks before its processes start, or they do not: its base, fetched; its plan; its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from base_model.verify import read_manifest, verify_base
from fedge.sites import _fetch_base
from operations.coordinator import make_coordinator
from operations.site import Site
from operations.supervisor import LOCK
from protocol.errors import DataError, MachineError, PlanError
from storage.locks import locked
from tests.plan_texts import commented_plan

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def site(tiny_base: Path, tmp_path: Path) -> Site:
    """Enrolled by the command, with two mirrors; the first is not there."""
    coordinator = tmp_path / "coordinator"
    make_coordinator(
        coordinator,
        ["fl.example.org"],
        name="wards",
        ports=(9440, 9441, 9442),
        address="127.0.0.1",
        now=datetime.now(UTC),
    )
    for name in ("rows.jsonl", "plan.toml"):
        (tmp_path / name).touch()
    fingerprint = read_manifest(tiny_base).fingerprint
    command = [sys.executable, "-m", "fedge", "client", "enrol", str(tmp_path / "site")]
    command += ["--name", "ward-1", "--invitation", str(coordinator / "invitation.json")]
    command += ["--data", str(tmp_path / "rows.jsonl"), "--plan", str(tmp_path / "plan.toml")]
    command += ["--base", fingerprint, "--from", str(tmp_path / "gone"), "--from", str(tiny_base)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Site.open(Path(json.loads(done.stdout)["folder"]))


def test_it_is_fetched_into_the_sites_folder(site: Site, tiny_base: Path) -> None:
    site.verify_ready()
    _fetch_base(site)
    _fetch_base(site)
    assert verify_base(site.base) == read_manifest(tiny_base)
    assert site.base.parent == site.folder / "bases"
    node = next(c for c in site.components() if c.name == "supernode")
    assert f'base="{site.base}"' in node.command[-1]


def test_without_its_base_a_site_does_not_start(site: Site, tiny_base: Path) -> None:
    config = site.folder / "config.toml"
    config.write_text(config.read_text().replace(str(tiny_base), str(site.folder / "nothing")))
    with pytest.raises(MachineError, match=r"gone: manifest\.json: No such file"):
        _fetch_base(Site.open(site.folder))
    command = [sys.executable, "-m", "fedge", "client", "start", str(site.folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 8
    assert "nothing: manifest.json: No such file" in done.stderr
    assert not (site.state / "status.json").exists()


def client(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedge", "client", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("how", [[], ["--foreground"]], ids=["background", "service manager"])
def test_rows_that_do_not_fit_the_plan_keep_it_from_starting(
    site: Site, tiny_base: Path, tmp_path: Path, how: list[str]
) -> None:
    (tmp_path / "plan.toml").write_text(commented_plan(read_manifest(tiny_base).fingerprint))
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "topic": "yes"}\n')
    done = client("start", site.folder, *how)
    assert done.returncode == DataError.exit_code
    assert "rows.jsonl: line 1: the column `label` is missing" in done.stderr
    assert not (site.state / "status.json").exists()


def test_agreeing_by_the_command(site: Site, tiny_base: Path, tmp_path: Path) -> None:
    text = commented_plan(read_manifest(tiny_base).fingerprint).replace('"my-plan"', '"second"')
    (tmp_path / "second.toml").write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "yes"}\n')
    done = client("agree", site.folder, tmp_path / "second.toml", "--json")
    told = json.loads(done.stdout)
    assert (told["plan"], told["restart"]) == ("second", False)
    with locked(site.state / LOCK):
        done = client("agree", site.folder, tmp_path / "second.toml")
    assert told["digest"] in done.stdout
    assert "stop it and start it" in done.stdout
    assert Site.open(site.folder).settings.work.plan == str(tmp_path / "second.toml")
    refused = client("agree", site.folder, tmp_path / "rows.jsonl")
    assert refused.returncode == PlanError.exit_code
    assert Site.open(site.folder).settings.work.plan == str(tmp_path / "second.toml")
