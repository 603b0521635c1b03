"""Random LayoutLMs, as transformers saves them, and pages whose words stand at places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    LayoutLMConfig,
    LayoutLMForMaskedLM,
    LayoutLMForSequenceClassification,
    LayoutLMModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from protocol.rows.pages import EDGE, Box, Page

LABELS = ["bill", "letter", "form", "other"]
WORDS = [
    *("the", "of", "to", "date", "name", "total", "amount", "paid", "due", "dear", "sir", "yours"),
    *("bank", "clinic", "patient", "account", "number", "street", "page", "signed", "tax", "sum"),
]
ENDINGS = ["##s", "##ed", "##er", "##ing"]  # pieces of words
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_tokenizer(folder: Path, words: list[str] | None = None) -> None:
    """A tokenizer of word pieces, as LayoutLM's, saved as transformers does."""
    vocabulary = {token: at for at, token in enumerate([*SPECIAL, *(words or WORDS), *ENDINGS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def write_pages_source(folder: Path, *, head: str = "", seed: int = 0, **config: Any) -> Path:
    """A tiny LayoutLM: the encoder, or with ``head`` "own" or "other" one of the classes on it."""
    folder.mkdir(parents=True)
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    shape = LayoutLMConfig(
        **{
            **{"vocab_size": len(SPECIAL) + len(WORDS) + len(ENDINGS), "hidden_size": 32},
            **{"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
            **{"max_position_embeddings": 64, "max_2d_position_embeddings": EDGE + 1},
            **(named if head == "own" else {}),
            **config,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        match head:
            case "own":
                model = LayoutLMForSequenceClassification(shape)
            case "other":
                model = LayoutLMForMaskedLM(shape)
            case _:
                model = LayoutLMModel(shape)
        for name, parameter in model.float().named_parameters():  # large: words and places matter
            norm = "LayerNorm" in name and name.endswith("weight")
            torch.nn.init.normal_(parameter, float(norm), 0.3 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def box_at(rng: np.random.Generator) -> Box:
    """One of chance, of a width and a height above 0."""
    left, right = sorted(rng.choice(EDGE + 1, 2, replace=False).tolist())
    upper, lower = sorted(rng.choice(EDGE + 1, 2, replace=False).tolist())
    return left, upper, right, lower


def pages(count: int, *, seed: int = 0, most: int = 12) -> list[Page]:
    """Words of chance at places of chance, some of two pieces, and some unknown."""
    rng, several = np.random.default_rng(seed), []
    for _ in range(count):
        words = rng.choice(
            [*WORDS, "dated", "numbers", "Payer", "Zebra"], rng.integers(1, most + 1)
        )
        several.append(Page.of(map(str, words), [box_at(rng) for _ in words]))
    return several


def row_of(page: Page, label: str) -> dict[str, Any]:
    """A row of a file."""
    return {"words": list(page.words), "boxes": [list(box) for box in page.boxes], "label": label}
