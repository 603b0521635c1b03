"""PEFT folders, releases and manifests of strangers: what would be read wrongly is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from base_model.verify import read_manifest
from protocol.errors import ArtefactError
from protocol.manifest import Manifest, parse_manifest
from protocol.peft_format import parse_release, published_as

LORA: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0}


def test_what_we_write_is_read() -> None:
    assert published_as(json.dumps(LORA), source="c").constants == {"scaling": 2.0}
    stable = published_as(json.dumps(LORA | {"use_rslora": True}), source="c")
    assert stable.constants == {"scaling": 4.0}
    assert published_as(json.dumps(LORA | {"lora_bias": True}), source="c").method.name == "bias"


@pytest.mark.parametrize(
    "change",
    [
        *({"r": r} for r in (0, -4, True, "4", None, [], 1e-300, 1e31)),
        *({"lora_alpha": alpha} for alpha in (0, -1.0, "8", False, None, 1e308)),
        *({"use_rslora": value} for value in ("false", 1, None)),
        *({"lora_bias": value} for value in ("false", 1)),
        *({"peft_type": kind} for kind in ("OFT", "lora", None, 3, [])),
        *({"use_dora": value} for value in ("true", 1, None)),
        {"alpha_pattern": {"query": 3}},
        {"rank_pattern": {"query": 3}},
    ],
    ids=str,
)
def test_odd_settings_are_refused_by_their_file(change: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=r"^adapter_config\.json: "):
        published_as(json.dumps(LORA | change), source="adapter_config.json")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"r": 4}'])
def test_what_is_no_settings_is_refused(text: str) -> None:
    with pytest.raises(ArtefactError, match=r"^c: "):
        published_as(text, source="c")


NOTE: dict[str, Any] = {
    "plan_name": "p",
    "plan_digest": "0",
    "base_fingerprint": "0",
    "round": 1,
    "adapter_digest": "0",
    "labels": ["a", "b"],
    "max_length": 16,
    "exchange": "plain",
    "files": {},
    "metrics": {},
}
NUMBER = {"task": "regression", "labels": [], "range": [0.0, 5.0]}


def test_releases_of_both_tasks_are_read() -> None:
    assert parse_release(json.dumps(NOTE), source="n").outputs == 2
    assert parse_release(json.dumps(NOTE | NUMBER), source="n").outputs == 1


@pytest.mark.parametrize(
    "change",
    [
        {"task": "regression"},
        NUMBER | {"task": "classification"},
        NUMBER | {"range": [-1e308, 1e308]},
        NUMBER | {"range": [5.0, 0.0]},
        {"range": [0.0, 5.0]},
    ],
    ids=str,
)
def test_a_release_that_contradicts_its_task_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match=r"^n: "):
        parse_release(json.dumps(NOTE | change), source="n")


@pytest.fixture
def document(tiny_base: Path) -> dict[str, Any]:
    return json.loads(read_manifest(tiny_base).to_json())


@pytest.mark.parametrize("case", ["twice", "symbol", "matrix", "renamed"])
def test_slots_that_no_graph_of_ours_has_are_refused(document: dict[str, Any], case: str) -> None:
    slots = document["graph"]["slots"]
    norm = next(slot for slot in slots if slot["name"].endswith("LayerNorm.scale"))
    changes: dict[str, Any] = {
        "twice": lambda: slots.append(norm),
        "symbol": lambda: norm.update(shape=["n"]),
        "matrix": lambda: norm.update(shape=[1, 2, 3, 4, 5]),
        "renamed": lambda: norm.update(name=".scale", shape=[]),
    }
    assert isinstance(parse_manifest(json.dumps(document), source="m"), Manifest)
    changes[case]()
    with pytest.raises(ArtefactError, match=r"^m: "):
        parse_manifest(json.dumps(document), source="m")
