"""A whole simulated run of text that follows text: from chats to what a device writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from delivery.evidence import About
from delivery.gate import Bar, examine, run_audit
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.generation import Generator, Request
from edge_runtime.passport import read_policy
from protocol.errors import ArtefactError, DataError
from server.history import read_history
from simulations.compare import comparison, grouped, run_files
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate
from simulations.summary import Summary
from tests.unit.base_model.decoder.models import write_decoder
from tests.unit.base_model.sources import WORDS_64

pytestmark = pytest.mark.slow
WORDS = WORDS_64[:20]


def chats(count: int, seed: int) -> list[dict[str, Any]]:
    """The answer to two words is the second and the first."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        first, second = rng.choice(WORDS, 2)
        messages = [
            {"role": "user", "content": f"{first} {second}"},
            {"role": "assistant", "content": f"{second} {first}"},
        ]
        rows.append({"messages": messages})
    return rows


def fedge(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "fedge", *arguments, "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def fedge_plain(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fedge", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    source = write_decoder(folder / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Whitespace"}, {"type": "Digits", "individual_digits": True}],
    }
    vocabulary = tokenizer["model"]["vocab"]
    for number, word in enumerate(["locker", "code", "What", *"0123456789"]):
        vocabulary[word] = vocabulary.pop(WORDS_64[-1 - number])
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    out = folder / "base"
    build_decoder(decoder_source(str(source)), bits=4, out=out, calibration=None)
    return out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("texts")
    for name, count, seed in (("train", 300, 1), ("test", 40, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in chats(count, seed))
        (folder / f"{name}.jsonl").write_text(lines)
    path = folder / "texts.toml"
    path.write_text(
        f"""
format = 1
name = "texts"
base.folder = {json.dumps(str(base))}
data = {{ train = "train.jsonl", test = "test.jsonl" }}
population = {{ clients = 5, partition = "iid" }}
yardsticks = {{ alone = 1, personal = 2, personal_epochs = 1 }}
memorisation = {{ canaries = 2, repeats = 60, members = 30 }}
[plan]
seed = 3
rounds = 3
task = {{ kind = "causal-lm", max_length = 32 }}
adapter = {{ rank = 8, targets = "all-linear" }}
rule.name = "mean"
cohort = {{ size = 5, quorum = 4 }}
local = {{ batch_size = 8, epochs = 2, learning_rate = 1e-2 }}
evaluation.holdout = 0.2
"""
    )
    out = folder / "run"
    return out, simulate(load_experiment(path), out, resume=False, progress=NoProgress())


def test_texts_are_learnt_in_secret_rounds(finished: tuple[Path, Summary]) -> None:
    _, summary = finished
    assert summary.audit == "ok"
    assert summary.rounds_verified == 3
    assert summary.refused is None
    assert summary.parity_tokens == [64, 64]
    before, after = summary.perplexity_before, summary.perplexity_federated
    assert before is not None
    assert after is not None
    assert after < 0.2 * before
    assert summary.perplexity_pooled is not None
    assert summary.perplexity_alone_mean is not None
    # One machine's rows or another's: chance alone sets them apart, so each is tested on all rows.
    assert summary.perplexity_global_on_own_mean == summary.perplexity_federated
    assert summary.perplexity_personal_mean is not None
    assert summary.perplexity_personal_mean < before
    assert summary.perplexity_alone_on_own_mean == summary.perplexity_alone_mean
    assert (summary.accuracy_federated, summary.nrmse_federated, summary.labels) == (None, None, 0)


def test_clients_count_the_perplexity_of_their_own_rows_in_secret(
    finished: tuple[Path, Summary],
) -> None:
    out, _ = finished
    rounds = [event.values for event in read_history(out) if event.event == "clients"]
    held_out = [values["holdout_perplexity"] for values in rounds if "holdout_perplexity" in values]
    assert len(held_out) == 3
    assert held_out[-1] < 0.5 * held_out[0]  # each of the adapter that was received


def test_every_device_is_measured_on_rows_that_it_kept_out(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    served = {name: entry["federated"] for name, entry in summary.per_client.items()}
    assert len(served) == 5
    assert summary.perplexity_before is not None
    assert all(1 < quality < summary.perplexity_before for quality in served.values())
    assert f"{max(served.values()):.2f}" in (out / "report.html").read_text()


def test_the_report_shows_what_a_device_writes_before_and_after(
    finished: tuple[Path, Summary],
) -> None:
    out, _ = finished
    written = json.loads((out / "samples.json").read_text())
    samples = written["rows"]
    assert len(samples) == 4
    assert written["scores"]["federated"]["chrf"] > written["scores"]["before"]["chrf"]
    assert samples[0].keys() == {"prompt", "reference", "before", "federated"}
    assert any(sample["federated"] != sample["before"] for sample in samples)
    page = (out / "report.html").read_text()
    assert "What a device writes" in page
    assert "Test perplexity per round" in page
    body = comparison(grouped(run_files(out)))
    assert body["groups"][0]["figures"]["perplexity_federated"]["values"]


def test_the_release_answers_on_a_device_and_not_elsewhere(
    finished: tuple[Path, Summary], base: Path, tmp_path: Path
) -> None:
    out, _ = finished
    release = out / "rounds" / "0003" / "adapter"
    generator = Generator(DecoderBase.open(base, threads=1))
    generator.adapters.load("run", release)
    text = f"user: {WORDS[0]} {WORDS[1]}"
    tokens = generator.base.encode(text)
    steps = generator.generate(tokens, Request(adapter="run", max_tokens=4))
    asked = ("--adapter", str(release), "--max-tokens", "4", "--trust", str(out / "log" / "policy"))
    said = fedge("edge", "generate", text, "--base", str(base), *asked)
    assert said["tokens"] == [step.token for step in steps]
    other = write_decoder(tmp_path / "source", seed=9)
    build_decoder(decoder_source(str(other)), bits=4, out=tmp_path / "base", calibration=None)
    stranger = Generator(DecoderBase.open(tmp_path / "base", threads=1))
    with pytest.raises(ArtefactError, match="belongs to base"):
        stranger.adapters.load("run", release)


def test_the_release_goes_through_a_repository_to_a_device(
    finished: tuple[Path, Summary], base: Path, tmp_path: Path
) -> None:
    """As a publisher and a device's owner type it: the gate, a canary, its probe, what it writes then."""
    out, _ = finished
    keys = ("--keys", str(tmp_path / "keys"))
    fedge_plain("deploy", "init", str(tmp_path / "repo"), *keys)
    offered = ("--repo", str(tmp_path / "repo"), *keys, "--base", str(base), "--floor", "0.01")
    fedge_plain("deploy", "publish", str(out), *offered)
    generator = Generator(DecoderBase.open(base, threads=1))
    generator.adapters.load("run", out / "rounds" / "0003" / "adapter")
    said = {}
    for first, second in pairwise(WORDS):
        text = f"user: {first} {second}"
        tokens = generator.base.encode(text)
        steps = generator.generate(tokens, Request(adapter="run", max_tokens=4))
        said[text] = "".join(step.text for step in steps)
    rows = [{"text": text, "contains": answer} for text, answer in said.items() if answer]
    limits = {"least_correct": len(rows), "most_latency_ms": 5000, "most_memory_mb": 500}
    (tmp_path / "probe.json").write_text(json.dumps({"rows": rows, "max_tokens": 4, **limits}))
    lines = {
        "id": "kiosk",
        "name": "texts",
        "channel": "canary",
        "repository": "repo",
        "root": "repo/root.json",
        "trust": str(out / "log" / "policy"),
        "base": str(base),
        "store": "store",
        "probe": "probe.json",
    }
    device = tmp_path / "device.toml"
    device.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    state = fedge("edge", "update", str(device))
    assert f"{len(rows)} of {len(rows)} right" in state["outcome"]
    text = rows[0]["text"]
    written = fedge("edge", "generate", text, "--device", str(device), "--max-tokens", "4")
    assert written["text"] == said[text]


def test_secrets_that_stand_often_are_learnt_by_heart(finished: tuple[Path, Summary]) -> None:
    out, summary = finished
    measured = json.loads((out / "memorisation.json").read_text())
    assert measured["exposure_most"] == 8.0
    assert summary.exposure == measured["exposure"]
    assert summary.exposure > 4  # 60 rows of 100 with one device
    assert summary.membership_auc is not None
    assert 0.3 < summary.membership_auc < 0.9
    assert "Learnt by heart" in (out / "report.html").read_text()


@pytest.mark.parametrize(("most", "passes"), [("exposure=8", True), ("exposure=2", False)])
def test_a_gate_may_bound_what_was_learnt_by_heart(
    finished: tuple[Path, Summary], base: Path, most: str, passes: bool
) -> None:
    out, _ = finished
    name, value = most.split("=")
    bar = Bar(floor=10, margin=0, previous=None, most={name: 1000 * int(value)})
    policy = read_policy(out / "log" / "policy")
    verdict = examine(
        out,
        3,
        About(name="t", seq=1, channel="canary"),
        base=base,
        policy=policy,
        bar=bar,
        audited=lambda: run_audit(out, policy),
    )
    checks = {check.name: check.passed for check in verdict.checks}
    assert checks.pop("bounds") is passes
    assert all(checks.values())
    assert (verdict.bundle is not None) is passes


def test_peft_opens_the_folder_on_transformers_own_model(
    finished: tuple[Path, Summary], base: Path
) -> None:
    from peft import PeftModel

    from base_model.decoder.torch_model import torch_decoder

    folder = finished[0] / "rounds" / "0003" / "adapter"
    model = PeftModel.from_pretrained(torch_decoder(base), str(folder))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert not {"modules_to_save", "auto_mapping"} & config.keys()
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 14


def test_a_release_by_hand_measures_the_same(finished: tuple[Path, Summary], base: Path) -> None:
    out, summary = finished
    rows = out.parent / "test.jsonl"
    said = fedge("release", str(out), "--base", str(base), "--rows", str(rows), "--round", "2")
    assert said["parity"]["tokens"] == [64, 64]
    assert summary.perplexity_federated is not None


def test_a_row_that_cannot_be_learnt_is_named_in_the_experiments_own_file(
    base: Path, tmp_path: Path
) -> None:
    rows = chats(200, 1)
    rows[150] = {
        "messages": [rows[0]["messages"][0] | {"content": " ".join(WORDS)}, rows[0]["messages"][1]]
    }
    path, out = tmp_path / "rows.jsonl", tmp_path / "e.toml"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = fedge("init", "--experiment", str(path), "--base", str(base), "--out", str(out))
    assert said["task"] | {"max_length": 0} == {
        "kind": "causal-lm",
        "form": "messages",
        "max_length": 0,
        "unanswered": "skip",
    }
    strict = load_experiment(out, ['plan.task.unanswered="refuse"'])
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: line 151: its answer begins"):
        simulate(strict, tmp_path / "run", resume=False, progress=NoProgress())


def test_a_soft_prompt_of_a_decoder_is_shown_in_words(base: Path, tmp_path: Path) -> None:
    """Rows that were drawn and hardly trained: what they are near to is in summary and report."""
    for name, count, seed in (("train", 60, 1), ("test", 10, 2)):
        lines = "".join(json.dumps(row) + "\n" for row in chats(count, seed))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    path = tmp_path / "texts.toml"
    path.write_text(
        f"""
format = 1
name = "prompted"
base.folder = {json.dumps(str(base))}
data = {{ train = "train.jsonl", test = "test.jsonl" }}
population = {{ clients = 4, partition = "iid" }}
yardsticks = {{ alone = 0, pooled = false }}
[plan]
rounds = 1
task = {{ kind = "causal-lm", max_length = 32 }}
adapter = {{ method = "prompt", tokens = 3 }}
rule.name = "mean"
cohort = {{ size = 4, quorum = 3 }}
local = {{ batch_size = 8, epochs = 1, learning_rate = 1e-3 }}
"""
    )
    out = tmp_path / "run"
    summary = simulate(load_experiment(path), out, resume=False, progress=NoProgress())
    words = json.loads((out / "summary.json").read_text())["prompt_words"]
    assert words == summary.prompt_words
    assert [len(row["nearest"]) for row in words] == [5] * 3
    first = words[0]["nearest"][0]
    assert f"<td>{escape(first['token'])} ({first['similarity']:.2f})</td>" in (
        (out / "report.html").read_text()
    )
