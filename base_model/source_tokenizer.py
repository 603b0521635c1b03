"""The tokenizer of a source, as one JSON text: what the files say, and nothing that is made up.

transformers makes a tokenizer of almost anything: without a vocabulary it takes one of five words, and
a special token without an id gets one behind the embeddings. So what it made is compared with the files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PretrainedConfig

from base_model.source_files import check_file, first_line, read_object
from protocol.errors import ArtefactError, MachineError

FILE, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
SPECIAL = "special_tokens_map.json"
SENTENCE_SETTINGS = "sentence_bert_config.json"
# Any of these rows of files is a vocabulary.
VOCABULARIES = ((FILE,), ("vocab.txt",), ("vocab.json", "merges.txt"), ("sentencepiece.bpe.model",))
SAVE = "save it beside the model with transformers' `tokenizer.save_pretrained`"
# What tokenizers trip over, and what a careless one treats unlike its neighbours.
ODD_TEXTS = ("", " ", "a", "Ä", "ß", "\u0301", "中", "😀", "\u200b\ufeff", "0", "-", "\x00", "\n\t")


def tokenizer_text(folder: Path, config: PretrainedConfig, *, embeddings: int, source: str) -> str:
    """The tokenizer as JSON, padding named and truncation left out: length is the plan's.

    Args:
        folder: of the encoder.
        config: of the encoder; its ``pad_token_id`` serves where the tokenizer has none.
        embeddings: rows of the embedding table; every id has to be one.
        source: for errors.

    Raises ArtefactError, and MachineError where another package is needed.
    """
    vocabulary = _check_files(folder, source)
    made = _made(folder, config, source)
    text = made.backend_tokenizer.to_str()
    pad_id, pad = made.pad_token_id, made.pad_token
    if pad_id is None:
        pad_id = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
        pad = made.convert_ids_to_tokens(pad_id)
    text = _without_padding(text, pad_id, pad or "[PAD]")
    tokenizer = Tokenizer.from_str(text)
    _check_written(folder, vocabulary, tokenizer, source)
    _check_ids(tokenizer, pad_id, embeddings, source)
    _check_lower_case(folder, tokenizer, source)
    return text


def _check_files(folder: Path, source: str) -> tuple[str, ...]:
    """The files of the vocabulary. Raises ArtefactError when the source has no tokenizer."""
    there = [row for row in VOCABULARIES if all((folder / name).exists() for name in row)]
    if not there:
        raise ArtefactError(f"{source}: there is no tokenizer in the source", SAVE)
    for name in (*there[0], SETTINGS, ADDED, SPECIAL):
        if name in there[0] or (folder / name).exists():
            check_file(folder / name)
    if not (folder / SETTINGS).exists():
        raise ArtefactError(
            f"{source}: there is no {SETTINGS}: which tokenizer it is would be guessed", SAVE
        )
    settings = read_object(folder / SETTINGS)
    if settings.get("auto_map"):
        raise ArtefactError(f"{source}: its tokenizer needs code of its own", SAVE)
    if there[0] == ("vocab.txt",) and "do_lower_case" not in settings:
        raise ArtefactError(
            f"{source}: neither {FILE} nor {SETTINGS} says whether texts are lowered", SAVE
        )
    for name in (ADDED, SPECIAL):
        if (folder / name).exists():
            read_object(folder / name)
    if (folder / FILE).exists():
        read_object(folder / FILE)
    return there[0]


def _made(folder: Path, config: PretrainedConfig, source: str) -> Any:
    try:
        with _quiet():
            made = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)
    except ImportError as error:
        raise MachineError(
            f"{source}: its tokenizer needs a package: {first_line(error)}",
            f"install it, or where it is installed: {SAVE}",
        ) from None
    except BaseException as error:  # tokenizers' panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        if isinstance(error, ValueError) and "is required" in str(error):
            raise MachineError(f"{source}: its tokenizer: {first_line(error)}", SAVE) from None
        raise ArtefactError(
            f"{source}: its tokenizer cannot be read: {first_line(error)}", SAVE
        ) from None
    if not hasattr(made, "backend_tokenizer"):
        raise ArtefactError(
            f"{source}: {type(made).__name__} is no fast tokenizer", "use a model that has one"
        )
    return made


def _check_written(
    folder: Path, vocabulary: tuple[str, ...], tokenizer: Tokenizer, source: str
) -> None:
    """Every token stands in a file. Raises ArtefactError that names one that does not."""
    if vocabulary[0].endswith(".model"):
        return  # a format of its own; its ids are checked like all others
    written: set[str] = set()
    for name in vocabulary:
        if name == FILE:
            written |= _tokens_of(read_object(folder / name))
        elif name == "vocab.txt":
            written |= set((folder / name).read_text("utf-8", errors="replace").split("\n"))
        elif name == "vocab.json":
            written |= set(read_object(folder / name))
    if (folder / ADDED).exists():
        written |= set(read_object(folder / ADDED))
    decoder = read_object(folder / SETTINGS).get("added_tokens_decoder")
    for token in decoder.values() if isinstance(decoder, dict) else ():
        written.add(str(token["content"]) if isinstance(token, dict) else str(token))
    made_up = sorted(set(tokenizer.get_vocab()) - written)
    if made_up:
        raise ArtefactError(
            f"{source}: the tokenizer's files have no id for {made_up[0]!r}; one would be made up",
            f"name the special tokens in {SETTINGS}, or {SAVE}",
        )


def _tokens_of(document: dict[str, Any]) -> set[str]:
    model, added = document.get("model"), document.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = {str(token["content"]) for token in added or () if isinstance(token, dict)}
    if isinstance(vocabulary, list):  # Unigram's: [token, score]
        return tokens | {str(entry[0]) for entry in vocabulary}
    return tokens | set(vocabulary or ())


def _check_ids(tokenizer: Tokenizer, pad_id: int, embeddings: int, source: str) -> None:
    """Every id that a text can lead to is a row of the embeddings. Raises ArtefactError."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    by_id = sorted((number, token) for token, number in ids.items())
    try:
        encoded = tokenizer.encode_batch([*ODD_TEXTS, *(token for _, token in by_id[:20])])
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise ArtefactError(
            f"{source}: its tokenizer fails on a text: {first_line(error)}", SAVE
        ) from None
    seen = {number for one in encoded for number in one.ids} | {pad_id}
    beyond = max([*seen, by_id[-1][0] if by_id else 0])
    if beyond >= embeddings or min(seen) < 0:
        token = tokenizer.id_to_token(beyond) or "pad"
        raise ArtefactError(
            f"{source}: the tokenizer has the id {beyond} ({token!r}), "
            f"there are only {embeddings} embeddings",
            "take model and tokenizer from the same place, or resize the model's embeddings to it",
        )
    if any(number for one in encoded for number in one.type_ids):
        raise ArtefactError(
            f"{source}: its tokenizer marks a text as a second segment", "use another model"
        )


def _check_lower_case(folder: Path, tokenizer: Tokenizer, source: str) -> None:
    """Old sentence-transformers lower a text before its tokenizer, which a base does not."""
    path = folder / SENTENCE_SETTINGS
    if not path.exists() or not read_object(path).get("do_lower_case"):
        return
    if tokenizer.encode("ABC Word").ids != tokenizer.encode("abc word").ids:
        raise ArtefactError(
            f"{source}: {SENTENCE_SETTINGS} lowers texts, its tokenizer does not",
            f"add a lower-case normaliser to {FILE}",
        )


def _without_padding(text: str, pad_id: int, pad_token: str) -> str:
    document = json.loads(text)
    document["truncation"] = None
    document["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": pad_id,
        "pad_type_id": 0,
        "pad_token": pad_token,
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


class _quiet:  # noqa: N801
    """transformers warns about what is checked here."""

    def __enter__(self) -> None:
        self._level = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers.utils.logging.set_verbosity(self._level)
