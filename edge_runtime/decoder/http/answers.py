"""Answers of texts and chats, whole or event by event, as OpenAI writes them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from edge_runtime.decoder.generation import Step
from edge_runtime.decoder.http.forms import Asked, ChatCompletion
from edge_runtime.decoder.text import INCOMPLETE

REASONS = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
Document = dict[str, Any]


class Answer:
    """One answer: what is the same in all its documents, and how far its text is."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer, *, fingerprint: str) -> None:
        """``fingerprint``: the base's, in hex."""
        self._chat = isinstance(asked, ChatCompletion)
        self._words = _Words(tokenizer)
        self._logprobs = asked.likeliest
        options = asked.stream_options
        self._with_usage = options is not None and bool(options.include_usage)
        self._same: Document = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12),
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"fp_{fingerprint[:12]}",
        }
        self._length = 0  # characters of the text of tokens whose log-probabilities were given
        self.prompt_tokens, self.completion_tokens = 0, 0

    def note(self, facts: Mapping[str, Any]) -> None:
        """What all its documents say beside what OpenAI's do."""
        self._same |= facts

    def whole(self, steps: Sequence[Step]) -> Document:
        """The answer when it is not streamed."""
        text = "".join(step.text for step in steps)
        choice: Document = {"index": 0, "finish_reason": REASONS[steps[-1].finish]}
        choice["logprobs"] = self._log_probabilities(steps)
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        self.completion_tokens = len(steps)
        return self._same | {"choices": [choice], "usage": self._usage()}

    def first(self) -> Iterator[Document]:
        """What a stream begins with."""
        if self._chat:
            yield self._chunk({"delta": {"role": "assistant", "content": ""}})

    def event(self, step: Step) -> Iterator[Document]:
        """What a token adds to a stream: nothing, when its text is not certain yet."""
        self.completion_tokens += 1
        logprobs = self._log_probabilities([step])
        if step.text or logprobs:
            part = {"delta": {"content": step.text}} if self._chat else {"text": step.text}
            yield self._chunk(part | {"logprobs": logprobs})

    def last(self, step: Step) -> Iterator[Document]:
        """What a stream ends with."""
        part: Document = {"delta": {}} if self._chat else {"text": ""}
        yield self._chunk(part | {"finish_reason": REASONS[step.finish]})
        if self._with_usage:
            yield self._streamed() | {"choices": [], "usage": self._usage()}

    def _chunk(self, part: Document) -> Document:
        choice = {"index": 0, "finish_reason": None, "logprobs": None} | part
        return self._streamed() | {"choices": [choice]}

    def _streamed(self) -> Document:
        document = dict(self._same)
        if self._chat:
            document["object"] = "chat.completion.chunk"
        return document | ({"usage": None} if self._with_usage else {})

    def _usage(self) -> Document:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def _log_probabilities(self, steps: Sequence[Step]) -> Document | None:
        """Of the tokens of the text, in nats: the token that ends a text is none of them."""
        steps = [step for step in steps if step.finish != "end"]
        if self._logprobs is None or not steps:
            return None
        if self._chat:
            content = [
                self._words.entry(step.token, step.logprob)
                | {"top_logprobs": [self._words.entry(*pair) for pair in step.top]}
                for step in steps
            ]
            return {"content": content, "refusal": None}
        words = [self._words.word(step.token) for step in steps]
        offsets = []
        for word in words:
            offsets.append(self._length)
            self._length += len(word)
        return {
            "tokens": words,
            "token_logprobs": [step.logprob for step in steps],
            "top_logprobs": [self._table(step) for step in steps] if self._logprobs else None,
            "text_offset": offsets,
        }

    def _table(self, step: Step) -> dict[str, float | None]:
        """The likeliest tokens and the chosen one by their text; of two with one text, the likelier."""
        table: dict[str, float | None] = {}
        for token, logprob in (*step.top, (step.token, step.logprob)):
            table.setdefault(self._words.word(token), logprob)
        return table


class _Words:
    """Texts of single tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def word(self, token: int) -> str:
        """What it adds behind another; a token without text, such as one that ends texts, by its name."""
        if token not in self._texts:
            # Tokenizers leave out a space at the beginning of a text.
            alone = self._tokenizer.decode([token])
            text = self._tokenizer.decode([token, token])[len(alone) :]
            self._texts[token] = text or self._tokenizer.id_to_token(token) or ""
        return self._texts[token]

    def entry(self, token: int, logprob: float | None) -> Document:
        """A token of a chat; ``bytes`` is null for part of a character."""
        word = self.word(token)
        whole = INCOMPLETE not in word
        return {"token": word, "logprob": logprob, "bytes": list(word.encode()) if whole else None}
