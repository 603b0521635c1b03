"""What a device makes of a question before the graph: ids of texts, arrays of files of other media."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edge_runtime.answer_options import verify_texts
from protocol.errors import DataError
from protocol.manifest import TYPE_IDS
from protocol.media_manifest import MediaManifest
from protocol.panics import tokenizing
from protocol.rows.pages import EDGE, FIRST, Page, page_encodings, page_feeds
from protocol.rows.read import Text
from protocol.rows.tokens import padded, text_feeds

ROWS = 32  # per run: texts of like length together
DECODERS = 2  # files at a time: one of the largest images takes some 300 MB until it is stretched
Feeds = dict[str, npt.NDArray[Any]]


class Reader(Protocol):
    """Of an opened base; safe to use from many threads."""

    ITEM: str  # what it reads
    together: int  # most questions that one run of the graph has

    def prepared(self, items: Sequence[Any], *, pairs: bool) -> list[Any]:
        """The same, read as far as a question can be at fault. Raises DataError, which is the asker's."""
        ...

    def feeds(self, items: Sequence[Any], *, max_length: int) -> Feeds:
        """What the graph reads, of questions that may be prepared."""
        ...

    def size(self, item: Any) -> int:
        """By which questions of like length are answered together."""
        ...

    def example(self, *, pairs: bool) -> Any:
        """A question that any adapter can answer."""
        ...


class TokenReader:
    """What readers share that go by the base's tokenizer."""

    together = ROWS

    def __init__(self, tokenizer: Tokenizer, *, source: str, remedy: str) -> None:
        """``source``, ``remedy``: of the tokenizer, for errors."""
        self._tokenizer, self._source, self._remedy = tokenizer, source, remedy
        self._truncation = threading.Lock()  # it is a setting of the shared tokenizer

    @contextmanager
    def _cut(self, max_length: int) -> Iterator[Tokenizer]:
        """The tokenizer, as it cuts to so many tokens."""
        with self._truncation, tokenizing(f"{self._source} fails", self._remedy):
            self._tokenizer.enable_truncation(max_length)
            yield self._tokenizer


class TextReader(TokenReader):
    """Texts, or pairs of them."""

    ITEM = "text"

    def __init__(self, tokenizer: Tokenizer, *, typed: bool, source: str, remedy: str) -> None:
        """``typed``: whether the graph is told which of a pair's texts a token is of."""
        super().__init__(tokenizer, source=source, remedy=remedy)
        self._typed = typed

    def prepared(self, items: Sequence[Any], *, pairs: bool) -> list[Any]:
        """See :class:`Reader`."""
        if not all(isinstance(item, str | tuple) for item in items):
            raise DataError(
                "the base in use answers texts, and files or pages were given",
                "give texts, or take a base that was built from images, sounds or documents",
            )
        verify_texts(items, pairs=pairs)
        return list(items)

    def feeds(self, items: Sequence[Text], *, max_length: int) -> Feeds:
        """int64 (rows, longest row): ids, mask and, of pairs, token types if the graph has some."""
        with self._cut(max_length) as tokenizer:
            encoded = tokenizer.encode_batch(list(items))
        feeds: Feeds = dict(text_feeds(encoded))
        if self._typed and not isinstance(items[0], str):
            feeds[TYPE_IDS] = padded([e.type_ids for e in encoded], encoded)
        return feeds

    def size(self, item: Text) -> int:
        """Its letters."""
        return len(item) if isinstance(item, str) else sum(map(len, item))

    def example(self, *, pairs: bool) -> Text:
        """See :class:`Reader`."""
        return ("probe", "probe") if pairs else "probe"


class PageReader(TokenReader):
    """Words and where they stand on a page. (P-1.17)"""

    ITEM = "page"

    def prepared(self, items: Sequence[Any], *, pairs: bool) -> list[Any]:
        """See :class:`Reader`; whoever makes a page of what a question holds has looked at it."""
        if not all(isinstance(item, Page) for item in items):
            raise DataError(
                "the base in use answers pages of words with their boxes, and something else was given",
                "give words and boxes, or take a base that was built from texts, images or sounds",
            )
        return list(items)

    def feeds(self, items: Sequence[Page], *, max_length: int) -> Feeds:
        """int64 (rows, longest row): ids, mask and boxes (rows, longest row, 4)."""
        with self._cut(max_length) as tokenizer:
            return dict(page_feeds(page_encodings(tokenizer, items), items))

    def size(self, item: Page) -> int:
        """Its letters."""
        return item.letters

    def example(self, *, pairs: bool) -> Page:
        """See :class:`Reader`: a word that fills the page, and one in its corner."""
        return Page.of(("probe", "probe"), ((0, 0, EDGE, EDGE), FIRST))


class MediaReader:
    """Files of a medium, or what would be in one, as the base asks for them."""

    def __init__(self, manifest: MediaManifest) -> None:
        """Raises MachineError where nothing decodes them: before a question comes, not by one."""
        from protocol.rows.media import codec_of  # decoders load where needed

        self._codec = codec_of(manifest)
        self._codec.load()
        self.ITEM, self.together = manifest.MEDIUM.noun, manifest.together(ROWS)
        self._decoding = threading.Semaphore(DECODERS)

    def prepared(self, items: Sequence[Any], *, pairs: bool) -> list[Any]:
        """See :class:`Reader`; prepared files are arrays, as the codec keeps them."""
        from protocol.rows.media import read_file, verify_files

        verify_files(items, self._codec.medium)
        values = []
        for number, item in enumerate(items, 1):
            with self._decoding:
                values.append(read_file(item, self._codec, place=f"{self.ITEM} {number}"))
        return values

    def feeds(self, items: Sequence[Any], *, max_length: int) -> Feeds:
        """float32 (rows, *shape) and, of some, int64: which of it is a file's own."""
        read = all(isinstance(item, np.ndarray) for item in items)
        values = items if read else self.prepared(items, pairs=False)
        return self._codec.inputs(np.stack(values))

    def size(self, item: Any) -> int:
        """All are of one."""
        return 0

    def example(self, *, pairs: bool) -> npt.NDArray[Any]:
        """See :class:`Reader`."""
        return self._codec.example()
