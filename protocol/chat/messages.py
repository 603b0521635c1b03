"""Messages from outside, checked: whose each is, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.errors import DataError

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
MOST_MESSAGES = 1000
MOST_CONTENT = 2**20  # characters of all messages
Message = dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """Messages that were checked, oldest first."""

    messages: tuple[Message, ...]


def chat_from(messages: Any) -> Chat:
    """Check messages from outside: a list of tables with `role` and `content`, both strings.

    Raises DataError that names the message, from 0, and what is wrong with it.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise DataError("the messages are no list", "give a list of {role, content}")
    if not 0 < len(messages) <= MOST_MESSAGES:
        raise DataError(f"{len(messages)} messages", f"give 1 to {MOST_MESSAGES}")
    checked = tuple(_message(index, message) for index, message in enumerate(messages))
    size = sum(len(message["content"]) for message in checked)
    if size > MOST_CONTENT:
        raise DataError(f"the messages have {size} characters", f"give {MOST_CONTENT} at most")
    return Chat(messages=checked)


def _message(index: int, message: Any) -> Message:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is no table", "give it a `role` and a `content`")
    for name in ("role", "content"):
        if not isinstance(message.get(name), str):
            raise DataError(
                f"{where}: `{name}` is {'missing' if name not in message else 'no text'}",
                "give each message a `role` and a `content`, both text",
            )
    if other := sorted(str(name) for name in message.keys() - {"role", "content"}):
        raise DataError(f"{where}: `{other[0][:60]}` is not supported", "leave it out")
    if message["role"] not in ROLES:
        raise DataError(
            f"{where}: its role is none that is known", f"use one of: {', '.join(ROLES)}"
        )
    return {"role": message["role"], "content": message["content"]}
