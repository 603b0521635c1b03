"""What of methods is refused, on which base, and with which reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from base_model.programs.answering import take_out_unfilled
from base_model.release import (
    release_adapter,
)
from base_model.store import GRAPH
from base_model.verify import read_manifest
from client.worker import Worker
from edge_runtime.adapter import check_tensors, load_adapter
from edge_runtime.base import EdgeBase
from protocol.errors import ArtefactError, PlanError
from protocol.forms import BOTTLENECK
from protocol.legality import check
from protocol.manifest import MANIFEST_NAME, FileEntry
from protocol.methods import METHODS, REFUSED
from storage.regular import sha256_of
from tests.contracts.test_methods import plan_of
from tests.methods import SORTING
from tests.tiny_model import TEXTS


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        *REFUSED.items(),
        ("lorra", "did you mean `lora`?"),
        ("zzzz", f"known methods: {', '.join(METHODS)}"),
        ("OFT", "full rank"),
        ("PET", '`places = "embeddings"`'),
        ("HRA", "not there yet"),
        ("LoRA", "did you mean `lora`?"),
    ],
)
def test_another_method_is_refused_with_the_reason_or_the_nearest(
    tiny_base: Path, name: str, remedy: str
) -> None:
    with pytest.raises(PlanError, match=r"`adapter\.method`: there is no method") as refused:
        plan_of(tiny_base, "head", adapter={"method": name})
    assert remedy in refused.value.remedy


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.writes])
def test_a_method_of_bases_that_write_is_refused_for_one_that_sorts(
    tiny_base: Path, name: str
) -> None:
    plan = plan_of(tiny_base, name)
    errors = [f for f in check(plan, read_manifest(tiny_base)) if f.severity == "error"]
    assert [finding.field for finding in errors] == ["adapter.method"]
    assert "only a base that writes text" in errors[0].cause
    with pytest.raises(PlanError, match="only a base that writes text"):
        Worker(plan, tiny_base)


@pytest.mark.slow
def test_a_base_without_scales_is_refused_for_what_fills_them_and_serves_the_others(
    tiny_source: Path, tiny_base: Path, tmp_path: Path
) -> None:
    from base_model.build import build_base

    base = tmp_path / "base"
    build_base(str(tiny_source), task="sequence-classification", bits=4, out=base)
    manifest = read_manifest(base)
    for name in SORTING:
        errors = [f for f in check(plan_of(base, name), manifest) if f.severity == "error"]
        assert [f.field for f in errors] == (["adapter.method"] if METHODS[name].scales else [])
        if METHODS[name].scales:
            assert "--scales" in errors[0].remedy
            with pytest.raises(
                PlanError, match="no scale"
            ) as refused:  # the fingerprint is the same
                Worker(plan_of(base, name), base)
            assert "--scales" in refused.value.remedy
    filled = {
        slot.name: np.ones(slot.shape, np.float32)
        for slot in read_manifest(tiny_base).graph.slots
        if slot.name.endswith("query.scale")
    }
    with pytest.raises(ArtefactError, match="no slot") as unknown:
        check_tensors(filled, EdgeBase.open(base), labels=2, source="a")
    assert "--scales" in unknown.value.remedy


def test_a_base_of_before_is_refused_for_bottlenecks_alone(
    tiny_base: Path, tmp_path: Path, write_adapter: Callable[..., Path]
) -> None:
    """Its graph has no such slots; the fingerprint is the same."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    whole, model = read_manifest(base), onnx.load(str(base / GRAPH))
    kept = [slot for slot in whole.graph.slots if not slot.name.endswith(BOTTLENECK)]
    assert 0 < len(kept) < len(whole.graph.slots)
    take_out_unfilled(model.graph, {slot.name for slot in kept})
    for values in (model.graph.input, model.graph.initializer):
        for value in [value for value in values if value.name.endswith(BOTTLENECK)]:
            values.remove(value)
    onnx.save(model, str(base / GRAPH))
    graph = whole.graph.model_copy(update={"slots": kept})
    entry = FileEntry(sha256=sha256_of(base / GRAPH), bytes=(base / GRAPH).stat().st_size)
    files = whole.files | {GRAPH: entry}
    old = whole.model_copy(update={"graph": graph, "files": files})
    (base / MANIFEST_NAME).write_text(old.to_json())
    manifest = read_manifest(base)
    for name in SORTING:
        errors = [f for f in check(plan_of(base, name), manifest) if f.severity == "error"]
        assert [f.field for f in errors] == (["adapter.method"] if name == "bottleneck" else [])
        assert not errors or "build the base again" in errors[0].remedy
    with pytest.raises(PlanError, match="has no bottleneck_down") as refused:
        Worker(plan_of(base, "bottleneck"), base)
    assert "build the base again" in refused.value.remedy
    folder = write_adapter(tmp_path / "adapter", method="bottleneck")
    release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    with pytest.raises(ArtefactError, match=r"no slot .*bottleneck_") as unknown:
        load_adapter(folder, EdgeBase.open(base))
    assert "as it is built now" in unknown.value.remedy
