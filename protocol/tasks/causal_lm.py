"""Text that follows text: chats, answers to prompts, or plain texts, learnt token by token.

Of a chat the assistant's messages count, of a prompt and its completion the completion, of a plain text all
of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from protocol.chat.messages import Chat
from protocol.decoder_manifest import DECODER
from protocol.rows.conversations import read_chats, read_completions, read_plain
from protocol.rows.read import Table
from protocol.section import Column
from protocol.tasks.writing import WritingTask

FORMS: dict[str, tuple[str, ...]] = {  # columns of each
    "messages": ("messages",),
    "prompt": ("prompt", "context", "completion"),
    "text": ("text",),
}


class CausalLm(WritingTask):
    """What is learnt, and which columns of the local data it is learnt from: text that follows text."""

    KIND: ClassVar[str] = "causal-lm"
    BASE: ClassVar[str] = DECODER
    PEFT_TASK: ClassVar[str] = "CAUSAL_LM"

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

    def rows(self, path: Path, *, group: str = "") -> Table:
        """See :class:`TaskSection`; targets are the reference answers, of plain texts empty."""
        skip = self.unanswered == "skip"
        if self.form == "messages":
            return read_chats(path, self.messages, group=group, skip=skip)
        if self.form == "text":
            return read_plain(path, self.text, group=group)
        columns = (self.prompt, self.completion)
        return read_completions(path, *columns, context=self.context, group=group, skip=skip)

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
