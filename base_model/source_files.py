"""Files of a source: there, whole, and not a stand-in for something that was never fetched.

What transformers says about a broken file is seldom what is wrong with it, so it is looked at first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol.errors import ArtefactError
from storage.regular import open_regular, read_regular_text

POINTER = b"version https://git-lfs"
MOST_DOCUMENT = 2**28  # bytes: a tokenizer with a large vocabulary
FETCH = "fetch the source again"


def check_file(path: Path) -> None:
    """Raises ArtefactError for a file that is missing, empty, unreadable or a pointer of git-lfs."""
    try:
        with open_regular(path) as file:
            head = file.read(len(POINTER))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing", FETCH) from None
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", FETCH) from None
    if not head:
        raise ArtefactError(f"{path} is empty", FETCH)
    if head == POINTER:
        raise ArtefactError(
            f"{path} is a pointer of git-lfs, not the file itself",
            "run `git lfs pull` where it was cloned, or download the model",
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file of the source. Raises ArtefactError."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise ArtefactError(f"{path} is no JSON object", FETCH)
    return document


def read_json(path: Path) -> Any:
    """The JSON document of a file of the source. Raises ArtefactError."""
    check_file(path)
    try:
        return json.loads(read_regular_text(path, most=MOST_DOCUMENT))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ArtefactError(f"{path} is not JSON: {first_line(error)}", FETCH) from None
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}", FETCH) from None


def check_classes(source: str, document: dict[str, Any]) -> None:
    """A ``config.json`` names classes of models by a list, or none. Raises ArtefactError."""
    kinds = document.get("architectures") or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise ArtefactError(f"{source}: `architectures` is no list of names", "correct it")


def first_line(error: BaseException) -> str:
    """What an error says, short enough for one line of cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
