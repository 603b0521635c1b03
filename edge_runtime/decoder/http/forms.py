"""What ``POST /v1/completions`` and ``/v1/chat/completions`` may ask, as OpenAI writes it.

Whatever would change the answer and is not done here is refused, by its name; what cannot change it is
accepted and not looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.documents import OddError, fault_of, parse_json
from protocol.errors import printable
from protocol.misspelling import nearest

INVALID = "invalid_request_error"
HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "parallel_tool_calls",  # of no tools
    }
)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # values with which a parameter asks for nothing
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}
MOST_TEXT = 2**20  # characters
Words = Annotated[str, Field(max_length=MOST_TEXT)]
StopText = Annotated[str, Field(min_length=1, max_length=500)]
Count = Annotated[int, Field(ge=1, le=2**31)]


class ApiError(Exception):
    """What a client is answered instead of a text: OpenAI's error object and an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.document: dict[str, Any] = {
            "error": {"message": printable(message), "type": kind, "param": param, "code": code}
        }


class StreamOptions(BaseModel):
    """``stream_options``; obfuscation would pad events, and is not done."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Asked(BaseModel, ABC):
    """What both have in common. Null is as good as nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    model: Annotated[str, Field(min_length=1, max_length=500)]
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most(self) -> int | None:
        """Tokens to write, where it says."""
        return self.max_tokens

    @property
    @abstractmethod
    def likeliest(self) -> int | None:
        """Of how many of the likeliest tokens log-probabilities are wanted beside the chosen one's."""


class Completion(_Asked):
    """The body of ``POST /v1/completions``: a text, or its tokens, to continue."""

    prompt: (
        Words
        | Annotated[list[Words], Field(min_length=1, max_length=1)]
        | Annotated[list[int], Field(min_length=1, max_length=2**17)]
    )
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def likeliest(self) -> int | None:
        """As ``logprobs`` says."""
        return self.logprobs


class ChatCompletion(_Asked):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most(self) -> int | None:
        """By its new name or its old one."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """None without ``logprobs``."""
        return (self.top_logprobs or 0) if self.logprobs else None


Asked = Completion | ChatCompletion


def parse_asked(kind: type[Completion] | type[ChatCompletion], body: bytes) -> Asked:
    """A request's body. Raises ApiError that names the parameter."""
    try:
        value = parse_json(body)
    except OddError as odd:
        raise ApiError(400, f"the body: {odd}; send a JSON object", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is no JSON object", code="invalid_json")
    _verify_supported(kind, value)
    wanted = {name: item for name, item in value.items() if name in kind.model_fields}
    try:
        asked = kind.model_validate(wanted)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        missing = fault["type"] == "missing"
        raise ApiError(
            400,
            fault_of(error),
            param=str(fault["loc"][0]) if fault["loc"] else None,
            code="missing_required_parameter" if missing else "invalid_value",
        ) from None
    _verify_together(asked)
    return asked


def _verify_supported(kind: type[BaseModel], value: Mapping[str, Any]) -> None:
    for name, item in value.items():
        if name in kind.model_fields or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            near = nearest(name, (*kind.model_fields, *NEUTRAL))
            hint = f"; the nearest is `{near}`" if near else "; leave it out"
            raise ApiError(
                400,
                f"`{name[:60]}` is not known here{hint}",
                param=name[:60],
                code="unknown_parameter",
            )
        if item is not None and not any(_same(item, neutral) for neutral in NEUTRAL[name]):
            raise ApiError(
                400,
                f"`{name}` with this value is not supported: this server would answer as if it were "
                "not there; leave it out",
                param=name,
                code="unsupported_parameter",
            )


def _same(item: Any, neutral: Any) -> bool:
    """Equal, where True is not 1."""
    return isinstance(item, bool) == isinstance(neutral, bool) and bool(item == neutral)


def _verify_together(asked: Asked) -> None:
    """Parameters that make sense only with others."""
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(
            400, "`stream_options` goes with `stream`", param="stream_options", code="invalid_value"
        )
    if not isinstance(asked, ChatCompletion):
        return
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(
            400, "`top_logprobs` goes with `logprobs`", param="top_logprobs", code="invalid_value"
        )
    counts = (asked.max_tokens, asked.max_completion_tokens)
    if None not in counts and counts[0] != counts[1]:
        raise ApiError(
            400,
            "`max_tokens` and `max_completion_tokens` say different things: give the latter",
            param="max_tokens",
            code="invalid_value",
        )
