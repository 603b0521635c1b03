"""The tokenizer of a GGUF file against one with the same vocabulary, put together from what was published."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from base_model.decoder.source import DecoderSource
from base_model.gguf.byte_level import PRE_TOKENIZERS
from base_model.gguf.read import read_gguf
from protocol.errors import ArtefactError
from tests.unit.base_model.gguf.files import TEMPLATE, merges_of, tokens_of, write_gguf

PARTS = [
    *"the in on12 3 \n\t'sS½٣é\u0301中😀",
    "<|end|>",
    "<|user|>",
    "<think>",
    "   ",
    "a   12",
    "x\n\n12",
]
TEXTS = st.lists(
    st.sampled_from(PARTS) | st.characters(exclude_categories=["Cs"]), max_size=30
).map("".join)
# What Llama 3 published, but for its vocabulary.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@settings(max_examples=150)
@given(text=TEXTS, pre=st.sampled_from(["smollm", "qwen2", "llama-bpe", "gpt-2"]))
def test_ids_are_those_of_the_same_vocabulary(text: str, pre: str) -> None:
    ours, theirs = _ours(pre), _theirs(pre)
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == theirs.encode(text, add_special_tokens=False).ids
    for special in (True, False):
        assert ours.decode(ids, special) == theirs.decode(ids, special)


@settings(max_examples=50)
@given(text=TEXTS)
def test_a_text_comes_back(text: str) -> None:
    ours = _ours("smollm")
    assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_cut_singly_and_blanks_before_them_stay_together() -> None:
    assert _ours("smollm").encode("a   12").tokens == ["a", "ĠĠĠ", "1", "2"]
    assert _ours("qwen2").encode("a   12").tokens == ["a", "ĠĠ", "Ġ", "1", "2"]
    assert _ours("gpt-2").encode("a   12").tokens == ["a", "ĠĠ", "Ġ", "12"]
    assert _ours("llama-bpe").encode("a   123", add_special_tokens=False).tokens[-1] == "123"


def test_special_tokens_are_whole_and_only_control_ones_are_hidden() -> None:
    ours = _ours("smollm")
    ids = ours.encode("the<|end|> <think>").ids
    assert [ours.id_to_token(number) for number in ids] == ["the", "<|end|>", "Ġ", "<think>"]
    assert ours.decode(ids) == "the <think>"
    assert ours.get_vocab() == {token: number for number, token in enumerate(tokens_of())}


def test_keys_say_how_texts_begin_and_end(tmp_path: Path) -> None:
    plain = _source("smollm")
    assert (plain.begin, plain.ends, plain.chat_template) == (None, (0,), TEMPLATE)
    assert Tokenizer.from_str(plain.tokenizer).encode("the").tokens == ["the"]
    keys = {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 0,
        "tokenizer.chat_template": None,
    }
    source = read_gguf(write_gguf(tmp_path / "tiny.gguf", keys=keys))
    assert (source.begin, source.ends, source.chat_template) == (1, (0, 2), None)
    assert Tokenizer.from_str(source.tokenizer).encode("the").tokens == ["<|user|>", "the"]
    assert (source.config["bos_token_id"], source.config["eos_token_id"]) == (1, 0)


def test_a_token_with_a_colon_may_begin_texts(tmp_path: Path) -> None:
    tokens = [tokens_of()[0], "$A:1", *tokens_of()[2:]]
    keys = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.tokens": tokens}
    source = read_gguf(write_gguf(tmp_path / "tiny.gguf", keys=keys))
    tokenizer = Tokenizer.from_str(source.tokenizer)
    assert tokenizer.encode("the").ids[0] == 1
    assert tokenizer.encode("the", "in").type_ids == [0, 0, 1, 1]


def test_llama_3_begins_texts_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert _source("llama-bpe").begin == 1
    keys = {"tokenizer.ggml.add_bos_token": False}
    assert read_gguf(write_gguf(tmp_path / "tiny.gguf", pre="llama-bpe", keys=keys)).begin is None


def test_bytes_without_a_token_are_reported(tmp_path: Path) -> None:
    tokens = ["lacking" if token == "Ĥ" else token for token in tokens_of()]
    source = read_gguf(write_gguf(tmp_path / "tiny.gguf", keys={"tokenizer.ggml.tokens": tokens}))
    assert any("1 of 256 bytes" in reason for reason in source.reasons)
    assert _source("smollm").reasons == ()


@pytest.mark.parametrize("pre", ["default", "falcon", "deepseek-llm", "smollm2", None])
def test_a_cut_that_is_not_known_is_refused_by_name(tmp_path: Path, pre: str | None) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", pre=pre)
    with pytest.raises(ArtefactError, match="pre-tokenizer") as caught:
        read_gguf(path)
    assert str(path) in caught.value.cause
    assert pre is None or repr(pre) in caught.value.cause


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "none"])
def test_another_kind_of_tokenizer_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", keys={"tokenizer.ggml.model": kind})
    with pytest.raises(ArtefactError, match=repr(kind)):
        read_gguf(path)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "no tokenizer": ({"tokenizer.ggml.model": None}, "no tokenizer"),
    "no vocabulary": ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
    "no merges": ({"tokenizer.ggml.merges": None}, "no merges"),
    "no kinds": ({"tokenizer.ggml.token_type": None}, "special"),
    "too few kinds": ({"tokenizer.ggml.token_type": [1, 2]}, "special"),
    "kinds that are words": ({"tokenizer.ggml.token_type": ["a"]}, "special"),
    "kinds that are no numbers": (
        {"tokenizer.ggml.token_type": [0.5] * len(tokens_of())},
        "special",
    ),
    "too many tokens": ({"tokenizer.ggml.tokens": [*tokens_of(), "more"]}, "embeddings"),
    "a token twice": ({"tokenizer.ggml.tokens": [*tokens_of()[:-1], "a"]}, "twice"),
    "a merge of three": ({"tokenizer.ggml.merges": ["t h e"]}, "'t h e'"),
    "a merge to no token": ({"tokenizer.ggml.merges": ["z q"]}, "zq"),
    "an id beyond": ({"tokenizer.ggml.eos_token_id": 10**6}, "eos_token_id"),
    "an id that is a word": ({"tokenizer.ggml.eos_token_id": "end"}, "eos_token_id"),
    "a beginning without a token": (
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
        "begin",
    ),
    "an end by itself": ({"tokenizer.ggml.add_eos_token": True}, "ends every text"),
    "a template that is a number": ({"tokenizer.chat_template": 3}, "chat_template"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    keys, says = ODD[name]
    path = write_gguf(tmp_path / "tiny.gguf", keys=keys)
    with pytest.raises(ArtefactError, match=says) as caught:
        read_gguf(path)
    assert str(path) in caught.value.cause


@cache
def _source(pre: str) -> DecoderSource:
    with TemporaryDirectory() as folder:
        return read_gguf(write_gguf(Path(folder) / "tiny.gguf", pre=pre))


@cache
def _ours(pre: str) -> Tokenizer:
    assert pre in PRE_TOKENIZERS
    return Tokenizer.from_str(_source(pre).tokenizer)


@cache
def _theirs(pre: str) -> Tokenizer:
    tokens = tokens_of()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges_of(), ignore_merges=pre == "llama-bpe")
    )
    if pre == "smollm":
        parts = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif pre == "gpt-2":
        parts = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        parts = [
            pre_tokenizers.Split(
                Regex(PRETOKENIZE_REGEX if pre == "qwen2" else LLAMA3), "isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in tokens[:2]])
    tokenizer.add_tokens([AddedToken(tokens[2], normalized=False)])
    return tokenizer
