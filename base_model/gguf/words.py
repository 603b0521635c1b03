"""The vocabulary of a GGUF file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
from tokenizers import Tokenizer

from base_model.gguf.container import Container, Numbers, shown
from base_model.source_files import FETCH
from protocol.errors import ArtefactError

KEY = "tokenizer.ggml."
CHECKPOINT = "use the model's checkpoint as Hugging Face has it, with its own tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Words:
    """``tokens`` by id, no two the same; ``kinds`` of them, as ``gguf.TokenType`` numbers them."""

    path: Path
    keys: Mapping[str, Any]
    tokens: list[str]
    kinds: list[int]

    def ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: number for number, token in enumerate(self.tokens)}

    def special(self, name: str) -> int | None:
        """The token that a key names, None where there is no such key. Raises ArtefactError."""
        key = f"{KEY}{name}_token_id"
        value = self.keys.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < len(self.tokens)):
            raise ArtefactError(f"{self.path}: the key {key!r} ({shown(value)}) is no token", FETCH)
        return value


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A tokenizer that knows no special tokens yet.

    ``begins``: whether texts begin with a token for it where the file does not say.
    """

    tokenizer: Tokenizer
    begins: bool
    reasons: tuple[str, ...]


def words_of(container: Container, *, embeddings: int) -> Words:
    """The vocabulary of a file whose table has ``embeddings`` rows. Raises ArtefactError."""
    path, tokens = container.path, container.keys.get(f"{KEY}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise ArtefactError(f"{path}: there is no vocabulary in the file", FETCH)
    if len(tokens) > embeddings:
        raise ArtefactError(
            f"{path}: its vocabulary has {len(tokens)} tokens, there are {embeddings} embeddings",
            FETCH,
        )
    if len(set(tokens)) < len(tokens):
        (twice, _), *_ = Counter(tokens).most_common(1)
        raise ArtefactError(f"{path}: the token {twice!r} is twice in its vocabulary", CHECKPOINT)
    kinds = numbers_of(container.keys, "token_type", "iu")
    if kinds is None or len(kinds) != len(tokens):
        raise ArtefactError(
            f"{path}: its vocabulary does not say which tokens are special", CHECKPOINT
        )
    return Words(path=path, keys=container.keys, tokens=tokens, kinds=kinds.tolist())


def numbers_of(keys: Mapping[str, Any], name: str, kind: str) -> npt.NDArray[Any] | None:
    """The array of a key of the tokenizer, of one of numpy's ``kind``; None for anything else."""
    value = keys.get(f"{KEY}{name}")
    if isinstance(value, Numbers) and value.values.dtype.kind in kind:
        return value.values
    return None
