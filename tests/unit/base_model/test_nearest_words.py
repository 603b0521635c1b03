"""A row that is a word's embedding is explained by this word, on every kind of base that takes a prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import base_model.nearest_words as module
from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.nearest_words import nearest_words
from base_model.store import open_base
from base_model.weights_file import WEIGHTS
from protocol.errors import ArtefactError
from tests.unit.base_model.decoder.models import (
    float_weights,
    oracle,
    stored_of,
    write_decoder,
)

Case = tuple[Path, np.ndarray]


@pytest.fixture(scope="module", params=["encoder", "llama-8", "gemma-8", "gpt2-16"])
def case(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    """A base, and the table of words that transformers' model has of it."""
    if request.param == "encoder":
        model = open_base(tiny_base, labels=2).model
        return tiny_base, model.get_input_embeddings().weight.detach().numpy()
    from base_model.decoder.families import shape_of

    family, bits = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    source = decoder_source(str(write_decoder(folder / "source", family)))
    build_decoder(source, bits=4, embedding_bits=int(bits), out=folder / "base")
    shape = shape_of(source.config)
    weights = float_weights(shape, stored_of(shape, source, bits=4, embedding_bits=int(bits)))
    embeddings = oracle(folder / "source", weights).get_input_embeddings()
    return folder / "base", embeddings.weight.detach().numpy()


def test_planted_tokens_are_explained_by_themselves(case: Case) -> None:
    """At any positive length; among words whose own rows are not alike."""
    base, table = case
    ids = [7, 3, 11]
    prompt = (table[ids] * np.float32([[1.0], [4.0], [0.25]])).astype(np.float32)
    rows = nearest_words(base, prompt, count=3)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    assert [row[0].id for row in rows] == ids
    assert [row[0].token for row in rows] == [tokenizer.id_to_token(i) for i in ids]
    assert [row[0].similarity for row in rows] == pytest.approx([1.0] * 3, abs=1e-6)
    assert all(len(row) == 3 for row in rows)
    opposite = nearest_words(base, -prompt, count=1)
    assert not {row[0].id for row in opposite} & set(ids)


def test_all_similarities_are_torchs(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever pieces the table is read."""
    base, table = case
    prompt = np.random.default_rng(3).normal(size=(4, table.shape[1])).astype(np.float32)
    whole = nearest_words(base, prompt, count=6)
    words = torch.tensor(table)
    known = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab_size()
    for row, near in zip(prompt, whole, strict=True):
        cosines = torch.nn.functional.cosine_similarity(torch.tensor(row)[None], words)[:known]
        pointing = words[:known].abs().sum(1) > 0
        best = torch.where(pointing, cosines, -2).topk(6)
        assert [each.id for each in near] == best.indices.tolist()
        assert [each.similarity for each in near] == pytest.approx(best.values.tolist(), abs=1e-5)
    monkeypatch.setattr(module, "PIECE", 5 * table.shape[1])
    pieces = nearest_words(base, prompt, count=6)
    assert [[each.id for each in row] for row in pieces] == [[e.id for e in row] for row in whole]


def test_a_row_of_zeros_is_near_to_nothing(tiny_base: Path) -> None:
    width = open_base(tiny_base).manifest.embedding_size
    assert nearest_words(tiny_base, np.zeros((2, width), np.float32), count=3) == [[], []]


def test_a_base_without_weights_is_named(
    tiny_base: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    import shutil

    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / WEIGHTS).unlink()
    with pytest.raises(ArtefactError, match=WEIGHTS):
        nearest_words(base, np.ones((1, 32), np.float32), count=1)
