"""A settings file that is wrong is refused before anything heavy is imported, by every command that takes one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "transformers", "flwr", "peft", "datasets", "onnx", "onnxruntime", "tuf"]
PROGRAM = f"""
import json, sys
from fedge.main import main
seen, known = {{}}, set()
for name, arguments in json.loads(sys.argv[1]).items():
    try:
        main(arguments)
    except SystemExit as stop:
        code = stop.code
    loaded = set({HEAVY!r}) & set(sys.modules)
    seen[name] = [code, sorted(loaded - known)]
    known |= loaded
print("\\n" + json.dumps(seen))
"""


def odd_experiments(folder: Path) -> dict[str, list[str]]:
    """Experiments that are well formed, and cannot be run: what is wrong is beside the file."""
    rows = [{"text": f"t {n}", "label": "ab"[n % 2], "room": "xyz"[n % 3]} for n in range(30)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "experiment.toml"
    file.write_text(
        'name = "e"\n[base]\nsource = "./none"\n[data]\ntrain = "rows.jsonl"\nholdout = 0.2\n'
        "[population]\nclients = 3\n[plan.cohort]\nsize = 3\nquorum = 3\n"
    )
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("precious")
    sets = {
        "a base folder": ["base.folder=none", "base.source="],
        "a source": ["base.source=./none"],
        "a package": ["base.source=package:none_of_this/model"],
        "a column": ["plan.task.label=labels"],
        "rows": ["data.train=none.jsonl"],
        "labels": ['plan.task.labels=["A","b"]'],
        "devices": ["population.clients=500", "plan.cohort.size=3"],
        "values": ["population.partition=column", "population.column=room", "population.clients=5"],
        "a start": [f"start={json.dumps(str(folder / 'none'))}"],
    }
    commands = {
        f"simulate, {what}": [
            *(str(file), "--out", str(folder / f"run-{number}")),
            *(part for each in each_sets for part in ("--set", each)),
        ]
        for number, (what, each_sets) in enumerate(sets.items())
    }
    return commands | {"simulate, its folder": [str(file), "--out", str(folder / "full")]}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, list[str]]]:
    folder = tmp_path_factory.mktemp("bad")
    bad, good = folder / "bad.toml", folder / "coordinator"
    bad.write_text("format = ]\n")
    good.mkdir()
    (good / "config.toml").write_text(
        'format = 1\nname = "c"\n[public]\nhosts = ["localhost"]\n', "utf-8"
    )
    (folder / "config.toml").write_text("format = ]\n")
    (folder / "plan.json").write_text("{")
    wrong, own = str(bad), str(folder)
    base = ["--base", own]
    commands = {
        "simulate": ["simulate", wrong],
        "simulate --seeds": ["simulate", wrong, "--seeds", "1-3"],
        "plan check": ["plan", "check", wrong],
        "plan check --measure": ["plan", "check", wrong, "--measure"],
        "run, its plan": ["run", wrong, "--coordinator", str(good), *base],
        "run, its coordinator": ["run", wrong, "--coordinator", own, *base],
        "coordinator start": ["coordinator", "start", own],
        "coordinator stop": ["coordinator", "stop", own],
        "coordinator status": ["coordinator", "status", own],
        "coordinator remove": ["coordinator", "remove", own, "w"],
        "coordinator admit": ["coordinator", "admit", own, wrong],
        "client enrol": [
            *("client", "enrol", f"{own}/new", "--name", "w", "--plan", wrong),
            *("--invitation", f"{own}/none.json"),
        ],
        "client start": ["client", "start", own],
        "client agree": ["client", "agree", own, wrong],
        "client status": ["client", "status", own],
        "client stop": ["client", "stop", own],
        "status": ["status", own],
        "edge update": ["edge", "update", wrong],
        "edge activate": ["edge", "activate", wrong],
        "edge rollback": ["edge", "rollback", wrong],
        "edge status": ["edge", "status", wrong],
        "edge serve": ["edge", "serve", wrong],
        "edge infer": ["edge", "infer", "--device", wrong, "a text"],
    }
    commands |= {name: ["simulate", *more] for name, more in odd_experiments(folder).items()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    last: dict[str, tuple[int, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_every_command_refuses_it(seen: dict[str, tuple[int, list[str]]]) -> None:
    assert {name: code for name, (code, _) in seen.items() if code not in (3, 4, 5, 8)} == {}


def test_none_has_imported_anything_heavy(seen: dict[str, tuple[int, list[str]]]) -> None:
    assert {name: loaded for name, (_, loaded) in seen.items() if loaded} == {}
