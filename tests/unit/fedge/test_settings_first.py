"""A settings file that is wrong is refused before anything heavy is imported, by every command that takes one."""

from __future__ import annotations

import json
import subprocess
import sys

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
    assert {name: code for name, (code, _) in seen.items() if code not in (3, 5, 8)} == {}


def test_none_has_imported_anything_heavy(seen: dict[str, tuple[int, list[str]]]) -> None:
    assert {name: loaded for name, (_, loaded) in seen.items() if loaded} == {}
