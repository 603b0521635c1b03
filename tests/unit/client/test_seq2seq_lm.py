"""Sites that learn what texts become: which tokens are read, which count, and a step by these alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers, processors

from base_model.seq2seq.build import build_seq2seq
from base_model.seq2seq.folder import seq2seq_source
from base_model.seq2seq.torch_model import torch_seq2seq
from base_model.verify import read_manifest
from client.batches import collate
from client.data import Rows, load_rows
from client.training import train
from client.worker import Worker
from edge_runtime.seq2seq.base import Seq2SeqBase
from protocol.errors import DataError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from tests.unit.base_model.seq2seq.models import KINDS, write_model
from tests.unit.base_model.sources import WORDS_64
from tests.unit.client.chats import adapt

WORDS = WORDS_64[:12]


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert request.param in KINDS
    folder = tmp_path_factory.mktemp(request.param)
    source = write_model(folder / "source", request.param)
    out = folder / "base"
    build_seq2seq(seq2seq_source(str(source)), bits=4, out=out, calibration=None)
    return out


def plan_for(base: Path, **task: Any) -> Plan:
    targets = ["q", "v", "wo"] if read_manifest(base).family == "t5" else ["q_proj", "fc2"]
    document = {
        "name": "t",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"kind": "seq2seq-lm", "max_length": 12} | task,
        "adapter": {"rank": 2, "targets": targets},
        "rule": {"name": "mean"},
        "local": {"batch_size": 3, "optimizer": "sgd", "learning_rate": 0.5, "clip_norm": 1e9},
    }
    return plan_from(document, source="test")


@pytest.fixture(scope="module")
def worker(base: Path) -> Callable[..., Worker]:
    return lambda **task: Worker(plan_for(base, **task), base)


def pairs(*pairs: tuple[str, str]) -> Rows:
    return Rows(texts=[source for source, _ in pairs], targets=[target for _, target in pairs])


THREE = pairs(
    (WORDS[0], f"{WORDS[1]} {WORDS[2]}"), (" ".join(WORDS[:5]), WORDS[3]), (WORDS[6], WORDS[7])
)


def test_a_source_is_what_a_device_reads_and_all_of_the_target_counts(
    worker: Callable[..., Worker], base: Path
) -> None:
    device = Seq2SeqBase.open(base, threads=1)
    rows = worker(prefix=f"{WORDS[8]} ").encode(THREE)
    assert rows.ids[: rows.offsets[1]].tolist() == device.encode(f"{WORDS[8]} {WORDS[0]}")
    assert rows.target_offsets is not None
    target = rows.targets[: rows.target_offsets[1]].tolist()
    assert target[-1] == device.manifest.ends[0]
    assert target[-3:-1] == device.encode(f"{WORDS[1]} {WORDS[2]}", special=False)
    assert (rows.counted == np.diff(rows.target_offsets)).all()
    batch = collate(rows, np.array([0, 2]))
    assert batch.targets.shape[0] == 2
    assert (batch.targets[1] == -1).sum() == len(batch.targets[0]) - rows.counted[2]
    again = rows.take(np.array([2, 0])).take(np.array([1]))
    assert again.targets.tolist() == target


def test_a_step_follows_the_mean_over_the_targets(
    worker: Callable[..., Worker], base: Path
) -> None:
    site = worker()
    rows = site.encode(THREE)
    start = {name: value.copy() for name, value in site.recipe.start().items()}
    rng = np.random.default_rng(0)
    for name, value in start.items():
        if name.endswith("lora_B"):
            start[name] = rng.normal(0, 0.1, value.shape).astype(np.float32)
    parts = site.recipe.parts(1)
    after = train(site.engine, start, rows, local=site.plan.local, parts=parts, seed=0, epochs=1)
    model = torch_seq2seq(base).double()
    leaves = adapt(model, start, scaling=site.recipe.constants["scaling"])
    batch = collate(rows, np.arange(3))
    labels = np.where(batch.targets < 0, -100, batch.targets)
    output = model(
        input_ids=torch.from_numpy(batch.ids),
        attention_mask=torch.from_numpy(batch.mask),
        labels=torch.from_numpy(labels),
    )
    output.loss.backward()
    assert after.loss_sum / after.examples == pytest.approx(output.loss.item(), rel=1e-5)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        moved = (start[name] - after.tensors[name]) / 0.5
        largest = float(leaf.grad.abs().max())
        assert np.abs(moved - leaf.grad.numpy()).max() <= 1e-4 * largest, name
    score = site.score(start, rows)
    assert score.loss / score.tokens == pytest.approx(output.loss.item(), rel=1e-5)


def test_rows_are_read_by_the_plans_columns(worker: Callable[..., Worker], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"en": WORDS[0], "de": WORDS[1]}) + "\n")
    site = worker(source="en", target="de")
    rows = load_rows(path, site.plan.task)
    assert (rows.texts, rows.targets) == ([WORDS[0]], [WORDS[1]])
    path.write_text(json.dumps({"en": WORDS[0], "de": ""}) + "\n")
    with pytest.raises(DataError, match="line 1: column `de` is empty"):
        load_rows(path, site.plan.task)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_row_without_tokens_is_named_by_file_and_line(
    worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, side: str
) -> None:
    site = worker()
    bare = Tokenizer.from_str(site._base.tokenizer.to_str())
    bare.normalizer, bare.post_processor = (
        normalizers.Replace("secret", ""),
        processors.Sequence([]),
    )
    monkeypatch.setattr(site, "_base", replace(site._base, texts=bare))
    path, good = tmp_path / "rows.jsonl", {"source": WORDS[0], "target": WORDS[1]}
    path.write_text("\n\n".join(json.dumps(row) for row in (good, good | {side: "secret"})))
    with pytest.raises(DataError) as refused:
        site.encode(load_rows(path, site.plan.task))
    assert refused.value.cause == f"{path}: line 3: its {side} has no tokens"
    assert refused.value.public == "a row without tokens"
    left = worker(unanswered="skip")
    monkeypatch.setattr(left, "_base", site._base)
    assert len(left.encode(load_rows(path, left.plan.task))) == 1


@pytest.mark.parametrize("method", [{"method": "prompt"}, {"method": "prefix"}])
def test_prompts_are_refused_by_name(base: Path, method: dict[str, Any]) -> None:
    document = plan_for(base).model_dump(mode="json", exclude_defaults=True) | {"adapter": method}
    findings = check(plan_from(document, source="test"), read_manifest(base))
    errors = [finding for finding in findings if finding.severity == "error"]
    assert errors[0].field == "adapter.method"
