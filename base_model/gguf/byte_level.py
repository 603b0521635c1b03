"""Byte-level BPE of a GGUF file: its merges, and how texts are cut before them.

A file has only a name for the cut. The merges work with any, and would then silently be another tokenizer: a
name that is not among PRE_TOKENIZERS is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from base_model.gguf.container import shown
from base_model.gguf.words import CHECKPOINT, KEY, Draft, Words
from base_model.source_files import FETCH, first_line
from protocol.errors import ArtefactError

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


def byte_level(words: Words) -> Draft:
    """The tokenizer without its special tokens. Raises ArtefactError."""
    cut = _cut_of(words)
    merges = words.keys.get(f"{KEY}merges")
    if not isinstance(merges, list):
        raise ArtefactError(f"{words.path}: there are no merges in the file", FETCH)
    pairs = [tuple(merge.split(" ")) for merge in merges]
    odd = next((merge for merge, pair in zip(merges, pairs, strict=True) if len(pair) != 2), None)
    if odd is not None:
        raise ArtefactError(f"{words.path}: the merge {odd!r} is no pair of tokens", FETCH)
    try:
        model = models.BPE(vocab=words.ids(), merges=pairs, ignore_merges=cut.whole_words)
    except Exception as error:
        raise ArtefactError(
            f"{words.path}: its tokenizer cannot be read: {first_line(error)}", FETCH
        ) from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC() if cut.nfc else None
    tokenizer.pre_tokenizer = cut.pieces()
    tokenizer.decoder = decoders.ByteLevel()
    lacking = len(set(pre_tokenizers.ByteLevel.alphabet()) - set(words.tokens))
    reason = f"{lacking} of 256 bytes have no token: they vanish from texts"
    return Draft(tokenizer=tokenizer, begins=cut.begins, reasons=(reason,) if lacking else ())


def _cut_of(words: Words) -> Cut:
    name = words.keys.get(f"{KEY}pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        says = "names no pre-tokenizer" if name is None else f"has the pre-tokenizer {shown(name)}"
        raise ArtefactError(
            f"{words.path}: its tokenizer {says}, so texts would be cut by guess; "
            f"these can be read: {', '.join(PRE_TOKENIZERS)}",
            CHECKPOINT,
        )
    return PRE_TOKENIZERS[name]
