"""BPE of sentencepiece in a GGUF file, as Llama 2 published it in ``tokenizer.json``.

sentencepiece joins the two neighbours whose piece has the highest score. A ``tokenizer.json`` has an order of
pairs instead: every way to cut a piece in two, pieces in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from gguf import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers

from base_model.gguf.container import shown
from base_model.gguf.words import CHECKPOINT, KEY, Draft, Words, numbers_of
from base_model.source_files import FETCH, first_line
from protocol.errors import ArtefactError

BLANK = "\u2581"  # stands for a blank within pieces
MOST_PIECE = 128  # characters; sentencepiece makes pieces of 16
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PRE = (None, "default")  # no cut before the pieces; some models use the kind with one
REASON = "texts are taken as they are: the file holds no normaliser of its sentencepiece model"


def sentence_pieces(words: Words) -> Draft:
    """The tokenizer without its special tokens. Raises ArtefactError."""
    _check(words)
    unknown = words.special("unknown")
    try:
        model = models.BPE(
            vocab=words.ids(),
            merges=_merges(words),
            unk_token=None if unknown is None else words.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    except Exception as error:
        raise ArtefactError(
            f"{words.path}: its tokenizer cannot be read: {first_line(error)}", FETCH
        ) from None
    tokenizer = Tokenizer(model)
    prefix = bool(words.keys.get(f"{KEY}add_space_prefix", True))
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(BLANK)] if prefix else []), normalizers.Replace(" ", BLANK)]
    )
    joined = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*joined, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    return Draft(tokenizer=tokenizer, begins=True, reasons=(REASON,))


def _check(words: Words) -> None:
    """Raises ArtefactError for what this order of pairs would not do as sentencepiece does."""
    pre = words.keys.get(f"{KEY}pre")
    if pre not in PRE:
        raise ArtefactError(
            f"{words.path}: its tokenizer has the pre-tokenizer {shown(pre)} before its pieces, "
            "which cannot be read",
            CHECKPOINT,
        )
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if words.keys.get(f"{KEY}{key}", False) is not False:
            raise ArtefactError(
                f"{words.path}: its tokenizer changes texts first ({key})", CHECKPOINT
            )
    if set(BYTES) - set(words.tokens):
        raise ArtefactError(f"{words.path}: its vocabulary lacks tokens for bytes", CHECKPOINT)
    for token, kind in zip(words.tokens, words.kinds, strict=True):
        if kind == TokenType.USER_DEFINED and BLANK in token:
            raise ArtefactError(
                f"{words.path}: the token {token!r} of a user holds blanks, which cannot be read",
                CHECKPOINT,
            )
        if kind == TokenType.NORMAL and len(token) > MOST_PIECE:
            raise ArtefactError(f"{words.path}: a piece has {len(token)} characters", FETCH)


def _merges(words: Words) -> list[tuple[str, str]]:
    """Pairs of pieces, best first. Raises ArtefactError where scores give no order."""
    scores = numbers_of(words.keys, "scores", "f")
    if scores is None or len(scores) != len(words.tokens) or not np.isfinite(scores).all():
        raise ArtefactError(f"{words.path}: its pieces have no scores", FETCH)
    normal = {
        token: number
        for number, (token, kind) in enumerate(zip(words.tokens, words.kinds, strict=True))
        if kind == TokenType.NORMAL
    }
    joined = [(float(scores[number]), _halves(token, normal)) for token, number in normal.items()]
    joined = sorted(((score, pairs) for score, pairs in joined if pairs), key=lambda item: -item[0])
    for (score, pairs), (next_score, others) in pairwise(joined):
        if score == next_score:  # sentencepiece would go by their places in the text
            raise ArtefactError(
                f"{words.path}: the pieces {''.join(pairs[0])!r} and {''.join(others[0])!r} have the same "
                "score, so that they have no order",
                CHECKPOINT,
            )
    return [pair for _, pairs in joined for pair in pairs]


def _halves(token: str, normal: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, in the order that Hugging Face's converter has."""
    pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
    pairs = [(first, last) for first, last in pairs if first in normal and last in normal]
    return sorted(pairs, key=lambda pair: (normal[pair[0]], normal[pair[1]]))
