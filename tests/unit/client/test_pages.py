"""A client's pages: errors that name file and line, boxes in batches, gradients by both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.verify import read_manifest
from client.batches import Encoded
from client.data import load_rows
from client.rows_cache import RowsCache
from client.worker import Worker
from fedge.checks import Assumed, check_plan
from protocol.errors import DataError, PlanError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from protocol.rows.pages import FIRST, LAST
from protocol.tasks.document_classification import DocumentClassification
from tests.methods import SORTING, adapter_of, rule_of
from tests.page_models import LABELS, pages, row_of
from tests.tiers import one_by_default

SIDE_BY_SIDE = {
    "method": "hybrid",
    "members": [{"method": "lora", "rank": 2, "alpha": 4.0}, adapter_of("prompt")],
}
TASK = {"kind": "document-classification", "labels": LABELS, "max_length": 16}


def plan_of(base: Path, method: str = "lora", **sections: Any) -> Plan:
    document = {
        "name": "documents",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": TASK,
        "adapter": SIDE_BY_SIDE if method == "hybrid" else adapter_of(method, targets="all-linear"),
        "rule": {"name": rule_of(method)},
    }
    return plan_from(document | sections, source="test")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row_of(page, LABELS[at % 4]) for at, page in enumerate(pages(8))]
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def worker(tiny_pages: Path) -> Worker:
    return Worker(plan_of(tiny_pages), tiny_pages, threads=1)


def test_rows_become_tokens_with_boxes(worker: Worker, rows_file: Path) -> None:
    encoded = worker.encode(load_rows(rows_file, worker.plan.task))
    assert isinstance(encoded, Encoded)
    assert encoded.boxes is not None
    assert (encoded.boxes.shape, encoded.boxes.dtype) == ((len(encoded.ids), 4), np.int16)
    assert encoded.held == 3 * len(encoded.ids)
    assert encoded.targets.tolist() == [0, 1, 2, 3] * 2
    batch = encoded.take(np.array([5, 2])).batch(np.array([1, 0]))
    boxes, mask = batch.inputs["bbox"], batch.inputs["attention_mask"]
    assert (boxes.dtype, boxes.shape) == (np.int64, (*mask.shape, 4))
    for row, (where, page) in enumerate(zip((2, 5), (pages(8)[2], pages(8)[5]), strict=True)):
        length = int(mask[row].sum())
        assert length == encoded.lengths[where] <= 16
        assert [tuple(box) for box in boxes[row, [0, length - 1]]] == [FIRST, LAST]
        assert {tuple(box) for box in boxes[row, 1 : length - 1].tolist()} <= set(page.boxes)
        assert not boxes[row, length:].any()


@pytest.mark.parametrize("method", one_by_default("prompt", SORTING))
def test_gradients_are_torchs(tiny_pages: Path, rows_file: Path, method: str) -> None:
    """Loss, every gradient and the outputs, 1e-4 of the largest, by peft on transformers' model."""
    onnx = Worker(plan_of(tiny_pages, method), tiny_pages, threads=1)
    torch = Worker(plan_of(tiny_pages, method, local={"engine": "torch"}), tiny_pages, threads=1)
    rng, start = np.random.default_rng(0), dict(onnx.recipe.start())
    for spec in onnx.recipe.layout.specs:  # of a start of zeros, half the gradients are
        start[spec.name] = start[spec.name] + rng.normal(0, 0.05, spec.shape).astype(np.float32)
    encoded = onnx.encode(load_rows(rows_file, onnx.plan.task))
    batch = encoded.batch(np.arange(6))
    for parts in onnx.recipe.phases:
        loss, ours = onnx.engine.gradients(start, batch, parts)
        expected, theirs = torch.engine.gradients(start, batch, parts)
        assert loss == pytest.approx(expected, rel=1e-4)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert np.abs(value).max() > 0
            assert np.abs(ours[name] - value).max() <= 1e-4 * np.abs(value).max(), name
    outputs = torch.engine.outputs(start, batch)
    assert np.abs(onnx.engine.outputs(start, batch) - outputs).max() <= 1e-4 * np.abs(outputs).max()


def test_a_page_that_is_none_is_named_by_line(worker: Worker, tmp_path: Path) -> None:
    """The columns are the plan's; nothing of a page is told."""
    good, odd = (row_of(page, "bill") for page in pages(2))
    odd["words"][0] = "secret"
    odd["boxes"][0] = [0, 0, 1001, 5]
    path = write_rows(tmp_path / "rows.jsonl", [good, odd])
    with pytest.raises(DataError) as caught:
        load_rows(path, worker.plan.task)
    assert caught.value.cause == (
        f"{path}: line 2: `boxes`: box 1 is not four whole numbers from 0 to 1000"
    )
    assert "secret" not in str(caught.value)
    assert str(tmp_path) not in caught.value.public
    task = worker.plan.task.model_copy(update={"words": "tokens"})
    with pytest.raises(DataError, match="the column `tokens` is missing"):
        load_rows(path, task)


def test_a_csv_holds_no_pages(worker: Worker, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('words,boxes,label\n"[""a""]","[[0,0,1,1]]",bill\n')
    with pytest.raises(DataError, match="line 2: `words` holds a string, not a list") as caught:
        load_rows(path, worker.plan.task)
    assert "JSONL" in caught.value.remedy


def test_pages_lie_in_parquet_too(worker: Worker, rows_file: Path, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    task = worker.plan.task
    assert load_rows(tmp_path / "rows.parquet", task) == load_rows(rows_file, task)


def test_a_row_is_written_as_it_is_read(worker: Worker, rows_file: Path, tmp_path: Path) -> None:
    table = worker.plan.task.rows(rows_file)
    lines = [worker.plan.task.line(*row) for row in zip(table.texts, table.targets, strict=True)]
    assert worker.plan.task.rows(write_rows(tmp_path / "again.jsonl", lines)) == table


def test_what_is_kept_of_pages_is_counted(worker: Worker, rows_file: Path) -> None:
    cache = RowsCache()
    first = cache.get(rows_file, worker)
    assert cache.get(rows_file, worker) is first
    assert cache._tokens == first.held == 3 * first.lengths.sum()


def test_every_method_of_texts_is_legal(tiny_pages: Path) -> None:
    for method in SORTING:
        plan = plan_of(tiny_pages, method)
        assert not [f for f in check(plan, read_manifest(tiny_pages)) if f.severity == "error"]
    plan = plan_of(tiny_pages, adapter={"method": "prompt", "tokens": 60})
    with pytest.raises(PlanError, match="exceed the base's 64 positions"):
        Worker(plan, tiny_pages)


def test_a_task_of_another_base_is_refused(tiny_pages: Path, tiny_base: Path) -> None:
    for task in ({"labels": LABELS}, {"kind": "image-classification", "labels": LABELS}):
        with pytest.raises(PlanError, match="built for document-classification"):
            Worker(plan_of(tiny_pages, task=task), tiny_pages)
    with pytest.raises(PlanError, match="needs document-classification"):
        Worker(plan_of(tiny_base), tiny_base)


def test_steps_of_a_plan_are_timed_on_invented_pages(tiny_pages: Path) -> None:
    plan = plan_of(tiny_pages, local={"batch_size": 2})
    assumed = Assumed(rows=10, tokens=8, speed=1000)
    checked = check_plan(plan, read_manifest(tiny_pages), assumed, tiny_pages, measure=True)
    assert checked.pace is not None


def test_what_a_plan_says_of_documents() -> None:
    def refused(odd: dict[str, Any]) -> str:
        document = {"name": "x", "base": {"fingerprint": "0" * 64}, "task": TASK | odd}
        with pytest.raises(PlanError) as caught:
            plan_from(document, source="test")
        return str(caught.value)

    assert "three columns" in refused({"words": "label"})
    assert "three columns" in refused({"boxes": "words"})
    assert "text_pair" in refused({"text_pair": "x"})
    for name in ("document", "layout"):
        assert "document-classification" in refused({"kind": name})
    task = DocumentClassification.model_validate(TASK)
    assert task.note() == {
        **{"task": "document-classification", "pairs": False, "max_length": 16, "labels": LABELS}
    }
