"""Texts of a file and what is learnt of them, or the first row that does not fit, by file and line.

Whoever reads rows reads them here, so that a file which a simulation takes is one that a site, a release
and a device's probe take too. Messages show column names and (short) labels, never a row's text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, cast

from protocol.errors import DataError
from protocol.rows.formats import Place, read_lines, read_values, shown, type_name
from protocol.rows.labels import hint
from protocol.rows.places import Places

LONGEST_LABEL: Final = 200  # characters, as in a plan (P-1.2)
Text = str | tuple[str, str]  # a text, or a pair of them
Check = Callable[[object, Place, str], Any]  # value, where it stands, its column; raises DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows: ``targets[i]`` is the label of ``texts[i]`` (a text, or a pair of them), or its number.

    Of text that follows text ``texts`` are plain texts or chats, ``targets`` the reference answers.

    ``groups[i]`` is the value of the column asked for besides these, as text. ``places[i]`` is where row i
    stands; rows behind the last of them are of no file.
    """

    texts: list[Any] = field(default_factory=list)
    targets: list[Any] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    places: Places = field(default_factory=Places, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: list[int]) -> Table:
        """The rows of these numbers, in that order."""
        return Table(
            texts=[self.texts[row] for row in rows],
            targets=[self.targets[row] for row in rows],
            groups=[self.groups[row] for row in rows] if self.groups else [],
            places=self.places.take(rows) if len(self.places) == len(self) else Places(),
        )


def read_rows(
    path: Path, *, text: str, target: str, check: Check, pair: str = "", group: str = ""
) -> Table:
    """Read a ``.jsonl``, ``.csv`` or ``.parquet`` file by these columns; without ``pair`` texts are single.

    ``check`` takes a value of ``target`` or refuses it. Raises DataError for the first row that does not
    fit, MachineError where Parquet cannot be read; then nothing is returned.
    """
    texts = [text, *filter(None, [pair])]
    columns = [*texts, target, *filter(None, [group])]
    table = Table()
    for place, values in read_values(path, columns):
        table.texts.append(_text(values, place, texts))
        table.targets.append(check(values[len(texts)], place, target))
        table.places.append(place)
        if group:
            table.groups.append(group_name(values[-1], place, group))
    return table


def read_texts(path: Path, column: str, pair: str = "") -> list[Text]:
    """Texts alone: of a column, or of two; or of another file the lines that are not blank.

    Raises as read_rows.
    """
    if path.suffix.lower() in (".jsonl", ".csv", ".parquet"):
        columns = [column, *filter(None, [pair])]
        return [_text(row, place, columns) for place, row in read_values(path, columns)]
    if pair:
        raise DataError(f"{path}: a file of lines has no columns", "use .jsonl, .csv or .parquet")
    return [checked_text(line, place, "") for place, line in read_lines(path)]


def _text(values: Sequence[object], place: Place, columns: Sequence[str]) -> Text:
    """The text, or the pair, of the first values."""
    first, *second = (
        checked_text(value, place, column) for value, column in zip(values, columns, strict=False)
    )
    return (first, second[0]) if second else first


def checked_text(text: object, place: Place, column: str) -> str:
    """A text to train on: a string with something in it, without NUL, encodable. Raises DataError."""
    where = f"{place}: column `{column}`" if column else f"{place}:"
    if type(text) is not str:
        raise DataError(f"{where} holds a {type_name(text)}, not text", "write a string")
    if not text.strip():
        raise DataError(f"{where} is empty", "fill it in or remove the row")
    if "\0" in text:
        raise DataError(f"{where} holds a NUL character", "remove it")
    if not _encodes(text):
        raise DataError(f"{where} holds half of a surrogate pair", "remove it")
    return text


def one_of(labels: Collection[str]) -> Check:
    """A check for a label of these."""
    known = frozenset(labels)

    def check(label: object, place: Place, column: str) -> str:
        text = _label_text(label, place, column)
        if text not in known:
            raise DataError(
                f"{place}: the label {shown(text)} is not in the plan",
                hint(text, known),
                public=f"{place.unit} {place.number}: a label that is not in the plan",
            )
        return text

    return check


def any_label(label: object, place: Place, column: str) -> str:
    """A check for a label that a plan could list."""
    text = checked_text(_label_text(label, place, column), place, column)
    if len(text) > LONGEST_LABEL:
        raise DataError(
            f"{place}: column `{column}` holds a label of {len(text)} characters",
            f"at most {LONGEST_LABEL}; name the column with the labels",
        )
    if any(one < " " or "\x7f" <= one <= "\x9f" for one in text):
        raise DataError(
            f"{place}: column `{column}` holds a control character: {shown(text)}", "remove it"
        )
    return text


def number_within(low: float, high: float) -> Check:
    """A check for a number in a range; it may be text where a file knows nothing else."""

    def check(value: object, place: Place, column: str) -> float:
        number = _number(value, place, column)
        if not low <= number <= high:
            raise DataError(
                f"{place}: column `{column}` holds '{number:g}', the plan says {low:g} to {high:g}",
                "correct the row, or agree on another task.low and task.high",
                public=f"{place.unit} {place.number}: a value outside the plan's range",
            )
        return number

    return check


def _number(value: object, place: Place, column: str) -> float:
    if type(value) in (int, float):
        return float(cast(float, value))
    if type(value) is str and place.path.suffix.lower() == ".csv":
        try:
            if "_" in value:  # which Python takes between digits
                raise ValueError
            return float(value)
        except ValueError:
            raise DataError(
                f"{place}: column `{column}` holds {shown(value)}, which is no number",
                "write it as 3.5; name the column with the values in task.target",
            ) from None
    raise DataError(
        f"{place}: column `{column}` holds a {type_name(value)}, not a number",
        "write it as 3.5, without quotes; name the column with the values in task.target",
    )


def _label_text(label: object, place: Place, column: str) -> str:
    if type(label) is not str:
        raise DataError(
            f"{place}: column `{column}` holds a {type_name(label)}, not text",
            "write labels as strings, as in the plan's task.labels",
        )
    return label


def group_name(value: object, place: Place, column: str) -> str:
    """Whose a row is, as text: a name, a number (of a user, say), a date."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return repr(value)
        case date():  # a moment as well
            return value.isoformat()
        case str():
            return checked_text(value, place, column)
    raise DataError(
        f"{place}: column `{column}` holds a {type_name(value)}, not a name or a number",
        "write whose row it is, or name another column",
    )


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
