"""Messages to a prompt, by the chat template that came with the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edge_runtime.decoder.base import DecoderBase
from protocol.errors import ArtefactError, DataError, MachineError

if TYPE_CHECKING:
    from jinja2 import Template

    from edge_runtime.decoder.template_sandbox import Sandbox

ROLES = ("system", "user", "assistant")
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
            f"{where}: the role is `{message['role'][:60]}`", f"use one of: {', '.join(ROLES)}"
        )
    return {"role": message["role"], "content": message["content"]}


def chat_prompt(base: DecoderBase, chat: Chat) -> list[int]:
    """The tokens of a chat, up to where the assistant's answer begins. Raises DataError, ArtefactError."""
    return base.encode(chat_text(base, chat), special=False)  # the template writes them itself


def chat_text(base: DecoderBase, chat: Chat) -> str:
    """The prompt as text.

    ``bos_token`` and ``eos_token`` are the manifest's `begin` and the first of its `ends`. Raises
    ArtefactError for a base without a template or with one that does not work, DataError for a chat that
    the template refuses.
    """
    begin, ends = base.manifest.begin, base.manifest.ends
    values = {
        "bos_token": "" if begin is None else base.tokenizer.id_to_token(begin) or "",
        "eos_token": (base.tokenizer.id_to_token(ends[0]) or "") if ends else "",
    }
    return rendered(verify_chats(base), chat, values)


def verify_chats(base: DecoderBase) -> str:
    """The base's template. Raises ArtefactError where it has none."""
    if base.template is None:
        raise ArtefactError(
            f"{base.folder} has no chat template: it continues texts and knows no chats",
            "use `fedge edge generate`, or a base that was trained to chat",
        )
    return base.template


def rendered(template: str, chat: Chat, values: Mapping[str, str]) -> str:
    """What ``template`` makes of a chat, with ``values`` by name. Raises DataError, ArtefactError."""
    sandbox, compiled = _compiled(template)
    from edge_runtime.decoder.template_sandbox import BoundError, RefusedError

    context: dict[str, Any] = {
        **values,
        "messages": [dict(message) for message in chat.messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    try:
        return "".join(sandbox.pieces(compiled, context))
    except RefusedError as refusal:
        raise DataError(
            f"the base's chat template refuses these messages: {str(refusal)[:300]}",
            "change the messages as it says",
        ) from None
    except BoundError as bound:
        raise ArtefactError(
            f"the base's chat template goes too far: {bound}",
            "shorten the chat; if a short one fails too, do not use this base",
        ) from None
    except Exception as error:  # of Jinja, and of whatever a template calls
        raise _odd(error) from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[Sandbox, Template]:
    """Raises ArtefactError for what is no template, MachineError where Jinja is not installed."""
    try:
        from edge_runtime.decoder.template_sandbox import Sandbox
    except ModuleNotFoundError:
        raise MachineError(
            "chats need the package `jinja2`, which is not installed",
            "pip install -c constraints.txt '.[edge]'",
        ) from None
    sandbox = Sandbox()
    try:
        return sandbox, sandbox.compiled(template)
    except Exception as error:  # of Jinja, and of constants that it computes already
        raise _odd(error) from None


def _odd(error: Exception) -> ArtefactError:
    first = (str(error).splitlines() or [""])[0][:200]
    return ArtefactError(
        f"the base's chat template does not work: {type(error).__name__}: {first}",
        "build the base again with a template that transformers renders",
    )
