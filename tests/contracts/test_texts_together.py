"""What texts of every family promise that are written in one run: each is the one that it is alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from base_model.decoder.families import FAMILIES
from edge_runtime.decoder.together import Together, fewest_rows
from tests.writing_together import PROMPT, Text, apart, built_base, forms

BOUND = 1e-4
# Heads that are turned by an operator and not, positions that are added, windows and a fused product.
QUICK = {"llama", "gpt2", "phi3"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in QUICK else [pytest.mark.slow])
        for family in sorted(FAMILIES)
    ],
)
def test_rows_under_adapters_of_every_form_are_the_texts_that_they_are_alone(
    family: str, tmp_path: Path
) -> None:
    base = built_base(tmp_path, family)
    assert base.manifest.is_ranked
    adapters = forms(base)
    prompts = [PROMPT[: 12 - number] for number in range(len(adapters))]
    texts = [Text(base, a, prompt=p) for a, p in zip(adapters.values(), prompts, strict=True)]
    together = Together(base)
    for _ in range(64):
        together.advance([text.writing for text in texts])
    assert len(texts) >= fewest_rows(base.manifest)
    assert {text.sent for text in texts} == {63}  # all but the logits of its prompt
    for text, adapter, own in zip(texts, adapters.values(), prompts, strict=True):
        alone = Text(base, adapter, prompt=own).alone()
        assert text.tokens == alone.tokens
        assert apart(text, alone) < BOUND
    assert len({tuple(text.tokens) for text in texts}) == len(texts)


def test_the_quick_ones_are_families() -> None:
    assert set(FAMILIES) >= QUICK
