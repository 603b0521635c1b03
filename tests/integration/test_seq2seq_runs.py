"""A whole simulated run of what texts become, as `fedge init` proposes it: from rows to what a device writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.folder import seq2seq_source
from edge_runtime.decoder.generation import Request
from edge_runtime.seq2seq.base import Seq2SeqBase
from edge_runtime.seq2seq.generation import Translator
from server.history import read_history
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary
from tests.unit.base_model.seq2seq.models import write_model
from tests.unit.base_model.sources import WORDS_64

pytestmark = pytest.mark.slow
WORDS = WORDS_64[:20]
LARGER = [
    *("plan.rounds=3", "plan.seed=3", "plan.adapter.rank=8", 'plan.adapter.targets="all-linear"'),
    *("plan.local.epochs=4", "plan.local.learning_rate=1e-2", "plan.evaluation.holdout=0.2"),
    "yardsticks.alone=1",
]


def pairs(count: int, seed: int) -> str:
    """Lines of a file: two words become the second and the first; sites of five."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        first, second = rng.choice(WORDS, 2)
        row = {"document": f"{first} {second}", "summary": f"{second} {first}", "site": number % 5}
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def fedge(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedge", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    source = write_model(folder / "source", request.param)
    out = folder / "base"
    build_seq2seq(seq2seq_source(str(source)), bits=4, out=out, calibration=None)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("pairs")
    train, test, path = (folder / name for name in ("train.jsonl", "test.jsonl", "pairs.toml"))
    train.write_text(pairs(300, 1))
    test.write_text(pairs(40, 2))
    rows = ("--experiment", train, "--test", test)
    said = fedge("init", *rows, "--base", base, "--out", path)
    assert (said["column"], said["clients"]) == ("site", 5)
    out = folder / "run"
    return out, simulate(load_experiment(path, LARGER), out, resume=False, progress=NoProgress())


def test_what_texts_become_is_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    assert summary.audit == "ok"
    assert (summary.rounds_verified, summary.refused) == (3, None)
    assert summary.parity_tokens == [64, 64]
    before, after = summary.perplexity_before, summary.perplexity_federated
    assert before is not None
    assert after is not None
    assert after < 0.5 * before
    assert summary.perplexity_pooled is not None
    assert summary.perplexity_alone_mean is not None
    assert json.loads((out / "plan.json").read_text())["secrecy"]["exchange"] == "secagg"


def test_an_auditor_repeats_every_sum(finished: tuple[Path, Summary]) -> None:
    said = fedge("audit", "verify", finished[0])
    assert said["verdict"] == "ok"
    assert [entry["round"] for entry in said["rounds"]] == [0, 1, 2, 3]


def test_clients_count_the_perplexity_of_their_own_rows_in_secret(
    finished: tuple[Path, Summary],
) -> None:
    rounds = [event.values for event in read_history(finished[0]) if event.event == "clients"]
    held_out = [values["holdout_perplexity"] for values in rounds if "holdout_perplexity" in values]
    assert len(held_out) == 3
    assert held_out[-1] < held_out[0]  # each of the adapter that was received


def test_the_release_answers_on_a_device(finished: tuple[Path, Summary], base: Path) -> None:
    out, _ = finished
    release = out / "rounds" / "0003" / "adapter"
    device = Translator(Seq2SeqBase.open(base, threads=1))
    text = f"{WORDS[0]} {WORDS[1]}"
    tokens = device.base.encode(text)
    plain = [step.token for step in device.generate(tokens, Request(max_tokens=4))]
    device.adapters.load("run", release)
    steps = [step.token for step in device.generate(tokens, Request(adapter="run", max_tokens=4))]
    assert steps != plain
    asked = ("--adapter", release, "--max-tokens", "4", "--trust", out / "log" / "policy")
    said = fedge("edge", "generate", text, "--base", base, *asked)
    assert said["tokens"] == steps


def test_peft_opens_the_folder_on_transformers_own_model(
    finished: tuple[Path, Summary], base: Path
) -> None:
    from peft import PeftModel

    from base_model.seq2seq.torch_model import torch_seq2seq

    folder = finished[0] / "rounds" / "0003" / "adapter"
    model = PeftModel.from_pretrained(torch_seq2seq(base), str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(
        config["target_modules"]
    )


def test_a_release_by_hand_measures_the_same(finished: tuple[Path, Summary], base: Path) -> None:
    out, _ = finished
    rows = out.parent / "test.jsonl"
    said = fedge("release", out, "--base", base, "--rows", rows, "--round", "2")
    assert said["parity"]["tokens"] == [64, 64]
