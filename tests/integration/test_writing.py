"""Bases that were built write what transformers writes: every family's way with a cache, and a real model."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.decoder.generation import Generator, Request, generate
from tests.unit.base_model.decoder.models import PARTICULAR, write_decoder

TOKENS = 64
PROMPT = [1, *range(5, 20)]


def built(source: Path, out: Path, *, bits: int = 32) -> DecoderBase:
    build_decoder(decoder_source(str(source)), bits=bits, embedding_bits=bits, out=out)
    return DecoderBase.open(out, threads=1)


def without_ends(base: DecoderBase) -> DecoderBase:
    """Of random weights the token that ends a text is no end."""
    return dataclasses.replace(base, manifest=base.manifest.model_copy(update={"ends": []}))


def greedy(source: Path, prompt: list[int]) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return written[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", PARTICULAR)
def test_every_family_writes_what_transformers_writes(family: str, tmp_path: Path) -> None:
    source = write_decoder(tmp_path / family, family)
    base = without_ends(built(source, tmp_path / "base"))
    assert base.in_place
    expected = greedy(source, PROMPT)
    for in_place in (True, False):
        other = dataclasses.replace(base, in_place=in_place)
        steps = generate(Cache(other), PROMPT, Request(max_tokens=TOKENS))
        assert [step.token for step in steps] == expected


def test_codes_of_four_bits_write_the_same_in_place_and_not(tmp_path: Path) -> None:
    source = write_decoder(tmp_path / "llama", "llama", tie_word_embeddings=True)
    base = without_ends(built(source, tmp_path / "base", bits=4))
    rng = np.random.default_rng(0)
    tensors = {}
    for linear in base.manifest.linears:
        down = rng.normal(0, 0.2, (linear.in_features, 4)).astype(np.float32)
        up = rng.normal(0, 0.2, (4, linear.out_features)).astype(np.float32)
        tensors |= {f"{linear.path}.lora_A": down, f"{linear.path}.lora_B": up}
    texts = []
    for in_place in (True, False):
        generator = Generator(dataclasses.replace(base, in_place=in_place))
        generator.adapters.put("a", tensors)
        conversation = generator.conversation()
        for name in ("a", None, "a"):
            steps = conversation.steps(PROMPT, Request(adapter=name, max_tokens=24))
            texts.append([step.token for step in steps])
    assert texts[:3] == texts[3:]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.skipif("FEDGE_SHARED" not in os.environ, reason="the model lies in $FEDGE_SHARED")
def test_a_real_model_tells_the_story_of_transformers(tmp_path: Path) -> None:
    """Its heads are of 8 numbers, its tokenizer falls back to bytes and strips a space."""
    source = Path(os.environ["FEDGE_SHARED"]) / "models" / "stories260k"
    base = built(source, tmp_path / "base")
    prompt = base.encode("Once upon a time")
    expected = greedy(source, prompt)
    steps = list(Generator(base).generate(prompt, Request(max_tokens=TOKENS)))
    assert [step.token for step in steps] == expected
    text = base.tokenizer.decode(expected)
    assert "".join(step.text for step in steps) == text
    stop = text[40:47]
    steps = list(Generator(base).generate(prompt, Request(max_tokens=TOKENS, stops=(stop,))))
    assert "".join(step.text for step in steps) == text[: text.index(stop)]
    assert steps[-1].finish == "stop"
