"""What training a decoder takes of memory: chosen by a limit, and measured in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.programs.folder import make_program
from base_model.programs.footprint import (
    MIB,
    WAYS,
    Keep,
    Way,
    step_bytes,
    training_bytes,
    way_of,
)
from base_model.verify import verify_base
from client.batches import Encoded
from client.engine.onnx_engine import OnnxEngine
from client.training import train
from protocol.decoder_manifest import DecoderManifest
from protocol.errors import PlanError
from protocol.legality import check
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from tests.unit.base_model.decoder.models import write_decoder

LONGEST = 256
SIZES = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536}
SIZES |= {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}


def base_at(folder: Path, family: str, **sizes: int) -> Path:
    source = write_decoder(folder / "source", family, **sizes)
    build_decoder(decoder_source(str(source)), bits=4, out=folder / "base")
    return folder / "base"


def plan_on(manifest: DecoderManifest, memory: int) -> Plan:
    targets = sorted({linear.path.rpartition(".")[2] for linear in manifest.linears})
    document = {
        "format": 2,
        "name": "memory",
        "rounds": 1,
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "causal-lm", "form": "text", "max_length": LONGEST},
        "adapter": {"method": "lora", "rank": 8, "targets": targets},
        "rule": {"name": "mean"},  # trains all tensors at once: no round takes more
        "local": {"memory": memory, "batch_size": 8, "max_steps": 2},
    }
    return plan_from(document, source="plan.toml")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_at(tmp_path_factory.mktemp("small"), "llama")


@pytest.fixture(scope="module")
def manifest(base: Path) -> DecoderManifest:
    manifest = verify_base(base)
    assert isinstance(manifest, DecoderManifest)
    return manifest


@given(tokens=st.integers(1, 4096), longest=st.integers(1, 2048), adapter=st.integers(1, 10**8))
def test_who_keeps_less_takes_less(
    manifest: DecoderManifest, tokens: int, longest: int, adapter: int
) -> None:
    sizes = [
        step_bytes(manifest, Way(keep=keep, tokens=tokens), longest=longest, adapter=adapter)
        for keep in Keep
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@given(memory=st.integers(1, 1024))
def test_a_limit_is_obeyed_by_the_first_way_that_does(
    manifest: DecoderManifest, memory: int
) -> None:
    recipe = Recipe(plan=plan_on(manifest, memory), manifest=manifest)
    fit = [way for way in WAYS if training_bytes(recipe, manifest, way) <= memory * MIB]
    if fit:
        assert way_of(recipe) == fit[0]
    else:
        with pytest.raises(PlanError, match=rf"local\.memory = {memory} MiB: .* at least"):
            way_of(recipe)


def test_the_least_that_a_refusal_names_is_enough(manifest: DecoderManifest) -> None:
    with pytest.raises(PlanError) as refused:
        way_of(Recipe(plan=plan_on(manifest, 1), manifest=manifest))
    least = int(refused.value.cause.split(" takes ")[1].split()[0])
    assert way_of(Recipe(plan=plan_on(manifest, least), manifest=manifest)) is not None


def test_without_a_limit_nothing_is_computed_twice(manifest: DecoderManifest) -> None:
    assert way_of(Recipe(plan=plan_on(manifest, 0), manifest=manifest)) == WAYS[0]


def test_a_plan_without_a_limit_keeps_its_digest(manifest: DecoderManifest) -> None:
    """Plans from before there was the key are the same plans."""
    assert "memory" not in json.loads(plan_on(manifest, 0).render())["local"]
    assert json.loads(plan_on(manifest, 300).render())["local"]["memory"] == 300
    assert plan_on(manifest, 300).digest != plan_on(manifest, 0).digest


@pytest.mark.parametrize("keep", list(Keep))
def test_an_engine_goes_the_way_it_is_told(
    keep: Keep, base: Path, manifest: DecoderManifest
) -> None:
    """It computes as few tokens at a time, and trains to the same adapter."""
    recipe = Recipe(plan=plan_on(manifest, 0), manifest=manifest)
    program = make_program(base, recipe)
    (parts,) = recipe.phases
    ids = np.random.default_rng(0).integers(3, manifest.vocab_size, 8 * 16).astype(np.int32)
    rows = Encoded(
        ids=ids,
        offsets=np.arange(9) * 16,
        targets=np.roll(ids, -1).astype(np.int64),
        pad_id=0,
        by_token=True,
    )

    def trained(way: Way | None) -> npt.NDArray[np.float32]:
        engine = OnnxEngine(program, base, recipe.layout, threads=1, way=way)
        local = recipe.plan.local
        done = train(engine, recipe.start(), rows, local=local, parts=parts, seed=0)
        return recipe.layout.flatten(done.tensors)

    whole = trained(None)
    for tokens in (512, 32):
        moved = trained(Way(keep=keep, tokens=tokens))
        np.testing.assert_allclose(moved, whole, rtol=1e-3, atol=1e-5)


def test_a_limit_that_bounds_nothing_is_noted(manifest: DecoderManifest) -> None:
    plan = plan_on(manifest, 4096)
    assert "local.memory" not in {finding.field for finding in check(plan, manifest)}
    torch = plan.model_copy(update={"local": plan.local.model_copy(update={"engine": "torch"})})
    assert "local.memory" in {finding.field for finding in check(torch, manifest)}


CHILD = """
import sys
from pathlib import Path

import numpy as np

from client.batches import Encoded
from client.engine.choice import engine_for
from client.opened_base import opened_base
from client.training import train
from protocol.plan import plan_from_text
from protocol.recipe import Recipe

base, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
plan = plan_from_text(text, source="plan.json")
opened = opened_base(plan, base)
recipe = Recipe(plan=plan, manifest=opened.manifest)
length = plan.task.max_length
ids = np.random.default_rng(0).integers(3, opened.manifest.vocab_size, 8 * length).astype(np.int32)
targets = np.roll(ids, -1).astype(np.int64)
rows = Encoded(ids=ids, offsets=np.arange(9) * length, targets=targets, pad_id=0, by_token=True)
engine = engine_for(recipe, opened, threads=1, programs=base.parent)
(parts, *_) = recipe.phases
train(engine, recipe.start(), rows, local=plan.local, parts=parts, seed=0)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it says what a process takes")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_forecast_is_a_fifth_from_what_a_client_takes(family: str, tmp_path: Path) -> None:
    base = base_at(tmp_path, family, **SIZES)
    manifest = verify_base(base)
    assert isinstance(manifest, DecoderManifest)
    for way in (WAYS[0], WAYS[1], WAYS[3], WAYS[4]):
        recipe = Recipe(plan=plan_on(manifest, 0), manifest=manifest)
        memory = -(-training_bytes(recipe, manifest, way) // MIB)
        recipe = Recipe(plan=plan_on(manifest, memory), manifest=manifest)
        chosen = way_of(recipe)
        assert chosen is not None
        (tmp_path / "plan.json").write_text(recipe.plan.render())
        command = [sys.executable, "-c", CHILD, str(base), str(tmp_path / "plan.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = int(done.stdout.splitlines()[-1])
        forecast = training_bytes(recipe, manifest, chosen)
        assert taken == pytest.approx(forecast, rel=0.2), (way, taken // MIB, forecast // MIB)
        assert taken <= 1.05 * memory * MIB, (way, taken // MIB, memory)
