"""Sorting papers by where their words stand: documents, a LayoutLM that has seen other kinds, and the experiment.

    python benchmarks/papers.py OUT
    fedge simulate OUT/papers.toml
    fedge simulate OUT/papers.toml --set data.train=nowhere-train.jsonl --set data.test=nowhere-test.jsonl

A paper has six blocks of words (a sender, a recipient, a date, a table, a text and a signature), each drawn from
words of its own; its kind is which block stands in which of eight regions of the page, and nothing else. Blocks come
in the order of chance in which an OCR may find them, so neither words nor their order tell a kind. The model is trained
in centralised fashion on forty kinds; the sites have five others, each site with a scanner of its own (margins and
size), and mostly two of the kinds. ``nowhere-…`` are the same papers with all boxes at zeros: what boxes are worth.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LayoutLMConfig, LayoutLMForSequenceClassification, PreTrainedTokenizerFast

from protocol.rows.pages import EDGE, FIRST, LAST, Box

BLOCKS = ("sender", "recipient", "date", "table", "text", "signature")
WORDS_EACH, MOST_TOKENS = 12, 64
# Left and upper corners of eight regions, in thousandths; each is as large as the distance between them.
REGIONS = [(60 + 460 * column, 60 + 225 * row) for row in range(4) for column in range(2)]
WIDTH, HEIGHT = 420, 190
SEEN, LEFT_OUT = 40, 5
SITES, ROWS, TEST_ROWS = 6, 40, 600
EPOCHS, BATCH, LEARNING_RATE = 12, 32, 1e-3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = [f"{block}{number}" for block in BLOCKS for number in range(WORDS_EACH)]


@dataclass(frozen=True)
class Paper:
    """Words with their boxes, and the number of their kind."""

    words: list[str]
    boxes: list[Box]
    kind: int


def kinds(rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
    """Regions of the blocks, one row a kind, no two alike."""
    different: dict[tuple[int, ...], None] = {}
    while len(different) < count:
        different[tuple(rng.permutation(len(REGIONS))[: len(BLOCKS)].tolist())] = None
    return list(different)


def scanner(rng: np.random.Generator) -> tuple[float, float, float]:
    """How a site's pages lie: a factor of their size, and margins in thousandths."""
    size = rng.uniform(0.88, 1.0)
    return size, *(rng.uniform(0, EDGE * (1 - size), 2).tolist())


def paper(
    rng: np.random.Generator, kind: int, places: tuple[int, ...], lies: tuple[float, float, float]
) -> Paper:
    """One of chance: three to seven words a block, in lines, blocks in any order."""
    size, left, upper = lies
    words, boxes = list[str](), list[Box]()
    for block in rng.permutation(len(BLOCKS)):
        across, down = REGIONS[places[block]]
        x, y = across + rng.uniform(0, 60), down + rng.uniform(0, 40)
        for _ in range(rng.integers(3, 8)):
            wide = rng.uniform(50, 110)
            if x + wide > across + WIDTH:
                x, y = across + rng.uniform(0, 20), y + 40
            corners = np.array([x, y, x + wide, y + 26]) * size
            corners += [left, upper, left, upper]
            x0, y0, x1, y1 = np.clip(np.round(corners), 0, EDGE).astype(int).tolist()
            boxes.append((x0, y0, x1, y1))
            words.append(f"{BLOCKS[block]}{rng.integers(WORDS_EACH)}")
            x += wide + rng.uniform(8, 20)
    return Paper(words, boxes, kind)


def as_input(papers: list[Paper], ids: dict[str, int]) -> dict[str, torch.Tensor]:
    """What LayoutLM reads: a word is a token here."""
    longest = 2 + max(len(each.words) for each in papers)
    inputs = {
        "input_ids": torch.zeros(len(papers), longest, dtype=torch.int64),
        "attention_mask": torch.zeros(len(papers), longest, dtype=torch.int64),
        "bbox": torch.zeros(len(papers), longest, 4, dtype=torch.int64),
    }
    for row, each in enumerate(papers):
        tokens = [ids["[CLS]"], *(ids[word] for word in each.words), ids["[SEP]"]]
        inputs["input_ids"][row, : len(tokens)] = torch.tensor(tokens)
        inputs["attention_mask"][row, : len(tokens)] = 1
        inputs["bbox"][row, : len(tokens)] = torch.tensor([FIRST, *each.boxes, LAST])
    return inputs


def batches(count: int, rng: np.random.Generator) -> Iterator[torch.Tensor]:
    """Every row once, in random order."""
    order = torch.from_numpy(rng.permutation(count))
    for start in range(0, count, BATCH):
        yield order[start : start + BATCH]


def train(papers: list[Paper], ids: dict[str, int]) -> LayoutLMForSequenceClassification:
    """A small LayoutLM on kinds that the sites do not have."""
    torch.manual_seed(0)
    names = [f"kind-{number}" for number in range(SEEN)]
    config = LayoutLMConfig(
        vocab_size=len(ids),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=MOST_TOKENS,
        max_2d_position_embeddings=EDGE + 1,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model, rng = LayoutLMForSequenceClassification(config).train(), np.random.default_rng(0)
    inputs, labels = as_input(papers, ids), torch.tensor([each.kind for each in papers])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for _ in range(EPOCHS):
        for index in batches(len(papers), rng):
            logits = model(**{name: value[index] for name, value in inputs.items()}).logits
            loss = torch.nn.functional.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def write_tokenizer(folder: Path, ids: dict[str, int]) -> None:
    """A word is a token."""
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def right(model: Any, papers: list[Paper], ids: dict[str, int], *, nowhere: bool = False) -> float:
    """Share of papers whose kind is seen, also ``nowhere``, with all boxes at zeros."""
    inputs = as_input(papers, ids)
    if nowhere:
        inputs["bbox"].zero_()
    with torch.no_grad():
        guesses = model(**inputs).logits.argmax(-1)
    return float((guesses == torch.tensor([each.kind for each in papers])).float().mean())


def write_rows(out: Path, name: str, rows: list[tuple[Paper, str]]) -> None:
    """A paper a line, and whose it is; and the same with all boxes at zeros."""
    for prefix, placed in (("", True), ("nowhere-", False)):
        lines = [
            {
                "words": each.words,
                "boxes": each.boxes if placed else [FIRST] * len(each.words),
                "label": f"kind-{each.kind}",
                "site": site,
            }
            for each, site in rows
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / f"{prefix}{name}.jsonl").write_text(text, "utf-8")


def main() -> None:
    """Write the folder that is named."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    rng = np.random.default_rng(7)
    ids = {token: number for number, token in enumerate([*SPECIAL, *VOCABULARY])}
    places = kinds(rng, SEEN + LEFT_OUT)
    seen = [
        paper(rng, kind, places[kind], scanner(rng)) for kind in range(SEEN) for _ in range(110)
    ]
    order = rng.permutation(len(seen)).tolist()
    papers, kept = [seen[at] for at in order[400:]], [seen[at] for at in order[:400]]
    began = time.monotonic()
    model = train(papers, ids)
    model.save_pretrained(out / "model")
    write_tokenizer(out / "model", ids)
    rows, test = list[tuple[Paper, str]](), list[tuple[Paper, str]]()
    for site in range(SITES):
        lies, shares = scanner(rng), rng.dirichlet([0.3] * LEFT_OUT)
        own = SEEN + rng.choice(LEFT_OUT, ROWS, p=shares)
        rows += [(paper(rng, kind, places[kind], lies), f"site-{site}") for kind in own.tolist()]
        for number in range(TEST_ROWS // SITES):
            kind = SEEN + number % LEFT_OUT
            test.append((paper(rng, kind, places[kind], lies), f"site-{site}"))
    write_rows(out, "train", rows)
    write_rows(out, "test", test)
    experiment = Path(__file__).with_suffix(".toml")
    (out / experiment.name).write_text(experiment.read_text("utf-8"), "utf-8")
    print(
        f"{sum(p.numel() for p in model.parameters())} weights, {time.monotonic() - began:.0f} s on "
        f"{len(papers)} papers of {SEEN} kinds; of {len(kept)} kept out {right(model, kept, ids):.3f} are right, "
        f"with all boxes at zeros {right(model, kept, ids, nowhere=True):.3f}; for the sites: {len(rows)} papers of "
        f"{LEFT_OUT} other kinds, {len(test)} to test on"
    )


if __name__ == "__main__":
    main()
