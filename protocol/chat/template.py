"""A base's chat template, rendered: Jinja that a stranger wrote, in :mod:`protocol.chat.sandbox`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from protocol.chat.messages import Chat
from protocol.errors import ArtefactError, DataError, MachineError

if TYPE_CHECKING:
    from jinja2 import Template

    from protocol.chat.sandbox import Sandbox

MOST_TEMPLATE = 2**20  # bytes of a chat template


def rendered(
    template: str,
    chat: Chat,
    values: Mapping[str, str],
    *,
    answering: bool = True,
    private: bool = False,
) -> str:
    """What ``template`` makes of a chat, with ``values`` by name. Raises DataError, ArtefactError.

    ``answering``: up to where the assistant's next answer begins. ``private``: without what Jinja says of a
    template that fails, in which the chat may stand.
    """
    sandbox, compiled = _compiled(template)
    from protocol.chat.sandbox import BoundError, RefusedError

    context: dict[str, Any] = {
        **values,
        "messages": [dict(message) for message in chat.messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": answering,
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
        raise _odd(error, private=private) from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[Sandbox, Template]:
    """Raises ArtefactError for what is no template, MachineError where Jinja is not installed."""
    try:
        from protocol.chat.sandbox import Sandbox
    except ModuleNotFoundError:
        raise MachineError(
            "chats need the package `jinja2`, which is not installed",
            "pip install -c constraints.txt '.[client]' at a site, '.[edge]' on a device",
        ) from None
    sandbox = Sandbox()
    try:
        return sandbox, sandbox.compiled(template)
    except Exception as error:  # of Jinja, and of constants that it computes already
        raise _odd(error) from None


def _odd(error: Exception, *, private: bool = False) -> ArtefactError:
    first = (str(error).splitlines() or [""])[0][:200]
    return ArtefactError(
        f"the base's chat template does not work: {type(error).__name__}"
        + ("" if private else f": {first}"),
        "build the base again with a template that transformers renders",
    )


def special_texts(begin: str | None, end: str | None) -> dict[str, str]:
    """The tokens that begin and end texts, by the names that templates have for them."""
    return {"bos_token": begin or "", "eos_token": end or ""}
