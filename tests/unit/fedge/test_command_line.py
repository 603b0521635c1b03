"""The command line as a user meets it: real processes, two lines for an error, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedge.main import main
from protocol.plan import Plan, parse_plan
from simulations.experiment import load_experiment
from tests.plan_texts import commented_plan

ROOT = Path(__file__).resolve().parents[3]


def fedge(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedge", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=None if cwd == ROOT else _env(),
    )


def _env() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_init_writes_a_plan_that_check_accepts(tiny_base: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    assert fedge("init", "--base", tiny_base, "--out", plan).returncode == 0
    again = fedge("init", "--out", plan)
    assert (again.returncode, "exists already" in again.stderr) == (5, True)
    done = fedge("plan", "check", plan, "--base", tiny_base, "--json")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["legal"] is True
    assert body["forecast"]["adapter_parameters"] > 0
    assert not any("INSECURE" in finding["cause"] for finding in body["findings"])


def test_a_plans_head_begins_with_the_labels_names(tiny_base: Path, tmp_path: Path) -> None:
    plan, named = tmp_path / "plan.toml", tmp_path / "named.toml"
    assert fedge("init", "--base", tiny_base, "--out", plan).returncode == 0
    text = plan.read_text("utf-8").replace('["no", "yes"]', '["play_music", "the_light"]')
    plan.write_text(text, "utf-8")
    command = ("plan", "head", plan, "--base", tiny_base, "--out", named, "--fixed", "--json")
    done = fedge(*command)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    before, after = (parse_plan(path.read_text("utf-8"), source="t") for path in (plan, named))
    assert (body["labels"], body["digest"]) == (2, after.digest)
    assert after.head is not None
    assert not after.head.trained
    assert after.model_copy(update={"head": None}).digest == before.digest
    low = tmp_path / "low.toml"
    command = ("plan", "head", plan, "--base", tiny_base, "--out", low, "--rank", "1", "--json")
    assert fedge(*command).returncode == 0
    mixed = parse_plan(low.read_text("utf-8"), source="t").head
    assert mixed is not None
    assert mixed.directions is not None
    assert (len(mixed.directions.rows), mixed.codes.shape, mixed.width) == (
        1,
        (2, 1),
        after.head.width,
    )
    fault = fedge(*command[:6], tmp_path / "x.toml", "--rank", "4000")
    assert (fault.returncode, "directions, not 4000" in fault.stderr) == (3, True), fault.stderr
    fault = fedge(*command[:6], tmp_path / "x.toml", "--rank", "1", "--fixed")
    assert (fault.returncode, "is trained" in fault.stderr) == (3, True), fault.stderr
    fault = fedge(*command[:6], tmp_path / "x.toml", "--turns", "2")
    assert (fault.returncode, "name their number too, the rank" in fault.stderr) == (3, True)
    other = tmp_path / "other.toml"
    other.write_text(plan.read_text("utf-8").replace(before.base.fingerprint, "1" * 64), "utf-8")
    refused = fedge("plan", "head", other, "--base", tiny_base, "--out", tmp_path / "x.toml")
    assert (refused.returncode, "another base" in refused.stderr) == (3, True)
    assert not (tmp_path / "x.toml").exists()


def test_init_proposes_an_experiment_over_rows(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"text": f"text {n}", "label": "ab"[n % 2], "user": n % 3} for n in range(30)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    command = ("init", "--experiment", rows, "--out", tmp_path / "e.toml")
    done = fedge(*command, "--json")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert (body["text"], body["label"], body["column"], body["clients"]) == (
        "text",
        "label",
        "user",
        3,
    )
    assert load_experiment(tmp_path / "e.toml").population.column == "user"
    again = fedge(*command)
    assert (again.returncode, "exists already" in again.stderr) == (5, True)
    assert fedge("init", "--test", rows).returncode == 2


def test_a_fingerprint_is_shown_whole(tiny_base: Path) -> None:
    fingerprint = json.loads(fedge("base", "inspect", tiny_base, "--json").stdout)["fingerprint"]
    for command in ("inspect", "verify"):
        assert fingerprint in fedge("base", command, tiny_base).stdout


@pytest.mark.parametrize(
    ("key", "wrong"), [("name", '"alternate"'), ("targets", '["nothing"]')], ids=["rule", "targets"]
)
def test_a_finding_names_its_field_once(
    tiny_base: Path, tmp_path: Path, key: str, wrong: str
) -> None:
    section, default = {
        "name": ("rule", '"alternating"'),
        "targets": ("adapter", '"query-value"'),
    }[key]
    text = commented_plan(json.loads((tiny_base / "manifest.json").read_text())["fingerprint"])
    assert f"{key} = {default}" in text
    plan = tmp_path / "plan.toml"
    plan.write_text(text.replace(f"{key} = {default}", f"{key} = {wrong}"))
    done = fedge("plan", "check", plan, "--base", tiny_base)
    assert done.returncode == 3
    assert done.stdout.count(f"`{section}.{key}`") == 1


def test_help_offers_only_what_works() -> None:
    for group in ("base", "plan", "coordinator", "client", "audit", "edge", "deploy", "log"):
        assert "completion" not in fedge(group, "--help").stdout


def test_the_commented_plan_has_every_key_at_its_default() -> None:
    text = commented_plan("0" * 64)
    plan = parse_plan(text, source="init")
    minimal = parse_plan(
        f'name = "my-plan"\n[base]\nfingerprint = "{"0" * 64}"\n[task]\nlabels = ["no", "yes"]\n',
        source="x",
    )
    assert plan == minimal
    for name, field in Plan.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            for key in field.annotation.model_fields:
                assert f"\n{key} = " in text.partition(f"[{name}]")[2]


@pytest.mark.parametrize(
    ("plan", "code", "cause", "remedy"),
    [
        ("[local]\nlerning_rate = 1", 3, "unknown key `local.lerning_rate`", "`learning_rate`"),
        ("rounds = 'ten'", 3, "`rounds`", "correct"),
        ("= 1", 3, "not valid TOML", "line"),
    ],
)
def test_a_wrong_plan_gives_two_lines_and_its_code(
    tmp_path: Path, plan: str, code: int, cause: str, remedy: str
) -> None:
    (tmp_path / "p.toml").write_text(plan)
    done = fedge("plan", "check", tmp_path / "p.toml")
    lines = done.stderr.strip().splitlines()
    assert done.returncode == code
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert cause in lines[0]
    assert lines[1].startswith("fix: ")
    assert remedy in lines[1]
    as_json = fedge("plan", "check", tmp_path / "p.toml", "--json")
    assert as_json.returncode == code
    assert cause in json.loads(as_json.stdout)["error"]["cause"]


def test_an_illegal_plan_exits_with_3(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        commented_plan("0" * 64).replace('name = "alternating"', 'name = "prompt"')
    )
    done = fedge("plan", "check", tmp_path / "p.toml")
    assert done.returncode == 3
    assert "must not be run" in done.stdout


EXPERIMENT = """format = 1
name = "t"
[base]
source = "{source}"
[data]
train = "train.jsonl"
test = "test.jsonl"
[population]
clients = 3
partition = "iid"
[plan]
name = "t"
rounds = 2
task = {{ max_length = 16 }}
cohort = {{ size = 3, quorum = 3 }}
"""


@pytest.mark.parametrize(
    ("rows", "change", "code", "cause"),
    [
        ('{"text": "a", "label": "x"}\n{"text": 5, "label": "y"}', "", 4, "train.jsonl"),
        ('{"text": "a", "label": "x"}\n{"txt": "a", "label": "y"}', "", 4, "line 2"),
        ('{"text": "a", "label": "x"}\nnot json', "", 4, "line 2"),
        ("", "", 4, "train.jsonl"),
        ('{"text": "a", "label": "x"}', "iid -> iidd", 3, "population.partition"),
        ('{"text": "a", "label": "x"}', "train.jsonl -> gone.jsonl", 8, "gone.jsonl"),
    ],
)
def test_wrong_data_and_experiments_leave_nothing_half_written(
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: str,
    change: str,
    code: int,
    cause: str,
) -> None:
    text = EXPERIMENT.format(source=tiny_source)
    if change:
        old, new = change.split(" -> ")
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "e.toml").write_text(text)
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "x"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "e.toml", "--out", "out", "--quiet"])
    said = capsys.readouterr().err
    assert ended.value.code == code, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "fix: "))]
    assert [line.split(":")[0] for line in lines] == ["error", "fix"]
    assert cause in lines[0]
    assert not (tmp_path / "out" / "rounds").exists()


def test_usage_errors_exit_with_2_and_name_the_nearest_command() -> None:
    done = fedge("simulat")
    assert done.returncode == 2
    assert "simulate" in done.stderr


def test_a_missing_extra_names_itself(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\nfrom fedge.main import main\n"
        f"main(['edge', 'infer', '--base', {str(tmp_path)!r}, 'hello'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 8
    assert ".[edge]" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["base", "build"], "Hub id"),
        (["edge", "generate"], "text to continue"),
        (["edge", "infer"], "texts"),
    ],
)
def test_help_says_what_an_argument_is(command: list[str], words: str) -> None:
    """click 8.5 takes the help of arguments away from typer 0.20: constraints.txt has an older one."""
    done = subprocess.run(
        [sys.executable, "-m", "fedge", *command, "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    arguments = done.stdout.partition("Arguments")[2].partition("Options")[0]
    assert words in arguments
