"""The tokenizer of a GGUF file, as the text of ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from base_model.gguf.byte_level import byte_level
from base_model.gguf.container import Container, shown
from base_model.gguf.sentence_pieces import sentence_pieces
from base_model.gguf.words import CHECKPOINT, KEY, Draft, Words, words_of
from base_model.source_files import FETCH
from protocol.errors import ArtefactError

CHAT = "tokenizer.chat_template"
KINDS: dict[Any, Callable[[Words], Draft]] = {"gpt2": byte_level, "llama": sentence_pieces}
# Never cut, wherever a text holds them; all but a user's are left out when ids become text.
WHOLE = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


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


def vocabulary_of(container: Container, *, embeddings: int) -> Vocabulary:
    """The tokenizer of a file whose table has ``embeddings`` rows. Raises ArtefactError."""
    kind = container.keys.get(f"{KEY}model")
    if kind is None:
        raise ArtefactError(f"{container.path}: there is no tokenizer in the file", CHECKPOINT)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArtefactError(
            f"{container.path}: its tokenizer is of the kind {shown(kind)}; "
            f"these can be read: {', '.join(KINDS)}",
            CHECKPOINT,
        )
    words = words_of(container, embeddings=embeddings)
    draft = KINDS[kind](words)
    _add_whole(draft.tokenizer, words)
    begin = _begin(words, draft)
    ends = [words.special(name) for name in ("eos", "eot", "eom")]
    return Vocabulary(
        text=_text(draft.tokenizer, words, begin),
        chat_template=_chat_template(container),
        begin=begin,
        ends=tuple(dict.fromkeys(token for token in ends if token is not None)),
        ids={
            "bos_token_id": words.special("bos"),
            "eos_token_id": words.special("eos"),
            "pad_token_id": words.special("padding"),
        },
        reasons=draft.reasons,
    )


def _add_whole(tokenizer: Tokenizer, words: Words) -> None:
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind != TokenType.USER_DEFINED)
            for token, kind in zip(words.tokens, words.kinds, strict=True)
            if kind in WHOLE and token
        ]
    )


def _begin(words: Words, draft: Draft) -> int | None:
    """The token that texts begin with. Raises ArtefactError, also where they would all be ended."""
    if words.keys.get(f"{KEY}add_eos_token"):
        raise ArtefactError(
            f"{words.path}: its tokenizer ends every text, also one that is to be continued",
            CHECKPOINT,
        )
    begin = words.special("bos")
    if not words.keys.get(f"{KEY}add_bos_token", draft.begins):
        return None
    if begin is None:
        raise ArtefactError(f"{words.path}: texts begin with a token that is not named", FETCH)
    return begin


def _text(tokenizer: Tokenizer, words: Words, begin: int | None) -> str:
    document = json.loads(tokenizer.to_str())
    if begin is not None:  # written here: the library's own templates take no token with a colon
        token = words.tokens[begin]
        single = [_special(token, 0), _sequence("A", 0)]
        document["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, _special(token, 1), _sequence("B", 1)],
            "special_tokens": {token: {"id": token, "ids": [begin], "tokens": [token]}},
        }
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def _special(token: str, segment: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": segment}}


def _sequence(name: str, segment: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": segment}}


def _chat_template(container: Container) -> str | None:
    template = container.keys.get(CHAT)
    if template is not None and not isinstance(template, str):
        raise ArtefactError(f"{container.path}: the key {CHAT!r} is no text", FETCH)
    return template or None
