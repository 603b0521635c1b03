from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import PlanError
from protocol.plan import parse_plan, plan_from_text
from protocol.plan_sections import Cohort

GOOD = f'name = "p"\n[base]\nfingerprint = "{"0" * 64}"\n[task]\nlabels = ["a", "b"]\n'
CLUSTER = "[cohort]\nquorum = 2\nclients = [{}]\n"


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        (
            GOOD + "[local]\nlerning_rate = 1.0\n",
            "unknown key `local.lerning_rate`",
            "`learning_rate`",
        ),
        (GOOD + "[rools]\n", "unknown key `rools`", "did you mean"),
        (GOOD + "[local]\nepochs = 'two'\n", "`local.epochs`", "correct this value"),
        (GOOD + "[local]\nlearning_rate = -1.0\n", "`local.learning_rate`", "correct"),
        (GOOD + "[local]\nlearning_rate = inf\n", "`local.learning_rate`", "correct"),
        (GOOD + "[cohort]\nsize = 2\nquorum = 3\n", "quorum 3 is above size 2", "correct"),
        (GOOD + CLUSTER.format('"bo", "ann"'), "not in rising order", "correct"),
        (GOOD + CLUSTER.format('"ann", "ann"'), "not in rising order, each once", "correct"),
        (GOOD + CLUSTER.format('"ann"'), "quorum 2 is above the 1 clients named", "correct"),
        (GOOD + CLUSTER.format('"ann", "b\\n"'), "`cohort.clients.1`", "correct"),
        (GOOD + CLUSTER.format('"ann", "ann\\u200b"'), "not printable", "correct"),
        (GOOD + CLUSTER.format('"ann", "\\u202ebo"'), "not printable", "correct"),
        (GOOD + CLUSTER.format(f'"ann", "{33 * "é"}"'), "longer than 64 bytes", "correct"),
        (GOOD.replace('"b"', '"a"'), "repeated: a", "correct"),
        ('name = "p"\n[task]\nlabels = ["a", "b"]\n', "`base` is missing", "fedge init"),
        ("name = ", "not valid TOML", "line"),
        (GOOD.replace('"p"', '"../p"'), "`name`", "correct"),
        (GOOD + "format = 2\n", "", ""),
    ],
)
def test_a_wrong_plan_is_refused_with_cause_and_remedy(text: str, cause: str, remedy: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, source="plan.toml")
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy
    assert caught.value.cause.startswith("plan.toml")


def test_a_document_of_another_format_is_told_its_own_and_the_right_one() -> None:
    with pytest.raises(PlanError, match="`format` is 1, this fedge's plans have 2"):
        parse_plan("format = 1\n" + GOOD, source="p.toml")


def test_the_digest_ignores_order_comments_and_spelt_out_defaults() -> None:
    plain = parse_plan(GOOD, source="x").digest
    spelt = GOOD + "# a comment\n[rule]\nname = 'alternating'\n[local]\nepochs = 1\n"
    assert parse_plan(spelt, source="y").digest == plain
    assert parse_plan(GOOD + "[local]\nepochs = 2\n", source="z").digest != plain


def test_a_plan_that_names_nobody_is_the_plan_that_it_was() -> None:
    plain, nobody, two = (
        parse_plan(GOOD + text, source="x")
        for text in ("[cohort]\nquorum = 2\n", CLUSTER.format(""), CLUSTER.format('"ann", "bo"'))
    )
    assert nobody.digest == plain.digest != two.digest
    assert "clients" not in nobody.render()
    assert plan_from_text(two.render(), source="plan.json").cohort.clients == ["ann", "bo"]


@given(st.lists(st.text("abc", min_size=1, max_size=3), unique=True), st.text("abc", max_size=3))
def test_who_is_named_takes_part(names: list[str], client: str) -> None:
    cohort = Cohort(quorum=1, clients=sorted(names))
    assert cohort.takes(client) == (not names or client in names)
