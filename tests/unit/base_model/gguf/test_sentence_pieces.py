"""sentencepiece's BPE in GGUF files, against the ids that sentencepiece itself gave (sentence_pieces.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from base_model.gguf.read import read_gguf
from protocol.errors import ArtefactError
from tests.unit.base_model.gguf.files import weights_of, write_gguf

VECTORS = json.loads(Path(__file__).with_name("sentence_pieces.json").read_text("utf-8"))
WITH_PREFIX, WITHOUT = VECTORS["vocabularies"]


def _keys(vocabulary: dict[str, Any], **changes: Any) -> dict[str, Any]:
    keys = {
        "model": "llama",
        "pre": "default",
        "tokens": vocabulary["tokens"],
        "scores": vocabulary["scores"],
        "token_type": vocabulary["kinds"],
        "merges": None,
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": vocabulary["prefix"],
        **changes,
    }
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _write(path: Path, keys: dict[str, Any]) -> Path:
    weights = weights_of("llama", head=False)
    embedding = weights["token_embd.weight"]
    weights["token_embd.weight"] = embedding.repeat(2, axis=0)[: len(WITH_PREFIX["tokens"])]
    return write_gguf(path, weights=weights, keys=keys)


@pytest.mark.parametrize("vocabulary", [WITH_PREFIX, WITHOUT], ids=["prefix", "no prefix"])
def test_ids_and_texts_are_those_of_sentencepiece(
    tmp_path: Path, vocabulary: dict[str, Any]
) -> None:
    source = read_gguf(_write(tmp_path / "tiny.gguf", _keys(vocabulary)))
    tokenizer = Tokenizer.from_str(source.tokenizer)
    assert len(vocabulary["texts"]) > 80
    for text, ids, back in vocabulary["texts"]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.encode(text).ids == [1, *ids]
        assert tokenizer.decode(ids) == back
    assert (source.begin, source.ends) == (1, (2,))
    assert any("normaliser" in reason for reason in source.reasons)


def test_special_tokens_are_whole_and_a_text_after_one_has_a_blank_again(tmp_path: Path) -> None:
    keys = _keys(WITH_PREFIX, add_bos_token=False, pre=None)
    source = read_gguf(_write(tmp_path / "tiny.gguf", keys))
    tokenizer = Tokenizer.from_str(source.tokenizer)
    assert source.begin is None
    the = tokenizer.encode("the").ids
    assert tokenizer.encode("the</s>the<unk>").ids == [*the, 2, *the, 0]
    assert tokenizer.decode([*the, 2]) == "the"


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a pre-tokenizer": ({"pre": "smollm"}, "'smollm'"),
    "a normaliser": ({"precompiled_charsmap": [1, 2]}, "precompiled_charsmap"),
    "fewer blanks": ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    "no scores": ({"scores": None}, "scores"),
    "few scores": ({"scores": [0.5]}, "scores"),
    "scores that are no numbers": ({"scores": [float("nan")] * 520}, "scores"),
    "equal scores": ({"scores": [0.5] * 520}, "same score"),
    "lacking bytes": (
        {"tokens": [*WITH_PREFIX["tokens"][:3], "lacking", *WITH_PREFIX["tokens"][4:]]},
        "bytes",
    ),
    "a long piece": ({"tokens": [*WITH_PREFIX["tokens"][:-1], "z" * 129]}, "129 characters"),
    "a user's blanks": (
        {"token_type": [*WITH_PREFIX["kinds"][:259], *([4] * 261)]},
        "holds blanks",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_pieces_whose_order_is_not_certain_are_refused(tmp_path: Path, name: str) -> None:
    changes, says = ODD[name]
    path = _write(tmp_path / "tiny.gguf", _keys(WITH_PREFIX, **changes))
    with pytest.raises(ArtefactError, match=says) as caught:
        read_gguf(path)
    assert str(path) in caught.value.cause
