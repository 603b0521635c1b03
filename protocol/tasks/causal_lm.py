"""Text that follows text: chats, answers to prompts, or plain texts, learnt token by token.

Of a chat the assistant's messages count, of a prompt and its completion the completion, of a plain text all
of it. What is measured counts in tokens: the quality is the perplexity, exp of the mean loss of a token in
nats. (P-3.2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.chat.messages import Chat
from protocol.decoder_manifest import DECODER
from protocol.rows.conversations import read_chats, read_completions, read_plain
from protocol.rows.read import Table
from protocol.section import MOST_TOKENS, Column
from protocol.tasks.base import MOST_LOSS, Metric, Quality, TaskSection, metrics_with

# `eval_tokens`: tokens that count in the rows kept out; `eval_right`: those that were the likeliest;
# `eval_loss`: the sum of their losses in nats
METRICS = metrics_with(
    eval_tokens=Metric(of="eval_examples", most=MOST_TOKENS),
    eval_right=Metric(of="eval_tokens"),
    eval_loss=Metric(scale=2**10, of="eval_tokens", most=MOST_LOSS),
)
FORMS: dict[str, tuple[str, ...]] = {  # columns of each
    "messages": ("messages",),
    "prompt": ("prompt", "context", "completion"),
    "text": ("text",),
}


class Perplexity(Quality):
    """Not a share: 1 at its best, and as large as the vocabulary for one who guesses."""

    UNIT: ClassVar[str] = ""

    def figure(self, value: float) -> str:
        """See :class:`Quality`."""
        return f"{value:.2f}"

    def drawn(self, value: float) -> float:
        """See :class:`Quality`."""
        return value

    def share(self, value: float) -> float:
        """The mean likelihood of a token."""
        return 1 / value if value else 0.0

    def bound(self, floor: int) -> int:
        """See :class:`Quality`."""
        return 10**6 // floor if floor else 2**53


class CausalLm(TaskSection):
    """What is learnt, and which columns of the local data it is learnt from: text that follows text."""

    KIND: ClassVar[str] = "causal-lm"
    ANSWERS: ClassVar[Literal["text"]] = "text"
    BASE: ClassVar[str] = DECODER
    PEFT_TASK: ClassVar[str] = "CAUSAL_LM"
    METRICS: ClassVar[Mapping[str, Metric]] = METRICS
    QUALITY: ClassVar[Quality] = Perplexity(
        name="perplexity", title="perplexity", higher_is_better=False
    )

    kind: Literal["causal-lm"] = Field(description="text that follows text")
    form: Literal["messages", "prompt", "text"] = Field(
        default="messages",
        description="what a row is: a chat, a prompt with its completion, or a text of which all counts",
    )
    messages: Column = Field(
        default="messages", description="column with a list of {role, content}"
    )
    prompt: Column = Field(default="prompt", description="column with the prompt")
    context: Annotated[str, Field(max_length=200)] = Field(
        default="",
        description="column with what the prompt is about, put behind it; a row's may be empty",
    )
    completion: Column = Field(default="completion", description="column with its completion")
    text: Column = Field(default="text", description="column with the text")
    overlong: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="a row whose answer begins behind max_length: an error, or left out",
    )
    max_length: Annotated[int, Field(ge=3, le=MOST_TOKENS)] = Field(
        default=256, description="tokens with the special ones; longer texts are cut"
    )

    @model_validator(mode="after")
    def _columns_are_of_the_form(self) -> Self:
        for form, names in FORMS.items():
            for name in names if form != self.form else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f'{name} is a column of form = "{form}", this is "{self.form}"'
                    )
        columns = [getattr(self, name) for name in FORMS[self.form] if getattr(self, name)]
        if len(set(columns)) < len(columns):
            raise ValueError("two columns have one name")
        return self

    @property
    def outputs(self) -> int:
        """There is no head."""
        return 0

    def rows(self, path: Path, *, group: str = "") -> Table:
        """See :class:`TaskSection`; targets are the reference answers, of plain texts empty."""
        if self.form == "messages":
            return read_chats(path, self.messages, group=group)
        if self.form == "text":
            return read_plain(path, self.text, group=group)
        columns = (self.prompt, self.completion)
        return read_completions(path, *columns, context=self.context, group=group)

    def line(self, text: str | Chat, target: Any) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        if not isinstance(text, Chat):
            return {self.text: text}
        if self.form == "messages":
            return {self.messages: [dict(message) for message in text.messages]}
        asked, answer = (message["content"] for message in text.messages)
        context = {self.context: ""} if self.context else {}
        return {self.prompt: asked, **context, self.completion: answer}

    @property
    def meaning(self) -> dict[str, Any]:
        """Its kind, and what a row is."""
        return {"kind": self.kind, "form": self.form}

    @property
    def said(self) -> str:
        """What a row is."""
        rows = {"messages": "chats", "prompt": "prompts and completions", "text": "plain texts"}
        return f"text that follows text, from {rows[self.form]}"

    def note(self) -> dict[str, Any]:
        """See :class:`TaskSection`."""
        return {"task": self.kind, "pairs": False, "max_length": self.max_length, "labels": []}

    @classmethod
    def quality_of(cls, sums: Mapping[str, float]) -> float | None:
        """The perplexity of all tokens together."""
        tokens = sums.get("eval_tokens")
        return math.exp(min(sums["eval_loss"] / tokens, MOST_LOSS)) if tokens else None
