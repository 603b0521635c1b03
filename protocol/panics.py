"""What the tokenizers library does with a stranger's tokenizer that it did not expect.

It raises plain Exceptions, and panics that are none: `except Exception` lets those through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import ArtefactError

OURS = (KeyboardInterrupt, SystemExit, GeneratorExit)
OF_THE_TEXT = (TypeError, UnicodeEncodeError)


@contextmanager
def tokenizing(what: str, remedy: str, *, private: bool = False) -> Iterator[None]:
    """Raises ArtefactError, which begins with ``what``, for whatever the library raises.

    ``private``: without what the library says, in which the text may stand. TypeError and UnicodeEncodeError
    stay as they are: they are about a text, not about the tokenizer.
    """
    try:
        yield
    except (*OURS, *OF_THE_TEXT):
        raise
    except BaseException as error:
        lines = [] if private else str(error).splitlines()
        first = (lines or [type(error).__name__])[0][:200]
        raise ArtefactError(f"{what}: {first}", remedy) from None
