"""Pages on a device: files, rows, requests and probes; what is none is the asker's fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_runtime.backends.encoder import open_encoder
from edge_runtime.base import EdgeBase
from edge_runtime.bench import bench
from edge_runtime.commands import app as commands
from edge_runtime.http_server import App
from edge_runtime.label_vectors import label_vectors
from edge_runtime.probe import read_probe
from edge_runtime.single import SingleService
from protocol.errors import ArtefactError, DataError, PlanError
from tests.asgi import asked
from tests.page_models import pages, row_of


def page(seed: int = 0) -> dict[str, Any]:
    """As a request has it."""
    return {k: v for k, v in row_of(pages(1, seed=seed)[0], "").items() if k != "label"}


def test_pages_are_answered_of_files_and_of_rows(tiny_pages: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(page(1)))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(page(seed)) + "\n" for seed in (1, 2)))
    arguments = ["infer", str(tmp_path / "a.json"), "--base", str(tiny_pages)]
    arguments += ["--file", str(rows)]
    done = CliRunner().invoke(commands, [*arguments, "--json"], catch_exceptions=False)
    said = json.loads(done.stdout)
    assert [row["page"] for row in said] == [
        *(str(tmp_path / "a.json"), f"{rows}: line 1", f"{rows}: line 2")
    ]
    assert said[0]["label"] == said[1]["label"]
    assert said[0]["score"] == pytest.approx(said[1]["score"], rel=1e-5)
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert "page" in done.stdout
    for odd, reason in (
        (["--pair-column", "x"], "a page has no second text"),
        (["--column", "x"], "of the columns `words` and `boxes`"),
    ):
        with pytest.raises(DataError, match=reason):
            CliRunner().invoke(commands, [*arguments, *odd], catch_exceptions=False)


def test_requests_have_words_and_boxes(
    tiny_pages: Path, tiny_base: Path, tiny_sounds: Path
) -> None:
    app = App(SingleService(tiny_pages, None, threads=1))
    status, document = asked(app, {"pages": [page(1), page(2)]})
    assert (status, len(document["answers"])) == (200, 2)
    moved = page(1) | {"boxes": [[0, 0, 0, 0]] * len(page(1)["words"])}
    _, elsewhere = asked(app, {"pages": [moved]})
    assert elsewhere["answers"][0]["score"] != document["answers"][0]["score"]
    box = [1, 2, 3, 4]
    for question, reason in (
        ({"pages": []}, "pages"),
        ({"pages": [page()] * 65}, "pages"),
        ({"pages": [{"words": ["a"]}]}, "boxes"),
        ({"pages": [page() | {"label": "secret"}]}, "label"),
        ({"pages": [{"words": ["a"] * 4097, "boxes": [box] * 4097}]}, "words"),
        ({"pages": [page(), {"words": ["secret"], "boxes": [box] * 2}]}, "page 2: 1 `words` and 2"),
        (
            {"pages": [{"words": ["secret" * 200], "boxes": [box]}]},
            "page 1: `words`: word 1 has 1200",
        ),
        ({"pages": [{"words": ["a"], "boxes": [[0, 0, 1001, 0]]}]}, "box 1 is not four"),
        ({"pages": [{"words": ["a"], "boxes": [[5, 0, 1, 0]]}]}, "box 1 ends before it begins"),
        ({"pages": [{"words": [" "], "boxes": [box]}]}, "word 1 is empty"),
        ({"pages": [{"words": ["a"], "boxes": [[1.5, 0, 1, 0]]}]}, "boxes"),
        ({"pages": [page()], "texts": ["a"]}, "or pages"),
        ({"pages": [page()], "text_pairs": ["a"]}, "text_pairs"),
        ({"texts": ["a"]}, "answers pages of words with their boxes"),
        ({"images": ["AAAA"]}, "answers pages of words with their boxes"),
    ):
        status, document = asked(app, question)
        assert status == 422
        assert reason in json.dumps(document)
        assert "secret" not in json.dumps(document)
    for base, reason in (
        (tiny_base, "answers texts, and files or pages were given"),
        (tiny_sounds, "answers sounds, and documents were given"),
    ):
        status, document = asked(App(SingleService(base, None, threads=1)), {"pages": [page()]})
        assert status == 422
        assert reason in json.dumps(document)


def test_a_probe_has_pages_of_its_own_or_of_a_file(tiny_pages: Path, tmp_path: Path) -> None:
    path, limits = (
        tmp_path / "probe.json",
        {"least_correct": 1, "most_latency_ms": 500, "most_memory_mb": 500},
    )
    rows = [page(seed) | {"label": "bill"} for seed in (1, 2)]
    path.write_text(json.dumps({"rows": rows} | limits))
    inline = read_probe(path)
    named = [{"tokens" if k == "words" else k: v for k, v in row.items()} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    path.write_text(json.dumps({"rows": {"file": "rows.jsonl", "words": "tokens"}} | limits))
    assert read_probe(path) == inline
    backend = open_encoder(tiny_pages, threads=1)
    assert list(backend.questions(inline)) == [*pages(1, seed=1), *pages(1, seed=2)]
    for written, reason in (
        ([{"words": ["a"], "label": "b"}], "belong together"),
        ([{"boxes": [[0, 0, 0, 0]], "text": "a", "label": "b"}], "belong together"),
        ([{"words": ["a"], "boxes": [[5, 0, 1, 0]], "label": "b"}], "ends before it begins"),
        ([page() | {"value": 1.0}], "has a label"),
        ([page() | {"contains": "x"}], "has a label"),
        ([page() | {"text": "a", "label": "b"}], "or words"),
        ([page() | {"label": "b"}, {"text": "a", "label": "b"}], "files or pages and some"),
        ([page() | {"text_pair": "a", "label": "b"}], "no second text"),
        ({"file": "rows.jsonl", "words": "tokens", "text": "x"}, "of words or of texts"),
    ):
        path.write_text(json.dumps({"rows": written} | limits))
        with pytest.raises(ArtefactError, match=reason):
            read_probe(path)
    path.write_text(json.dumps({"rows": {"file": "rows.jsonl", "words": "words"}} | limits))
    with pytest.raises(DataError, match="the column `words` is missing"):
        read_probe(path)


def test_a_probe_of_texts_is_the_devices_own_fault(tiny_pages: Path, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    limits = {"least_correct": 1, "most_latency_ms": 500, "most_memory_mb": 500}
    path.write_text(json.dumps({"rows": [{"text": "secret", "label": "b"}]} | limits))
    with pytest.raises(DataError, match="answers pages of words") as caught:
        open_encoder(tiny_pages, threads=1).questions(read_probe(path))
    assert "secret" not in str(caught.value)


def test_what_is_of_texts_alone_is_refused(tiny_pages: Path) -> None:
    with pytest.raises(PlanError, match="the base reads documents, and names of labels are texts"):
        label_vectors(EdgeBase.open(tiny_pages, threads=1), ["a", "b"])


def test_what_an_adapter_costs_is_measured_of_pages_too(tiny_pages: Path) -> None:
    timings = bench(tiny_pages, None, batch=2, length=9, repeats=1, threads=1).timings
    assert [timing.name for timing in timings] == ["adapter off", "adapter on"]
