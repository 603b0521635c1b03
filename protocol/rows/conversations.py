"""Rows of text that follows text: chats, prompts with their completions, plain texts; by file and line.

Whoever reads such rows reads them here, as :mod:`protocol.rows.read` is for texts with labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from protocol.chat.messages import ASSISTANT, USER, Chat, chat_from
from protocol.errors import DataError
from protocol.rows.formats import JsonObject, Place, Values, read_values, type_name
from protocol.rows.read import Table, checked_text, group_name

BETWEEN = "\n\n"  # a prompt and what it is about
Row = Callable[[Values, Place], tuple[str | Chat, str] | None]  # None: left out


def read_chats(path: Path, column: str, *, group: str = "", skip: bool = False) -> Table:
    """Lists of ``{role, content}``; targets are the assistant's last messages.

    ``skip``: leave out rows in which the assistant says nothing. Raises DataError for the first row that does
    not fit: it names file, line and message.
    """

    def row(values: Values, place: Place) -> tuple[str | Chat, str] | None:
        chat = _chat(values[0], place, column, lenient=skip)
        answers = [m["content"] for m in chat.messages if m["role"] == ASSISTANT]
        if skip and not all(answer.strip() for answer in answers or [""]):
            return None
        if not answers:
            raise DataError(
                f"{place}: column `{column}` has no message of the role `{ASSISTANT}`",
                "only the assistant's messages are learnt: add one, or remove the row",
            )
        return chat, answers[-1]

    return _read(path, [column], row, group=group)


def read_completions(
    path: Path,
    prompt: str,
    completion: str,
    *,
    context: str = "",
    group: str = "",
    skip: bool = False,
) -> Table:
    """Chats of one message each way; what a row has in the column ``context`` stands behind its prompt.

    ``skip``: leave out rows with an empty completion. Raises DataError for the first row that does not fit.
    """

    def row(values: Values, place: Place) -> tuple[str | Chat, str] | None:
        if skip and _is_blank(values[1]):
            return None
        asked = checked_text(values[0], place, prompt)
        answer = checked_text(values[1], place, completion)
        if context and not _is_blank(values[2]):
            asked += BETWEEN + checked_text(values[2], place, context)
        pair = {"role": USER, "content": asked}, {"role": ASSISTANT, "content": answer}
        return Chat(messages=pair), answer

    return _read(path, [prompt, completion, *filter(None, [context])], row, group=group)


def read_plain(path: Path, column: str, *, group: str = "") -> Table:
    """Texts of which every token counts. Raises DataError for the first row that does not fit."""

    def row(values: Values, place: Place) -> tuple[str | Chat, str]:
        return checked_text(values[0], place, column), ""

    return _read(path, [column], row, group=group)


def read_sources(
    path: Path, source: str, target: str, *, group: str = "", skip: bool = False
) -> Table:
    """Texts and what they become; ``skip``: leave out rows where that is empty.

    Raises DataError for the first row that does not fit.
    """

    def row(values: Values, place: Place) -> tuple[str | Chat, str] | None:
        if skip and _is_blank(values[1]):
            return None
        return checked_text(values[0], place, source), checked_text(values[1], place, target)

    return _read(path, [source, target], row, group=group)


def _read(path: Path, columns: Sequence[str], row: Row, *, group: str) -> Table:
    table = Table()
    for place, values in read_values(path, [*columns, *filter(None, [group])]):
        read = row(values, place)
        if read is None:
            continue
        text, target = read
        table.texts.append(text)
        table.targets.append(target)
        table.places.append(place)
        if group:
            table.groups.append(group_name(values[-1], place, group))
    if not table.texts:
        raise DataError(f"{path}: no row has an answer", "name a file with data", public="no rows")
    return table


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _chat(value: object, place: Place, column: str, *, lenient: bool) -> Chat:
    where = f"{place}: column `{column}`"
    if not isinstance(value, list) or isinstance(value, JsonObject):
        raise DataError(
            f"{where} holds a {type_name(value)}, not a list of messages",
            'write [{"role": "user", "content": …}, {"role": "assistant", "content": …}]',
        )
    try:
        chat = chat_from([_table(message) for message in value])
    except DataError as error:
        raise DataError(f"{where}: {error.cause}", error.remedy) from None
    for index, message in enumerate(chat.messages):
        if lenient and message["role"] == ASSISTANT and _is_blank(message["content"]):
            continue
        checked_text(message["content"], place, f"{column}[{index}].content")
    return chat


def _table(message: object) -> object:
    """A JSON object as a table; one with a key twice stays what it is, which is refused."""
    if not isinstance(message, JsonObject):
        return message
    table = dict(message)
    return table if len(table) == len(message) else message
