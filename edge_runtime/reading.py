"""What a device makes of a question before the graph: ids of texts, arrays of files of other media."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from edge_runtime.answer_options import verify_texts
from protocol.errors import DataError
from protocol.manifest import TYPE_IDS
from protocol.media_manifest import MediaManifest
from protocol.panics import tokenizing
from protocol.rows.read import Text

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


class TextReader:
    """Texts, or pairs of them, by the base's tokenizer."""

    ITEM = "text"
    together = ROWS

    def __init__(self, tokenizer: Tokenizer, *, typed: bool, source: str, remedy: str) -> None:
        """``typed``: whether the graph is told which of a pair's texts a token is of."""
        self._tokenizer, self._typed = tokenizer, typed
        self._source, self._remedy = source, remedy
        self._truncation = threading.Lock()  # it is a setting of the shared tokenizer

    def prepared(self, items: Sequence[Any], *, pairs: bool) -> list[Any]:
        """See :class:`Reader`."""
        if not all(isinstance(item, str | tuple) for item in items):
            raise DataError(
                "the base in use answers texts, and files were given",
                "give texts, or take a base that was built from images or sounds",
            )
        verify_texts(items, pairs=pairs)
        return list(items)

    def feeds(self, items: Sequence[Text], *, max_length: int) -> Feeds:
        """int64 (rows, longest row): ids, mask and, of pairs, token types if the graph has some."""
        with self._truncation, tokenizing(f"{self._source} fails", self._remedy):
            self._tokenizer.enable_truncation(max_length)
            encoded = self._tokenizer.encode_batch(list(items))
        width = max(sum(e.attention_mask) for e in encoded)
        ids = np.array([e.ids[:width] for e in encoded], np.int64)
        mask = np.array([e.attention_mask[:width] for e in encoded], np.int64)
        feeds: Feeds = {"input_ids": ids, "attention_mask": mask}
        if self._typed and not isinstance(items[0], str):
            feeds[TYPE_IDS] = np.array([e.type_ids[:width] for e in encoded], np.int64)
        return feeds

    def size(self, item: Text) -> int:
        """Its letters."""
        return len(item) if isinstance(item, str) else sum(map(len, item))

    def example(self, *, pairs: bool) -> Text:
        """See :class:`Reader`."""
        return ("probe", "probe") if pairs else "probe"


class MediaReader:
    """Files of a medium, or what would be in one, as the base asks for them."""

    def __init__(self, manifest: MediaManifest) -> None:
        """Raises MachineError where nothing decodes them: before a question comes, not by one."""
        from protocol.rows.media import codec_of  # decoders load where needed

        self._codec, self._name = codec_of(manifest), manifest.INPUT
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
        """float32 (rows, *shape)."""
        read = all(isinstance(item, np.ndarray) for item in items)
        values = items if read else self.prepared(items, pairs=False)
        return {self._name: self._codec.inputs(np.stack(values))}

    def size(self, item: Any) -> int:
        """All are of one."""
        return 0

    def example(self, *, pairs: bool) -> npt.NDArray[Any]:
        """See :class:`Reader`."""
        return self._codec.example()
