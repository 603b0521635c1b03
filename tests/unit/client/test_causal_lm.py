"""Sites that learn text: training by the tokens that count alone, programs, and plans that fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from base_model.decoder.torch_model import torch_decoder
from base_model.programs.folder import keep_program, open_program
from base_model.verify import read_manifest
from client.batches import collate
from client.engine.choice import forget
from client.training import train
from client.worker import Worker
from protocol.errors import ArtefactError, PlanError
from protocol.legality import check
from protocol.plan import plan_from
from tests.unit.client.chats import WORDS, adapt, chat, plan_for, rows_of


def test_a_step_follows_the_mean_over_the_tokens_that_count(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path]
) -> None:
    """One step of SGD is minus the rate times the gradient: transformers', by autograd, in 64 bits."""
    site = chat_site()
    rows = site.encode(
        rows_of(chat(WORDS[0], WORDS[1]), chat(WORDS[2], " ".join(WORDS)), chat(*WORDS[:4]))
    )
    start = {name: value.copy() for name, value in site.recipe.start().items()}
    rng = np.random.default_rng(0)
    for name, value in start.items():
        if name.endswith("lora_B"):
            start[name] = rng.normal(0, 0.1, value.shape).astype(np.float32)
    parts = site.recipe.parts(1)
    after = train(site.engine, start, rows, local=site.plan.local, parts=parts, seed=0, epochs=1)
    assert (after.steps, after.examples) == (1, 3)
    model = torch_decoder(chat_bases["chat"]).double()
    leaves = adapt(model, start, scaling=site.recipe.constants["scaling"])
    batch = collate(rows, np.arange(3))
    labels = np.concatenate([np.full((3, 1), -100), batch.targets[:, :-1]], 1)
    labels[labels < 0] = -100
    output = model(
        input_ids=torch.from_numpy(batch.ids),
        attention_mask=torch.from_numpy(batch.mask),
        labels=torch.from_numpy(labels),
    )
    output.loss.backward()
    assert after.loss_sum / after.examples == pytest.approx(output.loss.item(), rel=1e-5)
    for name, leaf in leaves.items():
        moved = (start[name] - after.tensors[name]) / 0.5
        largest = float(leaf.grad.abs().max())
        assert np.abs(moved - leaf.grad.numpy()).max() <= 1e-4 * largest, name


def test_scores_are_sums_over_the_tokens_that_count(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path]
) -> None:
    site = chat_site()
    rows = site.encode(rows_of(*(chat(WORDS[at], " ".join(WORDS[: at + 1])) for at in range(5))))
    score = site.score(site.recipe.start(), rows)
    model = torch_decoder(chat_bases["chat"])
    loss = tokens = right = 0.0
    for row in range(len(rows)):
        batch = collate(rows, np.array([row]))
        logits = model(input_ids=torch.from_numpy(batch.ids)).logits[0]
        counted = batch.targets[0] >= 0
        wanted = torch.from_numpy(batch.targets[0][counted])
        loss += torch.nn.functional.cross_entropy(logits[counted], wanted, reduction="sum").item()
        right += int((logits[counted].argmax(-1) == wanted).sum())
        tokens += int(counted.sum())
    assert (score.tokens, score.right, score.examples) == (tokens, right, 5)
    assert score.loss == pytest.approx(loss, rel=1e-5)
    assert list(score.metrics) == ["eval_examples", "eval_tokens", "eval_right", "eval_loss"]


def test_micro_batches_change_nothing_but_roundings(
    chat_site: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = chat_site()
    rows = site.encode(rows_of(*(chat(WORDS[at], " ".join(WORDS[: at + 1])) for at in range(6))))
    start, parts = site.recipe.start(), site.recipe.parts(1)

    def trained() -> dict[str, Any]:
        return train(site.engine, start, rows, local=site.plan.local, parts=parts, seed=0).tensors

    whole = trained()
    monkeypatch.setattr("client.training.MOST_OF_TEXTS", 20)
    for name, value in trained().items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-3, atol=2e-4)


def test_a_program_of_a_decoder_holds_no_weight_and_opens_again(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path], tmp_path: Path
) -> None:
    forget()
    site = chat_site()
    program = site.engine._program
    weights = (chat_bases["chat"] / "weights.safetensors").stat().st_size
    assert max(map(len, program.graphs.values())) < weights
    assert program.document.task == "causal-lm"
    keep_program(program, tmp_path / "program")
    opened = open_program(tmp_path / "program", site.recipe)
    assert opened.graphs == program.graphs


@pytest.mark.parametrize(
    ("base", "sections", "field"),
    [
        ("plain", {}, "task.form"),
        ("chat", {"local": {"engine": "torch"}}, "local.engine"),
        ("chat", {"adapter": {"method": "head"}}, "adapter.method"),
        ("chat", {"task": {"labels": ["a", "b"]}}, "task.kind"),
        ("chat", {"task": {"kind": "causal-lm", "max_length": 97}}, "task.max_length"),
        ("chat", {"adapter": {"targets": ["query"]}}, "adapter.targets"),
    ],
)
def test_a_plan_that_does_not_fit_the_base_says_so(
    chat_bases: dict[str, Path], base: str, sections: dict[str, Any], field: str
) -> None:
    manifest = read_manifest(chat_bases[base])
    document = plan_for(chat_bases[base]).model_dump(mode="json", exclude_defaults=True)
    plan = plan_from(document | sections, source="test")
    errors = [finding for finding in check(plan, manifest) if finding.severity == "error"]
    assert [finding.field for finding in errors] == [field]
    assert all(finding.remedy for finding in errors)


def test_a_plan_that_names_no_targets_adapts_queries_and_values(
    chat_bases: dict[str, Path],
) -> None:
    document = plan_for(chat_bases["chat"]).model_dump(mode="json", exclude_defaults=True)
    plan = plan_from(document | {"adapter": {"rank": 2}}, source="test")
    site = Worker(plan, chat_bases["chat"])
    names = {name.rpartition(".")[0].rpartition(".")[2] for name in site.recipe.start()}
    assert names == {"q_proj", "v_proj"}
    config = site.recipe.method.peft_config(plan.adapter, site.manifest)
    assert len(config["target_modules"]) == 4  # by path: two of two layers


def test_a_plan_for_text_does_not_fit_a_base_that_sorts(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    document = {
        "name": "t",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "causal-lm"},
    }
    plan = plan_from(document, source="test")
    (error,) = [f for f in check(plan, manifest) if f.severity == "error"]
    assert "causal-lm" in error.remedy
    with pytest.raises((PlanError, ArtefactError)):
        Worker(plan, tiny_base)
