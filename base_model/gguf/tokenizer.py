"""The tokenizer of a GGUF file, as the text of ``tokenizer.json``.

A file holds the vocabulary, the merges and the kinds of tokens, but of how a text is cut before the merges
only a name. Byte-level BPE works with any cut, and is then silently another tokenizer: a name that is not
among PRE_TOKENIZERS is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import TokenType
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from base_model.gguf.container import Container
from base_model.source_files import FETCH, first_line
from protocol.errors import ArtefactError

KEY = "tokenizer.ggml."
CHAT = "tokenizer.chat_template"
CHECKPOINT = "use the model's checkpoint as Hugging Face has it, with its own tokenizer.json"
WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED)  # never cut, wherever a text holds them
# The cuts that were published with Qwen2 and Llama 3.
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"
LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a text is cut before the merges.

    ``whole_words``: a piece that is a token is that token, whatever the merges lead to. ``begins``: whether
    texts begin with the token for it where the file does not say.
    """

    pieces: Callable[[], Any]
    nfc: bool = False
    whole_words: bool = False
    begins: bool = False


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a file says of its tokenizer. ``begin`` and ``ends`` as in ``DecoderSource``.

    ``ids``: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` for ``config.json``; what is not there
    is None.
    """

    text: str
    chat_template: str | None
    begin: int | None
    ends: tuple[int, ...]
    ids: Mapping[str, int | None]
    reasons: tuple[str, ...]


def _split(expression: str) -> Callable[[], Any]:
    def pieces() -> Any:
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(expression), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return pieces


def _single_digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _plain()])


def _plain() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


_LLAMA3 = Cut(pieces=_split(LLAMA3), whole_words=True, begins=True)
PRE_TOKENIZERS = {
    "gpt-2": Cut(pieces=_plain),
    "smollm": Cut(pieces=_single_digits),
    "qwen2": Cut(pieces=_split(QWEN2), nfc=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


def vocabulary_of(container: Container, *, embeddings: int) -> Vocabulary:
    """The tokenizer of a file whose table has ``embeddings`` rows. Raises ArtefactError."""
    keys = container.keys
    cut = _cut_of(container)
    tokens, kinds = _tokens(container, embeddings)
    ids = {
        name: _token_id(container, key, len(tokens))
        for name, key in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("pad", "padding"),
            ("eot", "eot"),
            ("eom", "eom"),
        )
    }
    begins = keys.get(f"{KEY}add_bos_token", cut.begins)
    if begins and ids["bos"] is None:
        raise ArtefactError(f"{container.path}: texts begin with a token that is not named", FETCH)
    if keys.get(f"{KEY}add_eos_token"):
        raise ArtefactError(
            f"{container.path}: its tokenizer ends every text, also one that is to be continued",
            CHECKPOINT,
        )
    begin = ids["bos"] if begins else None
    tokenizer = _tokenizer(container, cut, tokens)
    _add_whole(tokenizer, tokens, kinds)
    if begin is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[tokens[begin], "$A"],
            pair=[tokens[begin], "$A", f"{tokens[begin]}:1", "$B:1"],
            special_tokens=[(tokens[begin], begin)],
        )
    ends = [ids[name] for name in ("eos", "eot", "eom")]
    return Vocabulary(
        text=json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, sort_keys=True),
        chat_template=_chat_template(container),
        begin=begin,
        ends=tuple(dict.fromkeys(token for token in ends if token is not None)),
        ids={f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")},
        reasons=_reasons(tokens),
    )


def _cut_of(container: Container) -> Cut:
    kind, name = (container.keys.get(f"{KEY}{key}") for key in ("model", "pre"))
    if kind is None:
        raise ArtefactError(f"{container.path}: there is no tokenizer in the file", CHECKPOINT)
    if kind != "gpt2":
        raise ArtefactError(
            f"{container.path}: its tokenizer is of the kind {kind!r}, only byte-level BPE ('gpt2') is read",
            CHECKPOINT,
        )
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        says = "names no pre-tokenizer" if name is None else f"has the pre-tokenizer {name!r}"
        raise ArtefactError(
            f"{container.path}: its tokenizer {says}, so texts would be cut by guess; "
            f"these can be read: {', '.join(PRE_TOKENIZERS)}",
            CHECKPOINT,
        )
    return PRE_TOKENIZERS[name]


def _tokens(container: Container, embeddings: int) -> tuple[list[str], list[int]]:
    """Tokens by id, and their kinds. Raises ArtefactError."""
    tokens = container.keys.get(f"{KEY}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ArtefactError(f"{container.path}: there is no vocabulary in the file", FETCH)
    if len(tokens) > embeddings:
        raise ArtefactError(
            f"{container.path}: its vocabulary has {len(tokens)} tokens, there are {embeddings} embeddings",
            FETCH,
        )
    if len(set(tokens)) < len(tokens):
        (twice, _), *_ = Counter(tokens).most_common(1)
        raise ArtefactError(
            f"{container.path}: the token {twice!r} is twice in its vocabulary", CHECKPOINT
        )
    kinds = container.keys.get(f"{KEY}token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise ArtefactError(
            f"{container.path}: its vocabulary does not say which tokens are special", CHECKPOINT
        )
    return tokens, [int(kind) for kind in kinds.tolist()]


def _token_id(container: Container, name: str, count: int) -> int | None:
    key = f"{KEY}{name}_token_id"
    value = container.keys.get(key)
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise ArtefactError(f"{container.path}: the key {key!r} ({value!r}) is no token", FETCH)
    return value


def _tokenizer(container: Container, cut: Cut, tokens: list[str]) -> Tokenizer:
    merges = container.keys.get(f"{KEY}merges")
    if not isinstance(merges, list):
        raise ArtefactError(f"{container.path}: there are no merges in the file", FETCH)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    odd = next((merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2), None)
    if odd is not None:
        raise ArtefactError(f"{container.path}: the merge {odd!r} is no pair of tokens", FETCH)
    try:
        model = models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=pairs,
            ignore_merges=cut.whole_words,
        )
    except Exception as error:
        raise ArtefactError(
            f"{container.path}: its tokenizer cannot be read: {first_line(error)}", FETCH
        ) from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC() if cut.nfc else None
    tokenizer.pre_tokenizer = cut.pieces()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_whole(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Tokens that are matched in a text before it is cut; special ones are not shown when decoded."""
    added = [
        AddedToken(token, normalized=False, special=kind == TokenType.CONTROL)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in WHOLE and token
    ]
    tokenizer.add_tokens(added)


def _chat_template(container: Container) -> str | None:
    template = container.keys.get(CHAT)
    if template is not None and not isinstance(template, str):
        raise ArtefactError(f"{container.path}: the key {CHAT!r} is no text", FETCH)
    return template or None


def _reasons(tokens: list[str]) -> tuple[str, ...]:
    lacking = set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens)
    if not lacking:
        return ()
    return (f"{len(lacking)} of 256 bytes have no token: they vanish from texts",)
