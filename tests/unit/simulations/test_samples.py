"""How near answers are to the rows' own."""

from __future__ import annotations

from typing import Any

import pytest
from sacrebleu import sentence_chrf

from simulations.samples import scored, scores_of


def rows(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"prompt": "?", "before": answer, "reference": own} for answer, own in pairs]


def test_the_same_answers_are_all_right() -> None:
    same = scored(rows(("a red fox jumps", "a red fox jumps"), (" yes ", "yes")), "before")
    assert same == pytest.approx({"exact_match": 100, "chrf": 100, "bleu": 100})


def test_other_answers_are_as_near_as_sacrebleu_says() -> None:
    pair = ("a red fox jumped over it", "the red fox jumps over it")
    figures = scored(rows(pair), "before")
    assert figures["exact_match"] == 0
    assert figures["chrf"] == pytest.approx(sentence_chrf(pair[0], [pair[1]]).score)
    assert 0 < figures["bleu"] < 100


def test_rows_without_an_answer_of_their_own_are_not_compared() -> None:
    assert scored(rows(("a", "")), "before") == {}
    assert scored(rows(("a", ""), ("b", "b")), "before")["exact_match"] == 100


def test_a_summary_has_every_figure_or_none() -> None:
    assert set(scores_of(None).values()) == {None}
    found = scores_of({"scores": {"before": {"chrf": 1.0}, "federated": {"chrf": 2.0}}})
    assert (found["chrf_before"], found["chrf_federated"]) == (1.0, 2.0)
