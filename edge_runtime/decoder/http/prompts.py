"""Prompts of requests: what a base reads before it writes."""

from __future__ import annotations

from typing import Any

from edge_runtime.decoder.base import DecoderBase, WritingBase
from edge_runtime.decoder.chat import chat_prompt
from edge_runtime.decoder.http.forms import ApiError, Asked, ChatCompletion
from protocol.chat.messages import chat_from
from protocol.errors import ArtefactError, DataError, FedgeError

ROLES = {"developer": "system"}  # OpenAI's newer names of those that templates know


def prompt_of(base: WritingBase, asked: Asked, *, most: int) -> list[int]:
    """Its tokens, at least one and ``most`` at most. Raises ApiError."""
    if isinstance(asked, ChatCompletion):
        tokens, param = _chat(base, asked.messages), "messages"
    else:
        tokens, param = _completion(base, asked.prompt), "prompt"
    if len(tokens) > most:
        raise ApiError(
            400,
            f"`{param}` has {len(tokens)} tokens, the base reads {most} at most: shorten it",
            param=param,
            code="context_length_exceeded",
        )
    return tokens


def _completion(base: WritingBase, prompt: str | list[str] | list[int]) -> list[int]:
    if isinstance(prompt, list):
        first, *rest = prompt
        if isinstance(first, int):
            return [first, *(token for token in rest if isinstance(token, int))]
        prompt = first
    try:
        return base.prompt(prompt)
    except DataError as error:
        raise refusal(error, "prompt") from None


def _chat(base: WritingBase, messages: list[dict[str, Any]]) -> list[int]:
    if not isinstance(base, DecoderBase) or base.template is None:
        raise ApiError(
            400,
            "this base has no chat template: it knows no chats; POST /v1/completions",
            param="messages",
            code="unsupported_endpoint",
        )
    plain = [_message(index, message) for index, message in enumerate(messages)]
    try:
        return chat_prompt(base, chat_from(plain))
    except (DataError, ArtefactError) as error:  # the latter of the template; it names no path
        raise refusal(error, "messages") from None


def _message(index: int, message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates take it: without what is null, its parts of text put together."""
    plain = {name: item for name, item in message.items() if item is not None}
    plain |= {name: None for name in ("role", "content") if name in message and name not in plain}
    if isinstance(plain.get("role"), str):
        plain["role"] = ROLES.get(plain["role"], plain["role"])
    if isinstance(plain.get("content"), list):
        plain["content"] = "".join(_part(index, part) for part in plain["content"])
    return plain


def _part(index: int, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ApiError(
        400,
        f"message {index}: a part of its content is no text; send parts of `type` text, or a string",
        param="messages",
        code="invalid_value",
    )


def refusal(error: FedgeError, param: str | None) -> ApiError:
    """What a client is answered instead of the error."""
    return ApiError(400, f"{error.cause}; {error.remedy}", param=param, code="invalid_value")
