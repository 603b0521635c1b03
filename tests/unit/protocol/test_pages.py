"""Pages of words and boxes: what is one, what is none, and that nothing of one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from protocol.errors import DataError
from protocol.rows.pages import (
    EDGE,
    FIRST,
    LAST,
    LONGEST_WORD,
    MOST_LETTERS,
    MOST_WORDS,
    Page,
    boxes_of,
    page_encodings,
    page_feeds,
    page_of,
    read_page,
    read_placed_pages,
)
from tests.page_models import pages, write_tokenizer

BOX = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    return tokenizer


@pytest.mark.parametrize(
    ("words", "boxes", "cause"),
    [
        ("secret", [BOX], "`words` holds a string, not a list"),
        ({"secret": 1}, [BOX], "`words` holds a JSON object, not a list"),
        (None, [BOX], "`words` holds a null, not a list"),
        ([], [], "`words` lists 0, not 1 to 4096"),
        (["a"] * (MOST_WORDS + 1), [BOX] * (MOST_WORDS + 1), "lists 4097, not 1 to 4096"),
        ([5], [BOX], "`words`: word 1 is a number, no text"),
        (["a", None], [BOX] * 2, "`words`: word 2 is a null, no text"),
        (["a", " \t"], [BOX] * 2, "`words`: word 2 is empty"),
        (["a\0"], [BOX], "word 1 is empty, or holds a NUL"),
        (["\ud800"], [BOX], "half of a surrogate pair"),
        (["s" * (LONGEST_WORD + 1)], [BOX], "word 1 has 1001 characters, more than 1000"),
        (["s" * LONGEST_WORD] * 66, [BOX] * 66, "66000 characters, more than the 65536 of a page"),
        (["secret"], [BOX] * 2, "1 `words` and 2 `boxes`"),
        (["a"], "secret", "`boxes` holds a string"),
        *(
            (["a"], [odd], "`boxes`: box 1 is not four whole numbers from 0 to 1000")
            for odd in (
                *([1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4.0], [1, 2, 3, True], [-1, 2, 3, 4]),
                *([1, 2, 3, EDGE + 1], ["1", 2, 3, 4], [None] * 4, "1234", 5, None, {}),
                [1, 2, 3, float("inf")],
            )
        ),
        (["a"] * 2, [BOX, [3, 2, 1, 4]], "`boxes`: box 2 ends before it begins"),
        (["a"], [[1, 4, 3, 2]], "`boxes`: box 1 ends before it begins"),
    ],
)
def test_what_is_no_page_is_refused(words: Any, boxes: Any, cause: str) -> None:
    with pytest.raises(DataError) as caught:
        page_of(words, boxes, place="line 7")
    assert caught.value.cause.startswith("line 7")
    assert cause in caught.value.cause
    assert "secret" not in str(caught.value)
    assert caught.value.public == "a page that cannot be read"


def test_bounds_are_of_pages_that_are_read() -> None:
    most = page_of(["s" * 16] * MOST_WORDS, [[0, 0, EDGE, EDGE]] * MOST_WORDS, place="x")
    assert most.letters == MOST_LETTERS
    assert page_of(["New York"], [[5, 5, 5, 5]], place="x") == Page.of(["New York"], [(5, 5, 5, 5)])


BOXES = st.lists(st.integers(0, EDGE), min_size=4, max_size=4).map(
    lambda e: [min(e[0], e[2]), min(e[1], e[3]), max(e[0], e[2]), max(e[1], e[3])]
)
WORDS_OF_ANYBODY = st.text(min_size=1, max_size=20).filter(
    lambda word: word.strip() != "" and "\0" not in word
)


@given(st.lists(st.tuples(WORDS_OF_ANYBODY, BOXES), min_size=1, max_size=8), st.integers(3, 12))
def test_every_token_stands_where_its_word_does(
    tokenizer: Tokenizer, rows: list[tuple[str, list[int]]], most: int
) -> None:
    """Whatever a page says: a box a token, the edges' where none is a word's, and nothing behind the length."""
    try:
        page = page_of([word for word, _ in rows], [box for _, box in rows], place="x")
    except DataError:
        assert any("\ud800" <= letter <= "\udfff" for word, _ in rows for letter in word)
        return
    tokenizer.enable_truncation(most)
    other = pages(1, most=3)[0]
    encodings = page_encodings(tokenizer, [page, other])
    feeds = page_feeds(encodings, [page, other])
    width = feeds["input_ids"].shape[1]
    assert width <= most
    assert feeds["bbox"].shape == (2, width, 4)
    boxes, seen = boxes_of(encodings[0], page), encodings[0].attention_mask
    alone = sum(seen)
    assert (boxes[0], boxes[alone - 1]) == (FIRST, LAST)
    assert set(boxes[alone:]) <= {FIRST}
    at = 1
    for word, box in zip(page.words, page.boxes, strict=True):
        for _ in tokenizer.encode(word, add_special_tokens=False).ids if at < alone - 1 else ():
            if at < alone - 1:
                assert boxes[at] == box
                at += 1
    assert at == alone - 1


def test_a_file_holds_one_page_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"words": ["a"], "boxes": [BOX]}, indent=1))
    assert read_page(path) == Page.of(["a"], [(1, 2, 3, 4)])
    for text, cause in (
        ('{"words": ["secret"]}', "not an object of `words` and `boxes` alone"),
        ('{"words": ["a"], "boxes": [[1, 2, 3, 4]], "secret": 1}', "alone"),
        ("[]", "alone"),
        ("secret", "not JSON"),
        ('{"words": ["a"], "words": ["b"], "boxes": [[1, 2, 3, 4]]}', "twice"),
        ('{"words": [], "boxes": []}', "`words` lists 0"),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            read_page(path)
        assert caught.value.cause.startswith(str(path))
        assert cause in caught.value.cause
        assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_page(tmp_path / "absent.json")


def test_pages_of_rows_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"words": ["a"], "boxes": [BOX], "whose": 5})
    path.write_text(f"{row}\n\n{row}\n")
    placed = read_placed_pages(path)
    assert [str(place) for place, _ in placed] == [f"{path}: line 1", f"{path}: line 3"]
