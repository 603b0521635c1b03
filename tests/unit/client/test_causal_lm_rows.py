"""Sites that learn text: which tokens of a row are read, which count, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from base_model.verify import open_tokenizer
from client.data import load_rows
from client.tasks.writing import OF_THE_BASE
from client.worker import Worker
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.chat import chat_prompt
from protocol.chat.messages import chat_from
from protocol.errors import DataError
from tests.unit.client.chats import END, TEMPLATE, WORDS, chat, rows_of


def test_what_counts_of_a_chat_is_what_a_device_would_write(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path]
) -> None:
    first, second = " ".join(WORDS[:3]), " ".join(WORDS[3:6])
    rows = chat_site().encode(rows_of(chat(first, second), chat(first, second, second, first)))
    device = DecoderBase.open(chat_bases["chat"], threads=1)
    prompt = chat_prompt(device, chat_from([{"role": "user", "content": first}]))
    answer = [*device.encode(second, special=False), END]
    one = rows.ids[: rows.offsets[1]].tolist()
    assert one == prompt + answer
    expected = [-1] * (len(prompt) - 1) + answer + [-1]
    assert rows.targets[: rows.offsets[1]].tolist() == expected
    assert rows.counted.tolist() == [4, 8]
    longer = rows.ids[rows.offsets[1] :].tolist()
    again = chat_prompt(device, chat(first, second, second))
    assert longer[: len(again)] == again  # also what the answers before look like


def test_the_whole_is_transformers_own_reading(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_bases["chat"])
    talk = chat(WORDS[0], WORDS[1], WORDS[2], WORDS[3])
    rows = chat_site().encode(rows_of(talk))
    whole = tokenizer.apply_chat_template([dict(m) for m in talk.messages], tokenize=False)
    assert rows.ids.tolist() == tokenizer(whole.rstrip(), add_special_tokens=False).input_ids


def test_a_base_without_a_template_reads_prompt_and_completion(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path]
) -> None:
    site = chat_site("plain", form="prompt")
    rows = site.encode(rows_of(chat(f"{WORDS[0]} ", WORDS[1])))
    device = DecoderBase.open(chat_bases["plain"], threads=1)
    assert rows.ids.tolist() == [
        *device.encode(WORDS[0]),
        *device.encode(WORDS[1], special=False),
        END,
    ]
    assert rows.targets.tolist() == [-1, *device.encode(WORDS[1], special=False), END, -1]


def test_of_a_plain_text_all_counts_and_its_end(chat_site: Callable[..., Worker]) -> None:
    rows = chat_site(form="text").encode(rows_of(" ".join(WORDS[:4])))
    assert rows.targets.tolist() == [*rows.ids[1:].tolist(), -1]
    assert rows.ids[-1] == END


def test_long_rows_are_cut_and_refused_where_nothing_would_count(
    chat_site: Callable[..., Worker],
) -> None:
    short, long = chat(WORDS[0], " ".join(WORDS * 6)), chat(" ".join(WORDS * 6), WORDS[0])
    cut = chat_site().encode(rows_of(short))
    assert (len(cut.ids), cut.counted.tolist()) == (32, [32 - 6])
    with pytest.raises(
        DataError,
        match=r"^row 2: its answer begins behind 53 tokens, the plan takes 32",
    ):
        chat_site().encode(rows_of(short, long))
    skipping = chat_site(unanswered="skip")
    assert len(skipping.encode(rows_of(short, long, short))) == 2
    with pytest.raises(DataError, match="no row's answer begins within 32 tokens"):
        skipping.encode(rows_of(long))


def test_a_row_that_cannot_be_learnt_is_named_by_file_and_line(
    chat_site: Callable[..., Worker], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    asked = [{"prompt": WORDS[0], "completion": WORDS[1]}] * 3
    asked[1] = {"prompt": WORDS[0], "completion": ""}  # left out while it is read
    asked[2] = {"prompt": " ".join(WORDS * 6), "completion": WORDS[0]}
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in asked))
    skipping = chat_site(form="prompt", unanswered="skip").plan.task
    rows = load_rows(path, skipping)
    assert len(rows) == 2
    with pytest.raises(DataError) as refused:
        chat_site(form="prompt").encode(rows)
    assert refused.value.cause == (
        f"{path}: line 4: its answer begins behind 53 tokens, the plan takes 32"
    )
    assert refused.value.public == "a row whose answer begins behind task.max_length"


def test_a_chat_that_the_template_refuses_is_named_by_file_and_line(
    chat_site: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    path = tmp_path / "rows.jsonl"
    talks = [[dict(m) for m in talk.messages] for talk in (chat(*WORDS[:2]), chat(*WORDS[:3]))]
    del talks[1][0]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    site = chat_site()
    rows = load_rows(path, site.plan.task)
    base = vars(site._base)
    monkeypatch.setattr(site, "_base", type(site._base)(**base | {"template": strict + TEMPLATE}))
    with pytest.raises(DataError) as refused:
        site.encode(rows)
    assert refused.value.cause == (
        f"{path}: line 2: the base's chat template refuses these messages: user first"
    )
    assert refused.value.public == "the local data does not fit the plan"
    forgets = (
        "{% for m in messages %}{{ m.role if loop.last else '' }} {{ m.content }}\n{% endfor %}"
    )
    monkeypatch.setattr(site, "_base", type(site._base)(**base | {"template": forgets}))
    path.write_text("\n" + json.dumps({"messages": [dict(m) for m in chat(*WORDS[:4]).messages]}))
    with pytest.raises(DataError) as odd:
        site.encode(load_rows(path, site.plan.task))
    assert odd.value.cause.startswith(
        f"{path}: line 2: the base's chat template writes earlier messages"
    )
    assert odd.value.public == OF_THE_BASE


@pytest.mark.parametrize(
    "template",
    [
        "{{ {}[messages[0].content].x }}",
        "{{ [].index(messages[0].content) }}",
        "{{ [1] | map(messages[0].content) | list }}",
    ],
)
def test_what_a_template_says_of_a_row_when_it_fails_leaves_no_trace(
    chat_site: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """Jinja's own words quote what it was given; nor is a coordinator told which row it is."""
    site, secret = chat_site(), "born in 1970"
    monkeypatch.setattr(
        site, "_base", site._base.__class__(**vars(site._base) | {"template": template})
    )
    with pytest.raises(DataError) as failed:
        site.encode(rows_of(chat(secret, WORDS[1])))
    assert failed.value.cause.startswith("row 1: the base's chat template does not work: ")
    assert secret not in f"{failed.value.cause} {failed.value.remedy} {failed.value.public}"
    assert failed.value.public == OF_THE_BASE


def test_a_template_that_rewrites_earlier_answers_is_refused(
    chat_site: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgets = (
        "{% for m in messages %}{{ m.role if loop.last else '' }} {{ m.content }}\n{% endfor %}"
    )
    site = chat_site()
    monkeypatch.setattr(
        site, "_base", site._base.__class__(**vars(site._base) | {"template": forgets})
    )
    with pytest.raises(DataError, match="writes earlier messages otherwise") as refused:
        site.encode(rows_of(chat(*WORDS[:4])))
    assert refused.value.public == OF_THE_BASE


@pytest.mark.parametrize("change", ["|upper", ".split(' ')[-1]"])
def test_a_template_that_says_something_else_is_refused(
    chat_site: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    odd = TEMPLATE.replace("m.content", f"(m.content{change})")
    site = chat_site()
    monkeypatch.setattr(site, "_base", site._base.__class__(**vars(site._base) | {"template": odd}))
    with pytest.raises(DataError, match="writes an answer otherwise") as refused:
        site.encode(rows_of(chat(WORDS[0], f"{WORDS[1]} {WORDS[2]}")))
    assert refused.value.public == OF_THE_BASE


def test_rows_are_read_as_the_plan_says(
    chat_site: Callable[..., Worker], chat_bases: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"q": WORDS[0], "about": "", "a": WORDS[1]}
    path.write_text(json.dumps(row) + "\n")
    site = chat_site(form="prompt", prompt="q", completion="a", context="about")
    encoded = site.encode(load_rows(path, site.plan.task))
    text = open_tokenizer(chat_bases["chat"]).decode(encoded.ids.tolist(), skip_special_tokens=True)
    assert text == f"user {WORDS[0]} assistant {WORDS[1]}"
