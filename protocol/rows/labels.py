"""Labels that are no two labels: forms of one name that differ where nobody looks."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable

from protocol.errors import DataError
from protocol.misspelling import nearest
from protocol.rows.formats import shown
from protocol.section import MOST_LABELS


def look(label: str) -> str:
    """What people see of a label: without case, blanks and the ways to write a letter."""
    text = unicodedata.normalize("NFKC", label)
    kept = (
        letter for letter in text if unicodedata.category(letter) != "Cf" and not letter.isspace()
    )
    return unicodedata.normalize("NFKC", "".join(kept).casefold())


def verify_several(labels: Iterable[str], source: str) -> None:
    """Raises DataError for fewer than two labels."""
    distinct = sorted(set(labels))
    if len(distinct) < 2:
        raise DataError(
            f"{source}: the data has a single label, {shown(distinct[0]) if distinct else 'none'}",
            "there is nothing to learn; check the files and plan.task.label",
        )


def verify_distinct(labels: Iterable[str], source: str) -> list[str]:
    """Labels of data that lists none, sorted.

    Raises DataError for fewer than two, more than a task may have, and two that look alike.
    """
    distinct = sorted(set(labels))
    verify_several(distinct, source)
    if len(distinct) > MOST_LABELS:
        raise DataError(
            f"{source}: {len(distinct)} different labels, at most {MOST_LABELS} are possible",
            "name the column with the labels in plan.task.label",
        )
    verify_unlike(distinct, source)
    return distinct


def verify_unlike(labels: Iterable[str], source: str) -> None:
    """Raises DataError for two labels that look like one."""
    seen: dict[str, str] = {}
    for label in sorted(set(labels)):
        other = seen.setdefault(look(label), label)
        if other != label:
            raise DataError(
                f"{source}: the labels {_both(other, label)} differ only by {_difference(other, label)}",
                "write both alike, or list every label in plan.task.labels if they are two",
            )


def hint(label: str, known: Collection[str]) -> str:
    """What to do about a label that is not listed."""
    alike = next((name for name in known if look(name) == look(label)), None)
    if alike is not None:
        same = f"the plan has {_escaped(alike, label)}, which differs only by {_difference(alike, label)}"
        return f"did you mean {alike!r}? {same}"
    near = nearest(label, known)
    if near is None:
        return "use a label of the plan's task.labels"
    return f"did you mean {_escaped(near, label)}?"


def _difference(label: str, other: str) -> str:
    if unicodedata.normalize("NFC", label) == unicodedata.normalize("NFC", other):
        return "the Unicode form of a letter"
    if label.casefold() == other.casefold():
        return "case"
    return "blanks" if _packed(label) == _packed(other) else "case, blanks or forms of letters"


def _packed(label: str) -> str:
    return "".join(label.split())


def _both(label: str, other: str) -> str:
    return f"{_escaped(label, other)} and {_escaped(other, label)}"


def _escaped(label: str, other: str) -> str:
    """A label beside another: by its code points where letters may look the same."""
    plain = label.isascii() and other.isascii()
    text = repr(label) if plain else ascii(label)
    return text if len(text) <= 120 else shown(label)
