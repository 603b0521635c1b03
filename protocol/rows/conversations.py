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
Row = Callable[[Values, Place], tuple[str | Chat, str]]


def read_chats(path: Path, column: str, *, group: str = "") -> Table:
    """Lists of ``{role, content}``; targets are the assistant's last messages.

    Raises DataError for the first row that does not fit: it names file, line and message.
    """

    def row(values: Values, place: Place) -> tuple[str | Chat, str]:
        chat = _chat(values[0], place, column)
        answers = [m["content"] for m in chat.messages if m["role"] == ASSISTANT]
        if not answers:
            raise DataError(
                f"{place}: column `{column}` has no message of the role `{ASSISTANT}`",
                "only the assistant's messages are learnt: add one, or remove the row",
            )
        return chat, answers[-1]

    return _read(path, [column], row, group=group)


def read_completions(
    path: Path, prompt: str, completion: str, *, context: str = "", group: str = ""
) -> Table:
    """Chats of one message each way; what a row has in the column ``context`` stands behind its prompt.

    Raises DataError for the first row that does not fit.
    """

    def row(values: Values, place: Place) -> tuple[str | Chat, str]:
        asked = checked_text(values[0], place, prompt)
        answer = checked_text(values[1], place, completion)
        if context and not (isinstance(values[2], str) and not values[2].strip()):
            asked += BETWEEN + checked_text(values[2], place, context)
        pair = {"role": USER, "content": asked}, {"role": ASSISTANT, "content": answer}
        return Chat(messages=pair), answer

    return _read(path, [prompt, completion, *filter(None, [context])], row, group=group)


def read_plain(path: Path, column: str, *, group: str = "") -> Table:
    """Texts of which every token counts. Raises DataError for the first row that does not fit."""

    def row(values: Values, place: Place) -> tuple[str | Chat, str]:
        return checked_text(values[0], place, column), ""

    return _read(path, [column], row, group=group)


def _read(path: Path, columns: Sequence[str], row: Row, *, group: str) -> Table:
    table = Table()
    for place, values in read_values(path, [*columns, *filter(None, [group])]):
        text, target = row(values, place)
        table.texts.append(text)
        table.targets.append(target)
        if group:
            table.groups.append(group_name(values[-1], place, group))
    return table


def _chat(value: object, place: Place, column: str) -> Chat:
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
        checked_text(message["content"], place, f"{column}[{index}].content")
    return chat


def _table(message: object) -> object:
    """A JSON object as a table; one with a key twice stays what it is, which is refused."""
    if not isinstance(message, JsonObject):
        return message
    table = dict(message)
    return table if len(table) == len(message) else message
