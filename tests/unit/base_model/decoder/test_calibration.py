"""Codes are fitted to the inputs that linears have on a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from base_model.decoder.build import build_decoder
from base_model.decoder.calibration import default_text, has_floats, input_moments
from base_model.decoder.check import open_graph
from base_model.decoder.families import FAMILIES, shape_of
from base_model.decoder.sources import decoder_source
from protocol.errors import ArtefactError
from tests.unit.base_model.decoder.models import Graph, apart, write_decoder
from tests.unit.base_model.sources import WORDS_64

TEXT = " ".join(np.random.default_rng(0).permutation(list(WORDS_64) * 4).tolist())


def quiet(_step: str, _share: float) -> None: ...


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_moments_are_those_of_torch(family: str, tmp_path: Path) -> None:
    """Up to what 8 bits change, which is some per cent of a mean square."""
    folder = write_decoder(tmp_path / "model", family)
    source = decoder_source(str(folder))
    shape = shape_of(source.config)
    moments = input_moments(source, shape, TEXT, tell=quiet)
    assert moments.keys() == {linear.path for linear in shape.linears()}
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for path in moments:
        model.get_submodule(path).register_forward_pre_hook(
            lambda _module, inputs, path=path: seen.setdefault(path, []).append(inputs[0][0])
        )
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(source.tokenizer).encode(TEXT).ids
    size = min(128, shape.context)
    with torch.no_grad():
        for start in range(0, len(ids), size):
            model(input_ids=torch.tensor([ids[start : start + size]]))
    for path, moment in moments.items():
        expected = (torch.cat(seen[path]) ** 2).mean(0).numpy()
        assert np.linalg.norm(moment - expected) < 0.1 * np.linalg.norm(expected), path


def test_fitted_codes_are_nearer_to_the_floats(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "model", hidden_size=128)
    source = decoder_source(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = np.random.default_rng(1).integers(3, source.config["vocab_size"], 60).tolist()
    with torch.no_grad():
        reference = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    errors = {}
    for name, text in (("plain", None), ("fitted", TEXT)):
        build_decoder(source, bits=4, out=tmp_path / name, calibration=text)
        graph = Graph(open_graph(tmp_path / name / "graph.onnx"))
        errors[name] = apart(reference, graph.every(ids))
    assert errors["fitted"] < errors["plain"]


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    source = decoder_source(str(write_decoder(tmp_path / "model")))
    with pytest.raises(ArtefactError, match="has 3 tokens"):
        input_moments(source, shape_of(source.config), " ".join(WORDS_64[:2]), tell=quiet)
    with pytest.raises(ArtefactError, match="has 1 tokens"):
        build_decoder(source, bits=4, out=tmp_path / "base", calibration="")


def test_fedge_brings_a_page(tmp_path: Path) -> None:
    assert 300 < len(default_text().split()) < 2000
    source = decoder_source(str(write_decoder(tmp_path / "model")))
    assert has_floats(source, shape_of(source.config).linears())
