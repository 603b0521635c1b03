"""Documents that somebody else wrote: JSON and TOML within bounds, as plain values or as a model. (P-1.7)

Every decoder of such a document begins here, so that what parsers do with odd text is answered once: each
of their ways to fail is an :class:`OddError`, and none costs more than the document's length.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from protocol.errors import shortened

MOST_BYTES, MOST_TOML = 2**24, 2**20  # of a document
MOST_LEVELS = 32  # of nested lists and objects
MOST_VALUES = 2**18  # in a document: a validator may have a complaint about each
MOST_DIGITS, MOST_CHARACTERS = 20, 64  # of a whole number, of a real one
# tomllib's time grows with the square of the parts of a key.
LONG_KEY = re.compile(
    r"""(?<![A-Za-z0-9_"'-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}"""
)
HALF = re.compile(r"[\ud800-\udfff]")
T = TypeVar("T")


class OddError(ValueError):
    """Not a document within bounds, or not of the form asked for; its text is one short line."""


def parse_json(
    data: bytes | str,
    *,
    most: int = MOST_BYTES,
    values: int = MOST_VALUES,
    digits: int = MOST_DIGITS,
) -> Any:
    """A JSON text's value. Raises OddError.

    Strict UTF-8 of at most ``most`` bytes, no repeated key, no half of a surrogate pair, nothing but finite
    numbers, whole ones of at most ``digits`` characters, ``values`` values and 32 levels.
    """
    text = _text(data, most)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_once,
            parse_int=lambda number: _whole(number, digits),
            parse_float=_real,
            parse_constant=_real,
        )
    except RecursionError:
        raise OddError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise OddError(f"not JSON: {error.msg}") from None
    _check(value, values, 10**digits)
    return value


def parse_toml(data: bytes | str, *, most: int = MOST_TOML) -> dict[str, Any]:
    """A TOML text's table, within the same bounds. Raises OddError that names the line where it can."""
    text = _text(data, most)
    if LONG_KEY.search(text):
        raise OddError("a key of more than 32 parts")
    try:
        table = tomllib.loads(text, parse_float=_any_real)
    except RecursionError:
        raise OddError("nested too deeply") from None
    except OddError:
        raise
    except ValueError as error:  # TOMLDecodeError, and what int() says of thousands of digits
        fault = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "a number too long"
        raise OddError(f"not valid TOML: {fault}") from None
    _check(table, MOST_VALUES, 10**MOST_DIGITS)
    return table


def json_as(
    kind: type[T] | TypeAdapter[T],
    data: bytes | str,
    *,
    most: int = MOST_BYTES,
    digits: int = MOST_DIGITS,
) -> T:
    """A JSON text as ``kind``. Raises OddError that begins with the place of the first fault."""
    parse_json(data, most=most, digits=digits)
    try:
        if isinstance(kind, TypeAdapter):
            return kind.validate_json(data)
        assert issubclass(kind, BaseModel)
        # From the text: only there bytes are hex and enumerations strings.
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise OddError(fault_of(error)) from None


def value_as(kind: type[T], value: Any) -> T:
    """A parsed value as ``kind``. Raises OddError as :func:`json_as` does."""
    assert issubclass(kind, BaseModel)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise OddError(fault_of(error)) from None


def fault_of(error: ValidationError) -> str:
    """The first fault: where, and what; nothing of the value."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "the document"
    return f"{shortened(where, 100)}: {shortened(fault['msg'].removeprefix('Value error, '), 300)}"


def _text(data: bytes | str, most: int) -> str:
    if len(data) > most:
        raise OddError(f"longer than {most} bytes")
    if isinstance(data, bytes):
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise OddError("not UTF-8") from None
    if HALF.search(data):
        raise OddError("not UTF-8")
    if not data.isascii() and len(data.encode()) > most:
        raise OddError(f"longer than {most} bytes")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise OddError("a key is listed twice")
    return table


def _whole(text: str, most: int) -> int:
    if len(text) > most:
        raise OddError(f"a number of more than {most} digits")
    return int(text)


def _real(text: str) -> float:
    if len(text) > MOST_CHARACTERS or not math.isfinite(number := float(text)):
        raise OddError("a number that is too long, or not finite")
    return number


def _any_real(text: str) -> float:
    """Finite or not: :func:`_check` says where it stands."""
    if len(text) > MOST_CHARACTERS:
        raise OddError("a number that is too long")
    return float(text)


def _check(value: Any, most: int, largest: int) -> None:
    """No half pairs, no numbers beyond what JSON may hold, few enough levels and values."""
    waiting: list[tuple[Any, int, str]] = [(value, 1, "")]
    count = 0
    while waiting:
        item, level, name = waiting.pop()
        inner: Any = ()
        match item:
            case str():
                if HALF.search(item):
                    raise OddError("half of a surrogate pair")
            case bool() | None:
                pass
            case int():
                if not -largest < item < largest:
                    raise OddError(f"`{name}`: a whole number that is too large")
            case float():
                if not math.isfinite(item):
                    raise OddError(f"`{name}`: a number that is not finite")
            case dict():
                if any(HALF.search(key) for key in item):
                    raise OddError("half of a surrogate pair")
                inner = [(one, level + 1, _below(name, key)) for key, one in item.items()]
            case list():
                inner = [(one, level + 1, name) for one in item]
        count += len(inner)
        if count > most:
            raise OddError(f"more than {most} values")
        if level > MOST_LEVELS and isinstance(item, (dict, list)):
            # Whoever walks through the value later must not run out of stack.
            raise OddError("nested too deeply")
        waiting.extend(inner)


def _below(name: str, key: str) -> str:
    """Where a value stands, for people."""
    return shortened(f"{name}.{key}" if name else key, 100)
