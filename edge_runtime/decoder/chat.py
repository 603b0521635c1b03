"""Messages to a prompt, by the chat template that came with the base."""

from __future__ import annotations

from edge_runtime.decoder.base import DecoderBase, WritingBase
from protocol.chat.messages import Chat
from protocol.chat.template import rendered, special_texts
from protocol.errors import ArtefactError


def chat_prompt(base: WritingBase, chat: Chat) -> list[int]:
    """The tokens of a chat, up to where the assistant's answer begins. Raises DataError, ArtefactError."""
    return base.encode(chat_text(base, chat), special=False)  # the template writes them itself


def chat_text(base: WritingBase, chat: Chat) -> str:
    """The prompt as text.

    ``bos_token`` and ``eos_token`` are the manifest's `begin` and the first of its `ends`. Raises
    ArtefactError for a base without a template or with one that does not work, DataError for a chat that
    the template refuses.
    """
    chatting = chatting_base(base)
    begin, ends = chatting.manifest.begin, chatting.manifest.ends
    first, last = (
        None if token is None else base.tokenizer.id_to_token(token)
        for token in (begin, ends[0] if ends else None)
    )
    return rendered(str(chatting.template), chat, special_texts(first, last))


def chatting_base(base: WritingBase) -> DecoderBase:
    """The base, which has a template. Raises ArtefactError for one that knows no chats."""
    if not isinstance(base, DecoderBase):
        raise ArtefactError(
            f"{base.folder} is a base that turns a text into another; it knows neither chats nor prompts",
            "use `fedge edge generate`",
        )
    if base.template is None:
        raise ArtefactError(
            f"{base.folder} has no chat template: it continues texts and knows no chats",
            "use `fedge edge generate`, or a base that was trained to chat",
        )
    return base
