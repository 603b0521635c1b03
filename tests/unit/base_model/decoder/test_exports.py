"""A released adapter for other runtimes: what is written, and what is not written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base_model.decoder.build import build_decoder
from base_model.decoder.exports import export_genai, export_gguf
from base_model.decoder.sources import decoder_source
from base_model.gguf.container import read_container
from base_model.peft_folder import published_of
from base_model.verify import read_manifest
from edge_runtime.adapter import read_tensors
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.peft_format import (
    EDGE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    parse_release,
    render_release,
    to_edge,
)
from protocol.plan import plan_from
from protocol.recipe import Recipe
from server.peft_folder import write_peft_folder
from tests.unit.base_model.decoder.models import write_decoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    out = folder / "base"
    build_decoder(
        decoder_source(str(write_decoder(folder / "source"))), bits=4, out=out, calibration=None
    )
    return out


LORA = {"rank": 2, "alpha": 6.0, "targets": ["q_proj", "up_proj"]}


def released(
    folder: Path, base: Path, adapter: dict[str, Any] | None = None
) -> tuple[Path, Tensors]:
    """An adapter's folder as a release leaves it, and its tensors; ``adapter`` is the plan's table."""
    manifest = read_manifest(base)
    document = {
        "name": "t",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "causal-lm"},
        "adapter": adapter or LORA,
    }
    recipe = Recipe(plan=plan_from(document, source="test"), manifest=manifest)
    rng = np.random.default_rng(0)
    tensors = {
        spec.name: rng.normal(0, 0.1, spec.shape).astype(np.float32) for spec in recipe.layout.specs
    }
    path = folder / "adapter"
    write_peft_folder(
        path,
        tensors,
        recipe=recipe,
        round_number=1,
        adapter_digest="0" * 64,
        exchange="secagg",
        secure=True,
        metrics={},
    )
    slots = to_edge(recipe.published(tensors), published=published_of(path))
    write_edge_adapter(slots, path / EDGE_FILE)
    note = parse_release((path / RELEASE_FILE).read_text("utf-8"), source="test")
    digest = hashlib.sha256((path / EDGE_FILE).read_bytes()).hexdigest()
    note = note.model_copy(update={"files": note.files | {EDGE_FILE: digest}})
    (path / RELEASE_FILE).write_bytes(render_release(note))
    return path, tensors


def test_llama_cpp_gets_the_factors_of_the_release(base: Path, tmp_path: Path) -> None:
    adapter, tensors = released(tmp_path, base)
    export_gguf(adapter, base, tmp_path / "a.gguf")
    container = read_container(tmp_path / "a.gguf")
    assert container.keys["adapter.lora.alpha"] == pytest.approx(6.0)
    assert container.keys["general.architecture"] == "llama"
    assert len(container.tensors) == len(tensors)
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_up.weight.lora_b"} <= set(container.tensors)


def test_onnxruntime_genai_gets_the_graph_and_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter, _ = released(tmp_path, base)
    out = tmp_path / "genai"
    export_genai(adapter, base, out)
    manifest = read_manifest(base)
    assert isinstance(manifest, DecoderManifest)
    inputs, tensors = (read_tensors(folder / EDGE_FILE, source="test") for folder in (out, adapter))
    expected = manifest.inputs_of(tensors)
    assert inputs.keys() == expected.keys() != tensors.keys()
    assert all((value == expected[name]).all() for name, value in inputs.items())
    config = json.loads((out / "genai_config.json").read_text("utf-8"))
    decoder = config["model"]["decoder"]
    assert (out / decoder["filename"]).read_bytes() == (base / manifest.graph.file).read_bytes()
    assert config["model"]["vocab_size"] == manifest.vocab_size
    assert decoder["inputs"]["past_key_names"] % 1 == "past_key_values.1.key"


@pytest.mark.parametrize("name", [WEIGHTS_FILE, EDGE_FILE])
@pytest.mark.parametrize("export", [export_gguf, export_genai])
def test_nothing_is_written_of_a_release_that_was_changed(
    base: Path, tmp_path: Path, name: str, export: Any
) -> None:
    adapter, _ = released(tmp_path, base)
    data = bytearray((adapter / name).read_bytes())
    data[-5] ^= 1
    (adapter / name).write_bytes(data)
    with pytest.raises(ArtefactError, match=f"{name} is not the file that release.json names"):
        export(adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "export", "says"),
    [
        (LORA | {"method": "loha"}, export_gguf, "is no low-rank factor of a linear"),
        ({"method": "prompt", "tokens": 3}, export_genai, "has a soft prompt"),
    ],
)
def test_what_another_runtime_would_compute_otherwise_is_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any], export: Any, says: str
) -> None:
    adapter, _ = released(tmp_path, base, settings)
    with pytest.raises(ArtefactError, match=says):
        export(adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter, _ = released(tmp_path, base)
    other = tmp_path / "other"
    build_decoder(
        decoder_source(str(write_decoder(tmp_path / "source", seed=7))),
        bits=4,
        out=other,
        calibration=None,
    )
    for export in (export_gguf, export_genai):
        with pytest.raises(ArtefactError, match="belongs to base"):
            export(adapter, other, tmp_path / "out")
