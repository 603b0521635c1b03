"""Rows of text that follows text: what is read of a file, and which row is refused, by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.chat.messages import Chat
from protocol.errors import DataError, PlanError
from protocol.plan import plan_from
from protocol.rows.conversations import (
    read_chats,
    read_completions,
    read_plain,
    read_sources,
)
from protocol.rows.read import Table
from protocol.tasks.causal_lm import CausalLm
from protocol.tasks.writing import METRICS

ASK, TELL = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}


def written(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_chats_are_read_with_their_last_answers(tmp_path: Path) -> None:
    first = [{"role": "system", "content": "Be short."}, ASK, TELL, ASK]
    path = written(tmp_path, {"m": first, "who": 3}, {"m": [TELL], "who": 4})
    table = read_chats(path, "m", group="who")
    assert table.texts == [Chat(messages=tuple(first)), Chat(messages=(TELL,))]
    assert (table.targets, table.groups) == (["Hello.", "Hello."], ["3", "4"])


def test_a_prompt_has_its_context_behind_it(tmp_path: Path) -> None:
    rows = [{"p": "Who?", "c": "Ann.", "x": x} for x in ("", "Ann sat here.")]
    table = read_completions(written(tmp_path, *rows), "p", "c", context="x")
    asked = [chat.messages[0]["content"] for chat in table.texts]
    assert asked == ["Who?", "Who?\n\nAnn sat here."]
    assert table.targets == ["Ann.", "Ann."]


def test_chats_come_of_parquet_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"messages": [[ASK, TELL]]}), tmp_path / "rows.parquet")
    assert read_chats(tmp_path / "rows.parquet", "messages").texts == [Chat(messages=(ASK, TELL))]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("Hi", "holds a string, not a list of messages"),
        ({"role": "user"}, "holds a JSON object, not a list of messages"),
        ([], "0 messages"),
        ([ASK], "has no message of the role `assistant`"),
        ([ASK, {"role": "tool", "content": "x"}], "message 1: its role is none that is known"),
        ([ASK, {"role": "assistant"}], "message 1: `content` is missing"),
        ([ASK, {"role": "assistant", "content": None}], "message 1: `content` is no text"),
        ([ASK, {**TELL, "name": "x"}], "message 1: `name` is not supported"),
        ([ASK, 5], "message 1 is no table"),
        ([ASK, {"role": "assistant", "content": " "}], r"`messages\[1\].content` is empty"),
        ([ASK, {"role": "assistant", "content": "a\0"}], "holds a NUL character"),
    ],
)
def test_a_chat_that_cannot_be_learnt_is_refused_where_it_stands(
    tmp_path: Path, value: Any, says: str
) -> None:
    path = written(tmp_path, {"messages": [ASK, TELL]}, {"messages": value})
    with pytest.raises(DataError, match=rf"rows.jsonl: line 2.*{says}") as caught:
        read_chats(path, "messages")
    assert caught.value.remedy


def test_rows_without_an_answer_are_left_out_where_the_plan_says_so(tmp_path: Path) -> None:
    blank = {"role": "assistant", "content": " "}
    path = written(tmp_path, {"m": [ASK]}, {"m": [ASK, blank]}, {"m": [ASK, TELL]})
    assert len(read_chats(path, "m", skip=True)) == 1
    rows = [{"p": "a", "c": ""}, {"p": "a", "c": "b"}]
    assert read_completions(written(tmp_path, *rows), "p", "c", skip=True).targets == ["b"]
    assert read_sources(written(tmp_path, *rows), "p", "c", skip=True).texts == ["a"]
    with pytest.raises(DataError, match="no row has an answer"):
        read_completions(written(tmp_path, rows[0]), "p", "c", skip=True)
    with pytest.raises(DataError, match="line 1: column `c` is empty"):
        read_completions(written(tmp_path, *rows), "p", "c")


def test_a_key_that_stands_twice_in_a_message_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"m": [{"role": "user", "role": "assistant", "content": "x"}]}\n')
    with pytest.raises(DataError, match="message 0 is no table"):
        read_chats(path, "m")


@pytest.mark.parametrize("column", ["p", "c"])
def test_a_prompt_and_its_completion_are_texts(tmp_path: Path, column: str) -> None:
    path = written(tmp_path, {"p": "a", "c": "b"} | {column: 7})
    with pytest.raises(DataError, match=f"line 1: column `{column}` holds a number"):
        read_completions(path, "p", "c")


def test_a_csv_has_texts_and_prompts_and_no_chats(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,messages\n"a, b",[]\n')
    assert read_plain(path, "text") == Table(texts=["a, b"], targets=[""])
    with pytest.raises(DataError, match="line 2: column `messages` holds a string"):
        read_chats(path, "messages")


def task(**keys: Any) -> CausalLm:
    document = {
        "name": "t",
        "base": {"fingerprint": "0" * 64},
        "task": {"kind": "causal-lm"} | keys,
    }
    plan = plan_from(document, source="test")
    assert isinstance(plan.task, CausalLm)
    return plan.task


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"form": "text", "prompt": "q"}, "prompt is a column of form"),
        ({"completion": "a"}, "completion is a column of form"),
        ({"form": "prompt", "messages": "m"}, "messages is a column of form"),
        ({"form": "prompt", "prompt": "a", "completion": "a"}, "two columns have one name"),
        ({"form": "chat"}, "`task.form`"),
        ({"labels": ["a", "b"]}, "key of `classification`"),
    ],
)
def test_columns_are_of_the_form(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError) as caught:
        task(**keys)
    assert says in f"{caught.value.cause} {caught.value.remedy}"


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(texts=st.lists(st.tuples(LINES, LINES, LINES), min_size=1, max_size=4))
@pytest.mark.parametrize("form", ["messages", "prompt", "text"])
def test_what_is_written_of_rows_is_what_was_read(
    tmp_path_factory: pytest.TempPathFactory, form: str, texts: list[tuple[str, str, str]]
) -> None:
    columns = {"context": "x"} if form == "prompt" else {}
    plan_task = task(form=form, **columns)
    rows: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}],
            "prompt": a,
            "x": c,
            "completion": b,
            "text": a,
        }
        for a, b, c in texts
    ]
    folder = tmp_path_factory.mktemp("rows")
    read = plan_task.rows(written(folder, *rows))
    lines = [
        plan_task.line(text, target) for text, target in zip(read.texts, read.targets, strict=True)
    ]
    assert plan_task.rows(written(folder, *lines, name="again.jsonl")) == read


def test_the_quality_is_the_perplexity_of_all_tokens_together() -> None:
    sums = dict.fromkeys(METRICS, 0.0) | {"eval_tokens": 4.0, "eval_loss": 8.0}
    assert CausalLm.quality_of(sums) == pytest.approx(7.389056)
    assert CausalLm.quality_of(dict.fromkeys(METRICS, 0.0)) is None
    quality = CausalLm.QUALITY
    assert (quality.share(4.0), quality.said(4.0), quality.drawn(4.0)) == (
        0.25,
        "perplexity 4.00",
        4,
    )
