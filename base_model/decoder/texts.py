"""What surrounds a decoder's numbers: its tokenizer, its chat template, and the tokens that begin and end.

All of it comes from the source's files by their names; no code of the source's runs, and nothing is made up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from base_model.source_files import FETCH, check_file, first_line, read_object
from base_model.weights_file import REBUILD
from protocol.chat.template import MOST_TEMPLATE
from protocol.decoder_manifest import CHAT_TEMPLATE, WritingManifest
from protocol.errors import ArtefactError
from protocol.manifest import TOKENIZER
from protocol.panics import tokenizing
from storage.regular import read_regular_text

SETTINGS, GENERATION = "tokenizer_config.json", "generation_config.json"
MOST_ENDS = 64
SAVE = "save it beside the model with transformers' `tokenizer.save_pretrained`"
# What tokenizers trip over, and what a careless one treats unlike its neighbours.
ODD_TEXTS = ("", " ", "a", "Ä", "\u0301", "中", "😀", "\u200b\ufeff", "a   12", "\x00", "\n\t")


def tokenizer_of(folder: Path, *, vocabulary: int) -> tuple[str, Tokenizer]:
    """``tokenizer.json`` without truncation and padding, as text and opened.

    Every id has to be a row of the ``vocabulary``. Raises ArtefactError.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise ArtefactError(f"{folder}: there is no {TOKENIZER}", SAVE)
    document = read_object(path)
    document["truncation"] = document["padding"] = None
    text = json.dumps(document, ensure_ascii=False, sort_keys=True)
    return text, opened_tokenizer(text, vocabulary=vocabulary, source=str(path))


def opened_tokenizer(text: str, *, vocabulary: int, source: str) -> Tokenizer:
    """The tokenizer of a text of ``tokenizer.json``, tried on odd texts. Raises ArtefactError."""
    with tokenizing(f"{source}: it cannot be used", SAVE):
        tokenizer = Tokenizer.from_str(text)
        encoded = tokenizer.encode_batch(list(ODD_TEXTS))
    largest = max(
        [
            *tokenizer.get_vocab().values(),
            *(token for encoding in encoded for token in encoding.ids),
        ]
    )
    if largest >= vocabulary:
        raise ArtefactError(
            f"{source} has the id {largest}, there are only {vocabulary} embeddings",
            "take model and tokenizer from the same place, or resize the model's embeddings to it",
        )
    return tokenizer


def verify_tokenizer(folder: Path, manifest: WritingManifest) -> None:
    """That of a base can be used, and knows no more than its embeddings. Raises ArtefactError."""
    path = folder / TOKENIZER
    try:
        text = read_regular_text(path, most=manifest.files[TOKENIZER].bytes)
        opened_tokenizer(text, vocabulary=manifest.vocab_size, source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read: {first_line(error)}", REBUILD) from None
    except ArtefactError as error:
        raise ArtefactError(error.cause, REBUILD) from None


def chat_template_of(folder: Path) -> str | None:
    """The Jinja text of the source's chats: its own file, or what the tokenizer's settings hold."""
    path = folder / CHAT_TEMPLATE
    if path.exists():
        check_file(path)
        try:
            return read_regular_text(path, most=MOST_TEMPLATE)
        except (OSError, UnicodeDecodeError) as error:
            raise ArtefactError(f"{path} cannot be read: {first_line(error)}", FETCH) from None
    template = _settings(folder).get("chat_template")
    if isinstance(template, list):  # several by name
        tables = [entry for entry in template if isinstance(entry, dict)]
        defaults = [table.get("template") for table in tables if table.get("name") == "default"]
        template = defaults[-1] if defaults else None
    if template is not None and not isinstance(template, str):
        raise ArtefactError(f"{folder / SETTINGS}: `chat_template` is no text", SAVE)
    if template and len(template.encode()) > MOST_TEMPLATE:
        raise ArtefactError(f"{folder / SETTINGS}: a chat template beyond 1 MiB", SAVE)
    return template or None


def begin_of(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The token in front of every text: what the tokenizer puts there, or is said to; else None.

    That a config names one is not enough: many name a token that no text has begun with in training.
    """
    framed = tokenizer.encode("a").ids
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    if len(framed) > len(bare) and framed[1 : 1 + len(bare)] == bare:
        return int(framed[0])
    settings = _settings(folder)
    if settings.get("add_bos_token") is not True:
        return None
    return _id_of(settings.get("bos_token"), tokenizer)


def ends_of(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a text: of the settings for generation, of the config, of the tokenizer."""
    generation = {}
    if (folder / GENERATION).exists():
        generation = read_object(folder / GENERATION)
    token = _id_of(_settings(folder).get("eos_token"), tokenizer)
    ends = [
        *_ids(folder / GENERATION, generation.get("eos_token_id")),
        *_ids(folder / "config.json", config.get("eos_token_id")),
        *([] if token is None else [token]),
    ]
    return tuple(dict.fromkeys(ends))[:MOST_ENDS]


def _ids(path: Path, value: Any) -> Iterable[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ArtefactError(f"{path}: `eos_token_id` is no token", FETCH)
    return ids


def _id_of(token: Any, tokenizer: Tokenizer) -> int | None:
    """A token of the tokenizer's settings: its text, or a table that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    return read_object(path) if path.exists() else {}
