"""Pages of documents: words and where they stand, and what a tokenizer makes of both. (P-1.17)

Whoever reads a page reads it here, so that a client, a release and a device compute of the same numbers.
Messages say where a row stands and which of its words or boxes it is, and nothing of what stands there.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from protocol.documents import OddError, parse_json
from protocol.errors import DataError
from protocol.manifest import BOXES as INPUT
from protocol.rows.formats import JsonObject, Place, read_values, type_name
from protocol.rows.read import Check, Table, group_name
from protocol.rows.tokens import Integers, padded, text_feeds
from storage.regular import read_regular

WORDS, BOXES = "words", "boxes"  # columns, where nobody says otherwise
MOST_WORDS, LONGEST_WORD, MOST_LETTERS = (
    4096,
    1000,
    2**16,
)  # of a page; letters of a word, and of all
MOST_FILE = 2**22  # bytes of a file with one page
EDGE = 1000  # boxes are in thousandths of a page's width and height
Box = tuple[int, int, int, int]  # left, upper, right and lower edge
FIRST: Box = (0, 0, 0, 0)  # of the token in front of all words, and of pads
LAST: Box = (EDGE, EDGE, EDGE, EDGE)  # of other tokens that are no word's
MEANT = "give each word its left, upper, right and lower edge in thousandths of the page's width and height"
ALONE = (
    'name a JSON file of one page, {"words": [...], "boxes": [...]}; files of rows go with --file'
)
LISTS = "write a list there, in a row of JSONL or Parquet: a field of CSV holds none"


@dataclass(frozen=True, slots=True)
class Page:
    """Words and where each stands; of the latter 8 bytes a word, since a site has all its pages in memory."""

    words: tuple[str, ...]
    edges: bytes

    @classmethod
    def of(cls, words: Iterable[str], boxes: Iterable[Box]) -> Page:
        """``boxes[i]`` is where ``words[i]`` stands."""
        return cls(tuple(words), array("h", chain.from_iterable(boxes)).tobytes())

    @property
    def boxes(self) -> tuple[Box, ...]:
        """One for each word."""
        edges = array("h")
        edges.frombytes(self.edges)
        each = iter(edges.tolist())
        return tuple(zip(each, each, each, each, strict=True))

    @property
    def letters(self) -> int:
        """Of all words."""
        return sum(map(len, self.words))


def page_of(
    words: object, boxes: object, *, place: str, columns: tuple[str, str] = (WORDS, BOXES)
) -> Page:
    """A page of lists that somebody else wrote; ``place`` and ``columns`` are where. Raises DataError."""
    named = [f"{place}: `{column}`" for column in columns]
    each, places = _words(words, named[0]), _boxes(boxes, named[1])
    if len(each) != len(places):
        raise _odd(
            f"{place}: {len(each)} `{columns[0]}` and {len(places)} `{columns[1]}`",
            "give each word one box",
        )
    return Page.of(each, places)


def _words(value: object, place: str) -> tuple[str, ...]:
    words = _listed(value, place)
    for number, word in enumerate(words, 1):
        if type(word) is not str:
            raise _odd(f"{place}: word {number} is a {type_name(word)}, no text", "write a string")
        if not word.strip() or "\0" in word or not _encodes(word):
            raise _odd(
                f"{place}: word {number} is empty, or holds a NUL character or half of a surrogate pair",
                "leave the word and its box out",
            )
        if len(word) > LONGEST_WORD:
            raise _odd(
                f"{place}: word {number} has {len(word)} characters, more than {LONGEST_WORD}",
                "part it, or leave it and its box out",
            )
    if (letters := sum(map(len, words))) > MOST_LETTERS:
        raise _odd(
            f"{place}: {letters} characters, more than the {MOST_LETTERS} of a page",
            "make several pages of it",
        )
    return tuple(words)


def _boxes(value: object, place: str) -> tuple[Box, ...]:
    return tuple(_box(box, f"{place}: box {at}") for at, box in enumerate(_listed(value, place), 1))


def _box(value: object, place: str) -> Box:
    edges = list(value) if isinstance(value, list | tuple) else []
    whole = len(edges) == 4 and all(type(edge) is int and 0 <= edge <= EDGE for edge in edges)
    if not whole:
        raise _odd(f"{place} is not four whole numbers from 0 to {EDGE}", MEANT)
    left, upper, right, lower = edges
    if left > right or upper > lower:
        raise _odd(f"{place} ends before it begins", MEANT)
    return left, upper, right, lower


def _listed(value: object, place: str) -> list[Any]:
    """A list of one to as many as a page may have."""
    if not isinstance(value, list | tuple) or isinstance(value, JsonObject):
        raise _odd(f"{place} holds a {type_name(value)}, not a list", LISTS)
    if not 1 <= len(value) <= MOST_WORDS:
        raise _odd(
            f"{place} lists {len(value)}, not 1 to {MOST_WORDS}",
            "remove an empty page, make several of a large one",
        )
    return list(value)


def _encodes(word: str) -> bool:
    return word.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in word)


def _odd(cause: str, remedy: str) -> DataError:
    return DataError(cause, remedy, public="a page that cannot be read")


# -- files -------------------------------------------------------------------------------------------


def read_pages(
    path: Path, *, columns: tuple[str, str], target: str, check: Check, group: str = ""
) -> Table:
    """Rows of ``.jsonl`` or ``.parquet``: pages by the columns of words and boxes, and targets.

    Raises DataError for the first row that does not fit, MachineError where Parquet cannot be read.
    """
    table = Table()
    for place, values in read_values(path, [*columns, target, *filter(None, [group])]):
        table.texts.append(page_of(*values[:2], place=str(place), columns=columns))
        table.targets.append(check(values[2], place, target))
        table.places.append(place)
        if group:
            table.groups.append(group_name(values[-1], place, group))
    return table


def read_placed_pages(path: Path) -> list[tuple[Place, Page]]:
    """Pages alone, each with where its row stands. Raises as read_pages."""
    return [
        (place, page_of(*values, place=str(place)))
        for place, values in read_values(path, [WORDS, BOXES])
    ]


def read_page(path: Path) -> Page:
    """Of a JSON file with one page: ``words`` and ``boxes``, no more. Raises DataError."""
    try:
        document = parse_json(read_regular(path, most=MOST_FILE), most=MOST_FILE)
    except OSError as error:
        raise _odd(f"{path}: cannot be read: {error.strerror}", ALONE) from None
    except OddError as odd:
        raise _odd(f"{path}: {odd}", ALONE) from None
    if not isinstance(document, dict) or document.keys() != {WORDS, BOXES}:
        raise _odd(f"{path}: not an object of `{WORDS}` and `{BOXES}` alone", ALONE)
    return page_of(document[WORDS], document[BOXES], place=str(path))


# -- tokens ------------------------------------------------------------------------------------------


def page_encodings(tokenizer: Any, pages: Sequence[Page]) -> list[Any]:
    """What a ``tokenizers.Tokenizer``, as it is set to cut and pad, makes of pages, word by word."""
    return list(tokenizer.encode_batch([list(page.words) for page in pages], is_pretokenized=True))


def page_feeds(encodings: Sequence[Any], pages: Sequence[Page]) -> dict[str, Integers]:
    """What a graph reads of pages: ids and mask as of texts, and boxes int64 (rows, longest row, 4)."""
    boxes = [boxes_of(*each) for each in zip(encodings, pages, strict=True)]
    return text_feeds(encodings) | {INPUT: padded(boxes, encodings)}


def boxes_of(encoding: Any, page: Page) -> list[Box]:
    """Of each token of a page's encoding: its word's, or what stands for a token that is no word's."""
    boxes, places = [], page.boxes
    for at, (word, seen) in enumerate(zip(encoding.word_ids, encoding.attention_mask, strict=True)):
        if word is not None:
            boxes.append(places[word])
        else:
            boxes.append(LAST if at and seen else FIRST)
    return boxes
