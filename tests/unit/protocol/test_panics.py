"""What a tokenizer raises that is no Exception becomes an error with a cause; what is ours or a text's does not."""

from __future__ import annotations

import pytest

from protocol.errors import ArtefactError
from protocol.panics import tokenizing


class PanicError(BaseException):
    """Like the library's own: no Exception."""


@pytest.mark.parametrize(
    "error", [PanicError("first\nsecond"), ValueError("first"), Exception("first")]
)
def test_whatever_the_library_raises_is_an_error_with_its_first_line(error: BaseException) -> None:
    with (
        pytest.raises(ArtefactError, match=r"^tokenizer\.json: first") as caught,
        tokenizing("tokenizer.json", "do"),
    ):
        raise error
    assert caught.value.remedy == "do"
    assert "second" not in caught.value.cause


def test_what_the_library_says_of_a_private_text_stays_out() -> None:
    with (
        pytest.raises(ArtefactError) as caught,
        tokenizing("tokenizer.json", "do", private=True),
    ):
        raise PanicError("byte index 1 is not a char boundary of `secret`")
    assert caught.value.cause == "tokenizer.json: PanicError"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, TypeError])
def test_what_is_not_the_tokenizers_stays(error: type[BaseException]) -> None:
    with pytest.raises(error), tokenizing("tokenizer.json", "do"):
        raise error
