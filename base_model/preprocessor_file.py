"""A source's ``preprocessor_config.json``, whatever medium it is of. (P-1.15, P-1.16)"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from protocol.errors import shortened

FILE = "preprocessor_config.json"


def verify_known(document: dict[str, Any], known: Collection[str]) -> None:
    """Raises ValueError for a key that is not: it may be a step that would be left out."""
    if unknown := sorted(document.keys() - set(known)):
        raise ValueError(f"`{unknown[0]}` is not known here, and may change what a model reads")


def int_of(name: str, document: dict[str, Any]) -> int:
    """A whole number. Raises ValueError, and KeyError where it is not said."""
    value = document[name]
    if type(value) is not int:
        raise ValueError(f"`{name}` is {shown(value)}, no whole number")
    return value


def shown(value: object) -> str:
    """A value as its file has it."""
    return shortened(json.dumps(value), 60)
