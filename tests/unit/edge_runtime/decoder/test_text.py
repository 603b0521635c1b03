"""Text that is given out while tokens come is the text of all of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edge_runtime.decoder.text import INCOMPLETE, LONGEST_STOP, MOST_STOPS, StopStrings, TextStream
from protocol.errors import DataError

SPECIAL = ["<s>", "</s>"]


def byte_fallback() -> Any:
    """As Llama's: words, and a token for every byte, whose runs are characters or are not."""
    words = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "a", "é", "▁▁"]
    words += ["<|tag|>"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken("<|tag|>", normalized=False)])
    return tokenizer


def byte_level() -> Any:
    """As GPT-2's: tokens are bytes, one or several, of a character or across two."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    e_acute, euro = "Ã©", "âĤ¬"
    merged = [e_acute, euro[:2], euro, euro[2] + "a", "Ġt", "Ġ", "ðŁ"]
    words = list(dict.fromkeys([*SPECIAL, *alphabet, *merged, "<|tag|>"]))
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken("<|tag|>", normalized=False)])
    return tokenizer


def metaspace() -> Any:
    words = [*SPECIAL, "▁", "▁the", "▁a", "b", "é"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    return tokenizer


def words(decoder: Any) -> Any:
    """Whole words, with spaces between them that no token holds."""
    every = [*SPECIAL, "the", "##s", "é", ".", " n't", "##", "do not"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(word, normalized=False) for word in SPECIAL])
    return tokenizer


TOKENIZERS = {
    "fallback": byte_fallback(),
    "level": byte_level(),
    "metaspace": metaspace(),
    "words": words(None),
    "pieces": words(decoders.WordPiece()),
}
EURO = "€ café 😀\n日本"


def tokens_of(name: str) -> st.SearchStrategy[list[int]]:
    """Any tokens, often the bytes of real characters, and some that the tokenizer does not know."""
    tokenizer = TOKENIZERS[name]
    anything = st.integers(0, tokenizer.get_vocab_size() + 3).map(lambda token: [token])
    if name == "fallback":
        text = st.text(alphabet=EURO, min_size=1, max_size=3).map(
            lambda t: [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in t.encode()]
        )
    elif name == "level":
        pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        text = st.text(alphabet=EURO, min_size=1, max_size=3).map(
            lambda t: [tokenizer.token_to_id(c) for c in pre.pre_tokenize_str(t)[0][0]]
        )
    else:
        text = anything
    return st.lists(st.one_of(anything, text), max_size=12).map(
        lambda parts: [token for part in parts for token in part]
    )


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_the_pieces_are_the_decoding_of_all_tokens(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(tokens_of(name))
    stream, text = TextStream(tokenizer), ""
    whole = tokenizer.decode(tokens)
    for token in tokens:
        text += stream.push(token)
        assert whole.startswith(text)
    assert text + stream.finish() == whole


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_pieces_behind_a_prompt_continue_its_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    last = st.sampled_from(["▁the", "a", "b", "é", "Ġt", "the", ".", "▁"])
    end = tokenizer.token_to_id(data.draw(last))
    prompt = [*data.draw(tokens_of(name)), *([] if end is None else [end])]
    tokens = data.draw(tokens_of(name))
    stream = TextStream(tokenizer, after=prompt[-1] if prompt else None)
    text = "".join([*map(stream.push, tokens), stream.finish()])
    if end is not None and not tokenizer.decode(prompt).endswith(INCOMPLETE):
        assert tokenizer.decode(prompt) + text == tokenizer.decode([*prompt, *tokens])
    elif prompt and tokenizer.id_to_token(prompt[-1]) in SPECIAL:
        assert text == tokenizer.decode(tokens)


def test_a_character_is_given_out_with_its_last_byte() -> None:
    tokenizer = TOKENIZERS["level"]
    stream = TextStream(tokenizer)
    tokens = [tokenizer.token_to_id(word) for word in ("âĤ", "¬a", "Ġt")]
    assert [stream.push(token) for token in tokens] == ["", "€a", " t"]


def test_a_tail_that_is_no_character_is_given_out_at_the_end() -> None:
    tokenizer = TOKENIZERS["fallback"]
    stream = TextStream(tokenizer)
    assert [stream.push(tokenizer.token_to_id(w)) for w in ("a", "<0x41>", "<0xE2>")] == [
        "a",
        "",
        "",
    ]
    assert stream.finish() == tokenizer.decode(
        [tokenizer.token_to_id(w) for w in ("a", "<0x41>", "<0xE2>")]
    ).removeprefix("a")


LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3)


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_nothing_of_a_stop_string_is_given_out_however_the_text_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    filtered, text, whole = StopStrings(stops), "", "".join(pieces)
    for piece in pieces:
        text += filtered.push(piece)
    text += filtered.finish()
    expected, said = by_character(whole, stops)
    assert (text, filtered.stopped) == (expected, said)


def by_character(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The law: the text up to the first stop string to end, of those the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_what_cannot_belong_to_a_stop_string_is_not_held_back(pieces, stops) -> None:
    filtered, given_out, seen = StopStrings(stops), "", ""
    for piece in pieces:
        given_out += filtered.push(piece)
        seen += piece
        if filtered.stopped is None:
            held = seen[len(given_out) :]
            assert held == "" or any(stop.startswith(held) for stop in stops)


def test_odd_stop_strings_are_refused() -> None:
    for stops in ([""], ["a", "b" * (LONGEST_STOP + 1)], ["x"] * (MOST_STOPS + 1)):
        with pytest.raises(DataError, match="stop string"):
            StopStrings(stops)
