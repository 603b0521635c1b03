"""Which columns of a file a base that writes text can learn from: by their names, and by what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol.errors import DataError
from protocol.rows.formats import JsonObject
from protocol.tasks.causal_lm import CausalLm
from protocol.tasks.seq2seq_lm import Seq2SeqLm
from simulations.columns import (
    OWNERS,
    TEXTS,
    Columns,
    all_text,
    first_named,
    is_named,
    listed,
)

CHATS = ("messages", "conversation", "conversations", "chat", "dialog", "dialogue")
PROMPTS = ("prompt", "instruction", "question", "query", "request", "user", "problem", "input")
COMPLETIONS = (
    *("completion", "response", "answer", "output", "reply", "assistant", "solution"),
    *("target", "chosen"),
)
CONTEXTS = ("context", "input", "passage", "background")
SOURCES = (
    *("source", "src", "input", "document", "article", "dialogue", "original", "text"),
    *("question", "prompt"),
)
NO_TEXTS = (*OWNERS, "id", "uuid", "key", "url", "split", "date")
TARGETS = (
    *("target", "tgt", "summary", "highlights", "translation", "output", "answer", "response"),
    *("completion", "label"),
)


def causal_task(path: Path, columns: Columns, *, chats: bool) -> dict[str, Any]:
    """``[task]`` of text that follows text; ``chats``: the base has a template of them.

    Raises DataError for a file without texts, and for one of chats that the base cannot read.
    """
    talks = {name: values for name, values in columns.items() if all(map(_is_list, values))}
    if talks:
        if not chats:
            raise DataError(
                f"{path}: its rows are chats, and the base has no chat template",
                "name a base that was trained to chat, or write columns `prompt` and `completion`",
            )
        messages = first_named(talks, CHATS) or next(iter(talks))
        return _task(CausalLm, form="messages", messages=messages)
    texts = _texts(columns)
    if pair := _pair(texts, PROMPTS, COMPLETIONS):
        prompt, completion = pair
        others = {name: texts[name] for name in texts if name not in pair}
        context = first_named(others, CONTEXTS) or ""
        return _task(CausalLm, form="prompt", prompt=prompt, context=context, completion=completion)
    whole = {name: values for name, values in texts.items() if all_text(values)}
    if not whole:
        raise DataError(f"{path}: no column holds chats, or texts in every row", listed(columns))
    text = first_named(whole, TEXTS) or max(whole, key=lambda name: sum(map(len, whole[name])))
    return _task(CausalLm, form="text", text=text)


def seq2seq_task(path: Path, columns: Columns) -> dict[str, Any]:
    """``[task]`` of what texts become. Raises DataError for a file without two columns of texts."""
    texts = _texts(columns)
    pair = _pair(texts, SOURCES, TARGETS) or _pair(texts, PROMPTS, COMPLETIONS)
    likely = [name for name in texts if not is_named(name, NO_TEXTS)]
    if pair is None and len(likely) == 2:
        pair = likely[0], likely[1]
    if pair is None:
        raise DataError(
            f"{path}: no two columns look like texts and what they become",
            f"name them `source` and `target`; {listed(columns)}",
        )
    return _task(Seq2SeqLm, source=pair[0], target=pair[1])


def columns_of(task: Mapping[str, Any]) -> list[str]:
    """The columns that a task of this module names."""
    kept = ("kind", "form", "max_length", "unanswered")
    return [value for key, value in task.items() if key not in kept and value]


def _texts(columns: Columns) -> dict[str, list[str]]:
    """Columns of strings, of which some may be empty."""
    return {
        name: [str(value) for value in values]
        for name, values in columns.items()
        if all(type(value) is str for value in values) and any(str(v).strip() for v in values)
    }


def _pair(
    texts: Mapping[str, list[str]], first: Sequence[str], second: Sequence[str]
) -> tuple[str, str] | None:
    """Columns of these names."""
    begin = first_named(texts, first)
    end = first_named([name for name in texts if name != begin], second)
    return (begin, end) if begin and end else None


def _task(kind: type[CausalLm | Seq2SeqLm], **keys: str) -> dict[str, Any]:
    """The keys that differ from their defaults, the kind and the form."""
    fields = kind.model_fields
    named = {k: v for k, v in keys.items() if k == "form" or v != fields[k].default}
    return {"kind": kind.KIND} | named


def _is_list(value: object) -> bool:
    return isinstance(value, list) and not isinstance(value, JsonObject)
