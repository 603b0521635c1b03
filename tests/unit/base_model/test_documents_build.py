"""Bases of documents against transformers' own model, and sources that are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoTokenizer, LayoutLMForSequenceClassification, LayoutLMModel
from typer.testing import CliRunner

from base_model.build import build_base
from base_model.commands import app
from base_model.families import FAMILIES, REFUSED_OF_DOCUMENTS
from base_model.media_read import task_of_folder
from base_model.programs.checks import OPERATORS
from base_model.programs.folder import make_program
from base_model.slot_check import verify_slots
from base_model.source import load_source
from base_model.store import open_base
from base_model.verify import open_tokenizer, read_manifest, verify_base
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, PlanError
from protocol.manifest import DOCUMENTS, Manifest, parse_manifest
from protocol.recipe import Recipe
from protocol.rows.pages import FIRST, LAST, page_encodings, page_feeds
from tests.page_models import LABELS, pages, write_pages_source
from tests.tiers import one_by_default
from tests.unit.client.test_pages import plan_of


@pytest.fixture(scope="module")
def source(tiny_pages: Path) -> Path:
    """What ``tiny_pages`` was built from."""
    return tiny_pages.parent / "source"


def as_transformers(source: Path, several: Any) -> dict[str, torch.Tensor]:
    """What the documentation of transformers' LayoutLM does, page by page: word by word, then the two edges."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids, boxes = [], []
    for page in several:
        pieces = [tokenizer.tokenize(word) for word in page.words]
        tokens = [piece for word in pieces for piece in word]
        ids.append([2, *tokenizer.convert_tokens_to_ids(tokens), 3])
        inner = [list(box) for box, word in zip(page.boxes, pieces, strict=True) for _ in word]
        boxes.append([[0, 0, 0, 0], *inner, [1000, 1000, 1000, 1000]])
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in ids]),
        "bbox": torch.tensor([row + [[0] * 4] * (longest - len(row)) for row in boxes]),
    }


@pytest.mark.parametrize("bits", one_by_default(4, (4, 8, 16, 32)))
def test_a_base_answers_as_transformers_own_class(
    tiny_pages: Path, source: Path, tmp_path: Path, bits: int
) -> None:
    """With the source's head and its labels' names, on the values that the codes stand for."""
    base = tiny_pages if bits == 4 else tmp_path / "base"
    if bits != 4:
        build_base(str(source), task=DOCUMENTS, bits=bits, out=base, scales=True)
    manifest = verify_base(base)
    assert isinstance(manifest, Manifest)
    assert (manifest.boxed, manifest.pooling, manifest.family) == (True, "pooler", "layoutlm")
    assert manifest.graph.inputs == ["input_ids", "attention_mask", "bbox"]
    verify_slots(base, manifest)
    own = LayoutLMForSequenceClassification.from_pretrained(source).eval()
    opened = open_base(base)
    for linear in manifest.linears:
        weight = opened.model.get_submodule(linear.path).weight
        own.get_submodule(linear.path).weight.data = torch.as_tensor(weight).detach().clone()
    several = pages(8)
    inputs = as_transformers(source, several)
    with torch.no_grad():
        expected = own(**inputs).logits.numpy()
        found = opened.model(**inputs).logits.numpy()
        nowhere = own(**inputs | {"bbox": torch.zeros_like(inputs["bbox"])}).logits.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(nowhere - expected).max() > 0.1 * np.abs(expected).max()  # places matter
    runtime = EdgeRuntime(EdgeBase.open(base, threads=1))
    answers = runtime.logits(several)
    assert np.abs(answers - expected).max() <= 1e-4 * np.abs(expected).max()
    said = [answer.answer for answer in runtime.infer(several)]
    assert said == [LABELS[index] for index in expected.argmax(-1)]
    assert len(set(said)) > 1


def test_tokens_stand_where_transformers_puts_them(tiny_pages: Path, source: Path) -> None:
    several = pages(6)
    tokenizer = open_tokenizer(tiny_pages)
    feeds = page_feeds(page_encodings(tokenizer, several), several)
    for name, expected in as_transformers(source, several).items():
        assert np.array_equal(feeds[name], expected.numpy()), name
    assert {tuple(box) for box in feeds["bbox"][:, 0]} == {FIRST}
    tokenizer.enable_truncation(5)
    cut = page_feeds(page_encodings(tokenizer, several), several)["bbox"]
    assert cut.shape[1] == 5
    assert tuple(cut[int(np.argmax([len(page.words) for page in several])), 4]) == LAST


def test_the_graph_has_operators_of_programs_alone(tiny_pages: Path) -> None:
    graph = onnx.load(str(tiny_pages / "graph.onnx")).graph
    assert {(node.domain, node.op_type) for node in graph.node} <= OPERATORS
    assert [v.name for v in graph.input if v.name not in {i.name for i in graph.initializer}] == [
        *("input_ids", "attention_mask", "bbox")
    ]


def test_a_program_holds_no_tables_of_its_own(tiny_pages: Path) -> None:
    recipe = Recipe(plan=plan_of(tiny_pages), manifest=read_manifest(tiny_pages))
    for data in make_program(tiny_pages, recipe).graphs.values():
        held = onnx.load_model_from_string(data).graph.initializer
        outside = {t.name for t in held if t.data_location == onnx.TensorProto.EXTERNAL}
        assert len([name for name in outside if "_position_embeddings" in name]) == 4
        assert max(len(t.raw_data) for t in held if t.name not in outside) < 1024


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_alone_pools_as_asked(tmp_path: Path, pooling: str) -> None:
    source = write_pages_source(tmp_path / "source", head="other")
    out = tmp_path / "base"
    build_base(str(source), task=DOCUMENTS, bits=32, out=out, pooling=pooling)
    opened = open_base(out)
    assert not [name for name, _ in opened.model.named_parameters() if "pooler" in name]
    inputs = as_transformers(source, pages(3))
    own = LayoutLMModel.from_pretrained(source).eval()
    with torch.no_grad():
        hidden = own(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        expected = (hidden * mask).sum(1) / mask.sum(1) if pooling == "mean" else hidden[:, 0]
        found = opened.model.features(
            inputs["input_ids"], inputs["attention_mask"], boxes=inputs["bbox"]
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["", "other"])
def test_other_heads_are_left_out(tmp_path: Path, head: str) -> None:
    loaded = load_source(
        str(write_pages_source(tmp_path / "source", head=head)), pooling="auto", task=DOCUMENTS
    )
    assert (loaded.labels, loaded.pooling) == (None, "pooler")
    assert {name.split(".")[0] for name in loaded.tensors} == {"layoutlm"}


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"hidden_size": None}, "does not say `hidden_size`"),
        ({"max_2d_position_embeddings": 1000}, "is 1000, and boxes go up to 1000"),
        ({"max_2d_position_embeddings": 1024}, "by config.json"),
        ({"model_type": "bert"}, "does not read where words stand"),
        ({"model_type": "vit"}, "reads images, and a base that sorts documents"),
        *(({"model_type": name}, reason) for name, reason in REFUSED_OF_DOCUMENTS.items()),
        ({"auto_map": {"AutoModel": "x"}}, "code of its own"),
        ({"num_hidden_layers": 3}, "the checkpoint lacks layoutlm.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "for which its config.json has no place"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(
    source: Path, tmp_path: Path, fields: dict[str, Any], cause: str
) -> None:
    copied = shutil.copytree(source, tmp_path / "source")
    path = copied / "config.json"
    document = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    with pytest.raises(ArtefactError) as caught:
        build_base(str(copied), task=DOCUMENTS, bits=4, out=tmp_path / "base")
    assert cause in caught.value.cause
    assert "layoutlm" in caught.value.remedy or "model_type" not in fields or "vit" in str(fields)


def test_texts_are_not_read_as_documents_nor_documents_as_texts(
    source: Path, tiny_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="reads where words stand on a page") as caught:
        build_base(str(source), task="sequence-classification", bits=4, out=tmp_path / "base")
    assert "--task document-classification" in caught.value.remedy
    assert "layoutlm" not in caught.value.remedy
    with pytest.raises(ArtefactError, match="does not read where words stand"):
        build_base(str(tiny_source), task=DOCUMENTS, bits=4, out=tmp_path / "base")
    with pytest.raises(PlanError, match="is not built here"):
        build_base(str(source), task="causal-lm", bits=4, out=tmp_path / "base")


def test_a_manifest_that_is_changed_is_refused(tiny_pages: Path, tiny_base: Path) -> None:
    def refused(base: Path, change: Callable[[dict[str, Any]], Any]) -> str:
        document = json.loads((base / "manifest.json").read_text())
        change(document)
        with pytest.raises(ArtefactError) as caught:
            parse_manifest(json.dumps(document), source="m")
        return caught.value.cause

    texts, inputs = "sequence-classification", ["input_ids", "attention_mask"]
    assert "reads `bbox`" in refused(tiny_pages, lambda d: d.update(task=texts))
    assert "does not read `bbox`" in refused(tiny_pages, lambda d: d["graph"].update(inputs=inputs))
    assert "does not read `bbox`" in refused(tiny_base, lambda d: d.update(task=DOCUMENTS))

    def as_texts(document: dict[str, Any]) -> None:  # the fingerprint says that boxes are read
        document["task"] = texts
        document["graph"]["inputs"] = inputs

    assert "fingerprint" in refused(tiny_pages, as_texts)
    assert "fingerprint" in refused(tiny_pages, lambda d: d.update(pooling="mean"))
    images = refused(tiny_pages, lambda d: d.update(task="image-classification"))
    assert "sorts images" in images


def test_a_graph_of_other_boxes_is_no_bases(tiny_pages: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pages, tmp_path / "base")
    model = onnx.load(str(folder / "graph.onnx"))
    box = next(value for value in model.graph.input if value.name == "bbox")
    box.type.tensor_type.shape.dim[2].dim_param = "edges"
    onnx.save(model, str(folder / "graph.onnx"))
    document = json.loads((folder / "manifest.json").read_text())
    data = (folder / "graph.onnx").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    document["files"]["graph.onnx"] = entry  # whoever publishes a base writes both
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match="the graph does not read `bbox` of four numbers"):
        EdgeBase.open(folder, threads=1)


def test_a_folder_says_what_it_is_for(source: Path, tiny_source: Path) -> None:
    assert task_of_folder(str(source)) == DOCUMENTS
    assert task_of_folder(str(tiny_source)) == ""
    assert [name for name, family in FAMILIES.items() if family.boxed] == ["layoutlm"]


@pytest.mark.slow
def test_the_command_sees_what_a_folder_holds(source: Path, tmp_path: Path) -> None:
    arguments = ["build", str(source), "--out", str(tmp_path / "base"), "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["task"] == DOCUMENTS
