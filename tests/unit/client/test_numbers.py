"""Rows with numbers: read, trained on, scored."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import mse_loss

from client.data import Rows, load_rows
from client.tasks.regression import score
from client.training import train
from client.worker import Worker
from protocol.encoding import vector_digest
from protocol.errors import DataError
from protocol.plan import Plan
from protocol.secagg.task import encoding_for
from protocol.tasks.regression import Regression
from protocol.wire import Instruction
from simulations.tasks.regression import score as scores_of
from simulations.tasks.regression import scores_from, strata

Make = Callable[..., Plan]
TASK = Regression(kind="regression", low=-1.0, high=4.0, text="s", target="t")
JSONL = '{{"s": "a text", "t": 4}}\n{{"s": "b", "t": {}}}\n'


def test_values_are_shares_of_the_range_from_any_form(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(JSONL.format("1.5"))
    (tmp_path / "a.csv").write_text("t,s\n4,a text\n 1.5 ,b\n")
    pq.write_table(pa.table({"s": ["a text", "b"], "t": [4.0, 1.5]}), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        rows = load_rows(path, TASK)
        assert (rows.texts, rows.targets) == (["a text", "b"], [1.0, 0.5]), path


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ('"1.5"', "column `t` holds a string, not a number"),
        ("true", "holds a boolean"),
        ("null", "holds a null"),
        ("4.1", "holds '4.1', the plan says -1 to 4"),
        ("NaN", "holds 'nan', the plan says"),
        ("1" + "0" * 400, "the plan says"),
        ("[1]", "holds a list"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, value: str, fault: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(JSONL.format(value))
    with pytest.raises(DataError) as caught:
        load_rows(path, TASK)
    assert caught.value.cause.startswith(f"{path}: line 2: ")
    assert fault in caught.value.cause


@pytest.mark.parametrize("value", ["", "x", "1,5", "inf", "--1"])
def test_a_csv_value_that_is_no_number_is_named(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f't,s\n1,a\n"{value}",b\n')
    with pytest.raises(DataError, match=r"a.csv: line 3: column `t` holds"):
        load_rows(path, TASK)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"s": "a", "score": 1}\n')
    with pytest.raises(DataError, match=r"line 1: the column `t` is missing"):
        load_rows(path, TASK)


def test_the_loss_counts_outputs_and_the_error_answers_within_the_range() -> None:
    outputs = np.array([[-1.0], [0.25], [3.0]], np.float32)
    targets = np.array([0.0, 0.75, 1.0], np.float32)
    found = score(outputs, targets)
    expected = mse_loss(torch.from_numpy(outputs[:, 0]), torch.from_numpy(targets), reduction="sum")
    assert found.loss_sum == pytest.approx(float(expected))
    assert found.metrics == {"eval_examples": 3.0, "eval_error": pytest.approx(0.25)}
    nothing = score(np.zeros((0, 0), np.float32), np.zeros(0, np.float32))
    assert nothing.metrics == {"eval_examples": 0.0, "eval_error": 0.0}
    scores = scores_of(outputs, targets)
    assert scores.quality == pytest.approx(math.sqrt(0.25 / 3))
    assert scores_from(scores.to_list()) == scores


def test_a_client_learns_numbers(tiny_base: Path, make_plan: Make, words: list[str]) -> None:
    """The share of one of two words in a text: better than the mean of all texts."""
    plan = make_plan(
        task={"kind": "regression", "low": 0.0, "high": 10.0, "max_length": 16},
        local={"batch_size": 8, "head_learning_rate": 0.05, "epochs": 8},
        evaluation={"holdout": 0.2},
    )
    rng = np.random.default_rng(0)
    texts, targets = [], []
    for _ in range(120):
        first = int(rng.integers(0, 9))
        chosen = [words[0]] * first + [words[-1]] * (8 - first)
        texts.append(" ".join(chosen))
        targets.append(first / 8)
    worker = Worker(plan, tiny_base, threads=1)
    layout = worker.engine.layout
    start = rng.normal(0, 0.05, layout.size).astype(np.float32)
    tensors = layout.unflatten(start)
    rows = worker.encode(Rows(texts=texts, targets=targets))
    assert rows.targets.dtype == np.float32
    parts = frozenset(spec.part for spec in layout.specs)
    after = train(worker.engine, tensors, rows, local=plan.local, parts=parts, seed=1).tensors
    error = worker.score(after, rows).metrics["eval_error"] / len(rows)
    assert error < 0.8 * np.var(targets)
    assert worker.score(tensors, rows).metrics["eval_error"] / len(rows) > error


def test_a_round_of_pairs_and_numbers(tiny_base: Path, make_plan: Make, tmp_path: Path) -> None:
    """Rows of a file, two clients' updates and metrics, their secret sum: what each is and no more."""
    task = {"kind": "regression", "low": 0.0, "high": 5.0, "text": "s1", "text_pair": "s2"}
    plan = make_plan(
        task=task | {"target": "score", "max_length": 16},
        evaluation={"holdout": 0.25},
        cohort={"size": 3, "quorum": 3},
        secrecy={},
    )
    worker = Worker(plan, tiny_base, threads=1)
    start = worker.recipe.sent_layout.flatten(
        {spec.name: worker.recipe.start()[spec.name] for spec in worker.recipe.sent_layout.specs}
    )
    instruction = Instruction(
        round=1,
        attempt=1,
        plan_digest=plan.digest,
        base=plan.base.fingerprint,
        adapter_digest=vector_digest(start),
        evaluate=True,
    )
    given = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"s1": "turn on", "s2": f"the light {name}", "score": n % 6} for n in range(16)]
        path.write_text("\n".join(map(json.dumps, rows)))
        read = load_rows(path, plan.task)
        assert read.texts[0] == ("turn on", f"the light {name}")
        given.append(
            worker.contribute(client=name, instruction=instruction, adapter=start, rows=read)
        )
    assert all(list(each.metrics) == list(plan.task.METRICS) for each in given)
    encoding = encoding_for(plan, instruction, size=len(given[0].update), clients=2)
    rng = np.random.default_rng(0)
    words = sum(encoding.words(each, rng, os.urandom) for each in given)
    mean, metrics = encoding.opened(words, 2)
    expected = np.mean([each.update for each in given], axis=0)
    assert np.abs(mean - expected).max() < 0.05 * np.abs(expected).max()
    assert metrics["eval_examples"] == 8
    total = sum(each.metrics["eval_error"] for each in given)
    assert metrics["eval_error"] == pytest.approx(total, abs=2 / 2**16)
    assert 0 < plan.task.quality_of(metrics) < 1


PAIR = Regression(kind="regression", low=0.0, high=4.0, text="s", text_pair="o", target="t")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"s": "a", "t": 1}', "line 2: the column `o` is missing"),
        ('{"s": "a", "o": 3, "t": 1}', "line 2: column `o` holds a number, not text"),
        ('{"s": "a", "o": " ", "t": 1}', "line 2: column `o` is empty"),
        ('{"s": "", "o": "b", "t": 1}', "line 2: column `s` is empty"),
        ('{"s": "a", "o": "b", "t": 5}', "line 2: column `t` holds '5'"),
    ],
)
def test_a_pair_that_does_not_fit_is_named(tmp_path: Path, row: str, fault: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"s": "a", "o": "b", "t": 1}\n' + row + "\n")
    with pytest.raises(DataError) as caught:
        load_rows(path, PAIR)
    assert fault in caught.value.cause


def test_pairs_from_any_form(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"o": "b", "t": 1, "s": "a"}\n')
    (tmp_path / "a.csv").write_text("o,s,t\nb,a,1\n")
    pq.write_table(pa.table({"t": [1], "o": ["b"], "s": ["a"]}), tmp_path / "a.parquet")
    for path in sorted(tmp_path.iterdir()):
        rows = load_rows(path, PAIR)
        assert (rows.texts, rows.targets) == ([("a", "b")], [0.25]), path


def test_rows_are_dealt_out_by_tenths_of_their_values() -> None:
    values = [float(n) for n in range(100)]
    parts = strata(values)
    assert {part: parts.count(part) for part in set(parts)} == {f"{n:02d}": 10 for n in range(10)}
    assert parts == sorted(parts)
    assert len(set(strata([1.0] * 50 + [2.0]))) == 2
