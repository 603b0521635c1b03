"""Which columns of a device's own rows `fedge edge train` reads, by what the release in use answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedge.personal import Request, _task
from protocol.errors import DataError
from protocol.peft_format import ReleaseNote
from protocol.plan_sections import Local
from protocol.tasks.document_classification import DocumentClassification


def note_of(task: str) -> ReleaseNote:
    return ReleaseNote(
        plan_name="p",
        plan_digest="0" * 64,
        base_fingerprint="0" * 64,
        round=1,
        adapter_digest="0" * 64,
        task=task,
        labels=["bill", "letter"],
        max_length=0 if task == "image-classification" else 16,
        exchange="plain",
        files={},
        metrics={},
    )


def request(text: str | None = None, boxes: str = "") -> Request:
    rows = Path("rows.jsonl")
    return Request(
        data=rows, text=text, pair="", boxes=boxes, column="", local=Local(), holdout=None
    )


def test_words_and_boxes_stand_where_the_user_says() -> None:
    note = note_of("document-classification")
    for asked, expected in (
        (request(), ("words", "boxes")),
        (request("tokens", "bboxes"), ("tokens", "bboxes")),
    ):
        task = _task(note, asked)
        assert isinstance(task, DocumentClassification)
        assert (task.words, task.boxes, task.label, task.max_length) == (*expected, "label", 16)


@pytest.mark.parametrize("task", ["classification", "image-classification"])
def test_boxes_are_of_documents_alone(task: str) -> None:
    with pytest.raises(DataError, match="answers no documents"):
        _task(note_of(task), request(boxes="boxes"))
