"""`fedge edge serve --base`, top labels, rejection and temperature: one answer by every door."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.answer_options import AnswerOptions
from edge_runtime.base import EdgeBase
from edge_runtime.calibrating import calibrate_release
from edge_runtime.runtime import EdgeRuntime
from protocol.calibration import probabilities
from tests.unit.fedge.test_command_line import ROOT, fedge

TEXTS = ["turn on the kitchen light", "play some music", "the", "a"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "fedge", "edge", "serve", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.wait()


def asked(url: str, **question: object) -> dict[str, Any]:
    body = json.dumps({"texts": TEXTS} | question).encode()
    request = urllib.request.Request(
        f"{url}/v1/classify", body, {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.fixture(scope="module")
def calibrated(
    tiny_base: Path, released: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Adapter a with a temperature, fitted on a few rows."""
    folder = shutil.copytree(released["a"], tmp_path_factory.mktemp("calibrated") / "a")
    note, accuracy = calibrate_release(folder, tiny_base, TEXTS, [0, 1, 2, 0])
    assert note.calibration is not None
    assert note.calibration.rows == len(TEXTS)
    assert 0 <= accuracy <= 1
    return folder


def test_every_door_gives_the_same_answer(tiny_base: Path, calibrated: Path) -> None:
    runtime = EdgeRuntime(EdgeBase.open(tiny_base))
    adapter = runtime.activate(calibrated)
    assert adapter.note.calibration is not None
    shares = probabilities(runtime.logits(TEXTS), adapter.note.calibration.temperature)
    bar = float(np.median(shares.max(-1)))
    options = ("--base", tiny_base, "--adapter", calibrated, "--top", 2, "--reject-below", bar)
    expected = [
        answer.form(AnswerOptions(top=2, reject_below=bar))
        for answer in runtime.infer(TEXTS, options=AnswerOptions(top=2, reject_below=bar))
    ]
    assert [row["score"] for row in expected] == pytest.approx(shares.max(-1))
    assert {row["rejected"] for row in expected} == {True, False}
    for row, share in zip(expected, shares, strict=True):
        assert (row["label"] is None) == row["rejected"] == (row["score"] < bar)
        assert [choice["index"] for choice in row["top"]] == np.argsort(-share)[:2].tolist()
    done = fedge("edge", "infer", *options, "--json", *TEXTS)
    inferred = json.loads(done.stdout)
    assert [row.pop("text") for row in inferred] == TEXTS
    assert inferred == expected
    shown = fedge("edge", "infer", *options, *TEXTS).stdout
    assert shown.count("(rejected)") == sum(row["rejected"] for row in expected)
    with serving(*options, "--port", 0, "--json") as (line, process):
        url = json.loads(line)["url"]
        found = asked(url)
        assert found["answers"] == expected
        assert (len(found["release"]), found["seq"]) == (64, None)
        plain = asked(url, top=1, reject_below=0)
        assert plain["answers"] == [answer.form(AnswerOptions()) for answer in runtime.infer(TEXTS)]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0


def test_a_base_alone_is_served_until_it_is_told_to_stop(tiny_base: Path) -> None:
    with serving("--base", tiny_base, "--port", 0) as (line, process):
        assert line.startswith("listening on http://127.0.0.1:")
        url = line.removeprefix("listening on ")
        found = asked(url)
        assert found["release"] is None
        expected = EdgeRuntime(EdgeBase.open(tiny_base)).infer(TEXTS)
        assert found["answers"] == [answer.form(AnswerOptions()) for answer in expected]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (out, err.count("the base has no head of its own")) == ("", 1)
        assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("device.toml", "--base", "b"),
        ("device.toml", "--adapter", "a"),
        ("--base", "b", "--top", "0"),
        ("--base", "b", "--reject-below", "1.5"),
        ("--base", "b", "--port", "65536"),
    ],
)
def test_what_does_not_go_together_is_wrong_use(arguments: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    from edge_runtime.commands import app

    assert CliRunner().invoke(app, ["serve", *arguments]).exit_code == 2


def test_a_temperature_changes_no_label(tiny_base: Path, calibrated: Path) -> None:
    runtime = EdgeRuntime(EdgeBase.open(tiny_base))
    with_temperature = runtime.activate(calibrated)
    sober = runtime.infer(TEXTS)
    without = with_temperature.note.model_copy(update={"calibration": None})
    object.__setattr__(with_temperature, "note", without)
    certain = runtime.infer(TEXTS)
    assert [answer.label for answer in sober] == [answer.label for answer in certain]
    assert [answer.logits for answer in sober] == [answer.logits for answer in certain]
    assert [answer.score for answer in sober] != [answer.score for answer in certain]
