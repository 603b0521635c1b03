"""Chats become the prompts that transformers makes of them; templates stay within bounds."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.chat import chat_prompt, chat_text
from protocol.chat import sandbox as template_sandbox
from protocol.chat.messages import MOST_CONTENT, chat_from
from protocol.chat.template import rendered
from protocol.errors import ArtefactError, DataError
from tests.tiny_decoder import TEMPLATE, tiny_tokenizer

CHATML = """{%- if messages[0]['role'] == 'system' -%}
    {%- set system_message = messages[0]['content'] | trim -%}
    {%- set messages = messages[1:] -%}
{%- else -%}
    {%- set system_message = 'You are helpful.' -%}
{%- endif -%}
{{- bos_token + '<|im_start|>system\\n' + system_message + '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate, not ' + message['role']) }}
    {%- endif %}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>' ~ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LINES = """{% for message in messages %}
    {% if loop.first and tools is none %}
{{ bos_token }}
    {% endif %}
    {% if message.role == 'assistant' %}
        {% generation %}
{{ message.content }}{{ eos_token }}
        {% endgeneration %}
        {% continue %}
    {% endif %}
[{{ message.role | upper }} {{ loop.index }}/{{ loop.length }}]{{ message | tojson }}
{% endfor %}
{% set ns = namespace(count=0) %}
{% for message in messages if message.role == 'user' %}{% set ns.count = ns.count + 1 %}{% endfor %}
{{ '%d users' % ns.count }}, {{ messages | map(attribute='role') | join(', ') }}
{% macro loud(text) %}{{ text | replace('a', 'A') }}!{% endmacro %}
{% for message in messages | selectattr('role', 'equalto', 'user') %}{{ loud(message.content) }}
{% endfor %}
{{ range(3) | list }}{{ dict(a=1) | tojson(indent=2) }}{{ 'x' * 3 + 'y' }}{{ messages[-1].content.split(' ')[0] }}
"""
CHATS = [
    [{"role": "user", "content": "hello there"}],
    [
        {"role": "system", "content": "  be <brief> & 'kind'\n"},
        {"role": "user", "content": 'é 😀 "what"'},
        {"role": "assistant", "content": "a banana"},
        {"role": "user", "content": "\n\nwhy?"},
    ],
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", [CHATML, LINES, TEMPLATE])
def test_a_prompt_is_the_one_of_transformers(
    decoder: DecoderBase, template: str, chat: list[dict[str, str]]
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), bos_token="<s>", eos_token="</s>"
    )
    options: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True}
    base = dataclasses.replace(decoder, template=template)
    text = theirs.apply_chat_template(chat, tokenize=False, **options)
    assert chat_text(base, chat_from(chat)) == text
    ids = theirs.apply_chat_template(chat, tokenize=True, return_dict=False, **options)
    assert chat_prompt(base, chat_from(chat)) == list(ids)


def test_what_the_template_refuses_is_said(decoder: DecoderBase) -> None:
    base = dataclasses.replace(decoder, template=CHATML)
    with pytest.raises(
        DataError, match="refuses these messages: roles must alternate, not assistant"
    ):
        chat_text(base, chat_from([{"role": "assistant", "content": "x"}]))


def test_a_base_without_a_template_has_no_chats(decoder: DecoderBase) -> None:
    base = dataclasses.replace(decoder, template=None)
    with pytest.raises(ArtefactError, match="no chat template"):
        chat_text(base, chat_from(CHATS[0]))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hello", "no list"),
        ([], "0 messages"),
        ([{"role": "user", "content": "a"}] * 1001, "1001 messages"),
        ([CHATS[0][0], "hello"], "message 1 is no table"),
        ([CHATS[0][0], {"role": "user"}], "message 1: `content` is missing"),
        ([{"role": "user", "content": 3}], "message 0: `content` is no text"),
        ([{"role": None, "content": "a"}], "message 0: `role` is no text"),
        ([{"role": "robot", "content": "a"}], "message 0: its role is none that is known"),
        ([{"role": "user", "content": "a", "name": "b"}], "message 0: `name` is not supported"),
        ([{"role": "user", "content": "a" * (MOST_CONTENT + 1)}], "characters"),
    ],
)
def test_messages_that_are_none_are_named(messages: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        chat_from(messages)


LOOPS = "{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set n = namespace(s='ab') %}{% for i in range(40) %}{% set n.s = X %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOPS, "steps"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "(steps|Recursion)"),
        ("{{ 'a' * 10**9 }}", "characters"),
        ("{{ [0] * 10**9 }}", "characters"),
        ("{{ 10 ** 10 ** 10 }}", "powers"),
        ("{{ '%1000000000d' % 1 }}", "width"),
        ("{{ '{:1000000000}'.format(1) }}", "width"),
        ("{{ '{:{w}}'.format(1, w=10**9) }}", "characters"),
        ("{{ 'a'.ljust(10**9) }}", "characters"),
        ("{{ 'a' | center(10**9) }}", "characters"),
        ("{{ ('ab' * 90000) | replace('a', 'b' * 90000) }}", "into one another"),
        ("{{ ('ab' * 90000).replace('a', 'b' * 90000) }}", "into one another"),
        ("{% for a in range(30) %}{{ 'a' * 999999 }}{% endfor %}", "characters"),
        (DOUBLED.replace("X", "n.s ~ n.s"), "characters"),
        (DOUBLED.replace("X", "n.s + n.s"), "characters"),
        (DOUBLED.replace("X", "[n.s, n.s] | join"), "characters"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler(1) }}", "UndefinedError"),
        ("{% include 'x' %}", "TypeError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[0].nothing.at.all }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_goes_too_far_is_stopped(
    template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_STEPS", 20_000)
    with pytest.raises(
        ArtefactError, match=f"chat template (goes too far|does not work): .*{said}"
    ):
        rendered(template, chat_from(CHATS[0]), {})


def test_a_template_works_again_after_one_rendering_went_too_far() -> None:
    template = "{% for m in messages %}{% for i in range(m.content | int) %}{{ 'a' * 99999 }}{% endfor %}{% endfor %}"
    with pytest.raises(ArtefactError, match="too far"):
        rendered(template, chat_from([{"role": "user", "content": "999"}]), {})
    assert rendered(template, chat_from([{"role": "user", "content": "1"}]), {}) == "a" * 99999


VALUES = st.sampled_from(
    [
        "message.content",
        "message['role']",
        "messages[0].content",
        "messages | length",
        "loop.index",
        "loop.last",
        "loop.length",
        "bos_token",
        "tools",
        "nothing",
        "ns.a",
        "'a' ~ 1 ~ none",
        "message.content | trim",
        "message.content | replace('a', 'bb') | upper",
        "message.content.split(' ')[-1]",
        "messages | map(attribute='role') | join('|')",
        "messages | tojson",
        "messages[1:] | tojson(indent=2)",
        "(1 + 2 * 3) ** 2 % 5",
        "'%s-%d' % ('x', 3)",
        "'{} {a}'.format(1, a='é<')",
        "'<&>' | e",
        "range(3) | list",
        "dict(a=1)",
        "message is mapping",
        "raise_exception('no')",
        "[1, 2] + [3]",
        "namespace(b=2).b",
        "messages | selectattr('role', 'equalto', 'user') | list | length",
        "message.items() | list",
        "loop.cycle('x', 'y')",
        "caller()",
    ]
)
ODD = ["\n", "  ", "text", "{# gone #}", "<|im_end|>", "{% break %}", "{% continue %}"]
PIECES = st.one_of(
    VALUES.map(lambda value: "{{ " + value + " }}"),
    VALUES.map(lambda value: "{{- " + value + " -}}"),
    VALUES.map(lambda value: "{%- if " + value + " %}yes{% else %}\n no {%- endif %}"),
    VALUES.map(lambda value: "{% set ns.a = " + value + " %}"),
    VALUES.map(lambda value: "{% set other = " + value + " -%}\n{{ other }}"),
    st.sampled_from(ODD),
)
BODIES = st.lists(PIECES, max_size=4).map("".join)
AROUND = [
    ("", ""),
    ("{% for message in messages %}", "{% endfor %}\n"),
    ("{%- for message in messages if message.role -%}", "{% else %}none{% endfor %}"),
    ("{% for a in [1, 2] %}{% for message in messages %}", "{% endfor %}{% endfor %}"),
    ("{% macro m(message) %}", "{% endmacro %}{{ m(messages[0]) }}"),
    ("{% generation %}", "{% endgeneration %}"),
    ("  {% if add_generation_prompt %}\n", "{% endif %}"),
]
PARTS = st.tuples(st.sampled_from(AROUND), BODIES).map(lambda of: of[0][0] + of[1] + of[0][1])
TEMPLATES = st.lists(PARTS, max_size=3).map(
    lambda parts: "{% set ns = namespace(a=0) %}" + "".join(parts)
)


@settings(max_examples=150)
@given(TEMPLATES, st.sampled_from(CHATS))
def test_templates_at_random_give_what_transformers_gives(template: str, chat: Any) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (expected,), _ = render_jinja_template(
            [chat], chat_template=template, add_generation_prompt=True, bos_token="<s>"
        )
    except Exception:
        with pytest.raises((DataError, ArtefactError)):
            rendered(template, chat_from(chat), {"bos_token": "<s>"})
        return
    assert rendered(template, chat_from(chat), {"bos_token": "<s>"}) == expected


LONG = "{% set b = 'x' * 1000000 %}"
HOARD = "{% set n = namespace(l=[]) %}{% for i in range(300) %}{% set n.l = X %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        LONG + "{{ range(200) | join(b) | length }}",
        LONG + "{{ b.join(range(200) | map('string')) | length }}",
        LONG + "{{ (('%(a)s' * 200) % {'a': b}) | length }}",
        LONG + "{{ ([b] * 200) | string | length }}",
        LONG + "{{ (([b] * 200) ~ '') | length }}",
        LONG + "{{ ([b] * 200) | tojson | length }}",
        LONG + "{{ [1, 2, 3] | tojson(indent=b * 4) | length }}",
        LONG + "{{ ('a' * 300).translate({97: b}) | length }}",
        LONG + "{% set l = [b] * 15 %}{% set l = [l, l, l, l, l, l] %}{{ l | string | length }}",
        LONG
        + "{% set a %}{% for i in range(200) %}{{ b }}{{ i }}{% endfor %}{% endset %}{{ a | length }}",
        "{{ ('\t' * 1000).expandtabs(300000) | length }}",
        "{{ ('\n' * 1000) | indent(300000, true, true) | length }}",
        "{{ '%200000000d' | format(1) | length }}",
        "{{ '{:{w}}'.format(1, w='200000000') | length }}",
        "{{ '{0:{1[0]}}'.format(1, [200000000]) | length }}",
        "{{ 'x'.encode().center(200000000) | length }}",
        "{{ (1).to_bytes(200000000, 'big') | length }}",
        HOARD.replace("X", "n.l + ['x' * 1000000 ~ i]"),
        HOARD.replace("X", "[n.l, 'x' * 1000000 ~ i]"),
        "{% set n = namespace(l=[0]) %}{% for i in range(24) %}{% set n.l = n.l + n.l %}{% endfor %}",
        "{{ ('x' * 300000) | list | map('list') | list | length }}",
    ],
)
def test_a_template_makes_nothing_large_on_its_way(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_sandbox, "MOST_MADE", 2**25)
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match="goes too far"):
            rendered(template, chat_from(CHATS[0]), {})
        assert tracemalloc.get_traced_memory()[1] < 6e7
    finally:
        tracemalloc.stop()


def test_what_a_template_writes_to_is_short_when_it_is_shown() -> None:
    template = "{% set n = namespace(a='x' * 99) %}{{ n }}"
    assert rendered(template, chat_from(CHATS[0]), {}) == "<namespace>"
