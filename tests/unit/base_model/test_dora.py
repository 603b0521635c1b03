"""DoRA beside peft's own, whose magnitudes are whole: on bases with biases, of every width of codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModel

from base_model.build import build_base
from base_model.merged import write_merged
from base_model.parity import Bounds
from base_model.release import release_adapter
from base_model.verify import read_manifest
from edge_runtime.adapter import read_tensors
from protocol.errors import ArtefactError, PlanError
from protocol.frozen_linears import StoredLinears
from protocol.legality import check, verify_legal
from protocol.manifest import Linear
from protocol.methods import METHODS
from protocol.peft_format import EDGE_FILE, Published, published_as, to_edge
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from tests.methods import adapter_of, slots_on
from tests.tiers import one_by_default
from tests.tiny_model import TEXTS, write_tiny_source
from tests.unit.audit.small_bases import small_manifest
from tests.unit.client.test_programs import agree

PATH = "m.0.query"
DORA = METHODS["dora"]


@pytest.fixture(scope="module")
def biased_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with biases: those of `tiny_source` are zeros, and nothing would have to be repaired."""
    source = write_tiny_source(tmp_path_factory.mktemp("biased") / "source", seed=7)
    model, generator = AutoModel.from_pretrained(source), torch.manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.5, generator=generator)
    model.save_pretrained(source)
    return source


@pytest.fixture(scope="module")
def biased(biased_source: Path) -> Path:
    out = biased_source.with_name("base")
    build_base(str(biased_source), task="sequence-classification", bits=4, out=out, scales=True)
    return out


def plan_on(base: Path, **sections: Any) -> Plan:
    document = {
        "name": "dora",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"labels": ["a", "b", "c"], "max_length": 16},
        "adapter": adapter_of("dora", targets="all-linear"),
        "rule": {"name": "mean"},
    }
    return plan_from(document | sections, source="test")


def random_adapter(recipe: Recipe) -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {s.name: rng.normal(0, 0.3, s.shape).astype(np.float32) for s in recipe.layout.specs}


def by_peft(weight: Any, bias: Any, tensors: dict[str, Any], x: Any) -> Any:
    """peft's own layer (alpha / r = 2) with whole magnitudes, m = the row's length + the offset."""
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    rank = len(tensors["lora_A"])
    config = LoraConfig(r=rank, lora_alpha=2.0 * rank, use_dora=True, target_modules=["0"])
    layer = get_peft_model(nn.Sequential(linear), config).base_model.model[0]
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            getattr(layer, name)["default"].weight.copy_(torch.from_numpy(tensors[name]))
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.add_(torch.from_numpy(tensors["lora_magnitude_vector"]))
        return layer(torch.from_numpy(x)).numpy()


@given(rank=st.integers(1, 5), seed=st.integers(0, 1000), size=st.floats(0.01, 0.5))
def test_slots_compute_what_peft_computes_and_rows_have_the_length_that_is_trained(
    rank: int, seed: int, size: float
) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((6, 5), (6,)))
    linear = Linear(path=PATH, in_features=5, out_features=6)
    manifest = small_manifest().model_copy(update={"bits": 32, "linears": [linear]})
    stored = {f"{PATH}.weight": weight, f"{PATH}.bias": bias}
    shapes = {"lora_A": (rank, 5), "lora_B": (6, rank), "lora_magnitude_vector": (6,)}
    tensors = {n: rng.normal(0, size, s).astype(np.float32) for n, s in shapes.items()}
    slots = to_edge(
        {f"{PATH}.{name}": value for name, value in tensors.items()},
        published=Published(method=DORA, constants={"scaling": 2.0}),
        linears=StoredLinears(manifest, stored.__getitem__),
    )
    down, up, scale, shift = (slots[f"{PATH}.{e}"] for e in ("lora_A", "lora_B", "scale", "shift"))
    x = rng.normal(size=(4, 5)).astype(np.float32)
    answer = scale * (x @ weight.T + bias + shift) + x @ down @ up
    expected = by_peft(weight, bias, tensors, x)
    assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max()
    rows = scale[:, None] * weight + (down @ up).T
    wanted = np.linalg.norm(weight, axis=1) + tensors["lora_magnitude_vector"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.abs(wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "parts",
    one_by_default(
        {"lora_A", "lora_B", "lora_magnitude_vector"},
        [
            {"lora_B", "lora_magnitude_vector"},
            {"lora_A"},
            {"lora_A", "lora_B", "lora_magnitude_vector"},
        ],
    ),
    ids=len,
)
def test_gradients_are_pefts_where_there_are_biases(biased: Path, parts: set[str]) -> None:
    """The length in the denominator moves with the factors, and has no gradient."""
    agree(biased, plan_on(biased), frozenset(parts | {"head"}))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_gradients_and_releases_of_other_widths(
    biased_source: Path, write_adapter: Callable[..., Path], tmp_path: Path, bits: int
) -> None:
    base = tmp_path / "base"
    build_base(str(biased_source), task="sequence-classification", bits=bits, out=base, scales=True)
    agree(base, plan_on(base))
    folder = write_adapter(tmp_path / "adapter", method="dora", base=base)
    release_adapter(folder, base, texts=TEXTS, bound=1e-4)


@pytest.mark.slow
def test_releases_and_merged_models_answer_alike(
    biased: Path, write_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "adapter", method="dora", base=biased)
    release_adapter(folder, biased, texts=TEXTS, bound=1e-4)
    slots = read_tensors(folder / EDGE_FILE)
    assert np.abs(slots["bert.encoder.layer.0.attention.self.value.shift"]).max() > 0.01
    assert not [name for name in slots if ".key.shift" in name]  # no answer has it
    assert not [name for name in slots if ".0.output.dense." in name]  # it narrows
    about: dict[str, Any] = {"bits": 32, "texts": TEXTS, "bounds": Bounds(relative=1e-4)}
    write_merged(folder, biased, tmp_path / "merged", kind="onnx", **about)


def test_round_0_is_the_base_to_the_bit_but_for_the_head(biased: Path) -> None:
    recipe = Recipe(plan=plan_on(biased), manifest=read_manifest(biased))
    slots = slots_on(biased, recipe, recipe.start())
    for name, value in slots.items():
        if name.endswith((".scale", ".shift", ".lora_B")):
            assert (value == name.endswith(".scale")).all(), name


def test_what_its_forms_hang_on_has_to_be_there(biased: Path) -> None:
    recipe = Recipe(plan=plan_on(biased), manifest=read_manifest(biased))
    published = Published.by(recipe.plan.adapter)
    with pytest.raises(ArtefactError, match="hangs on weights of the base"):
        to_edge(recipe.published(recipe.start()), published=published)


def test_a_linear_that_narrows_stays_as_it_is_and_alone_is_refused(biased: Path) -> None:
    manifest = read_manifest(biased)
    notes = [f for f in check(plan_on(biased), manifest) if f.field == "adapter.targets"]
    assert "stays as it is" in notes[0].cause
    alone = plan_on(biased, adapter=adapter_of("dora", targets=["output.dense"], layers=[0]))
    assert len(Recipe(plan=alone, manifest=manifest).layout.specs) == 5  # attention's is square
    narrow = [linear for linear in manifest.linears if linear.narrows]
    small = manifest.model_copy(update={"linears": narrow})
    with pytest.raises(PlanError, match="no scale of its outputs"):
        verify_legal(alone, small)


@pytest.mark.parametrize("rule", ["alternating", "first", "mean"])
def test_no_rule_is_exact_and_noise_is_refused_with_another_method(biased: Path, rule: str) -> None:
    manifest = read_manifest(biased)
    findings = list(check(plan_on(biased, rule={"name": rule}), manifest))
    said = next(f for f in findings if f.field == "rule.name" and "not linear" in f.cause)
    assert said.remedy.startswith("train `lora` with rule `alternating`")
    privacy = {"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0}
    noisy = plan_on(biased, rule={"name": rule}, privacy=privacy)
    errors = [f for f in check(noisy, manifest) if f.severity == "error"]
    assert "train `lora` with rule `alternating`" in [finding.remedy for finding in errors]


def test_a_folder_is_known_by_its_settings() -> None:
    text = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "use_dora": %s}'
    assert published_as(text % "true", source="c").method is DORA
    assert published_as(text % "false", source="c").method is METHODS["lora"]
    for odd in ("1", '"true"', "null"):
        with pytest.raises(ArtefactError, match="not known"):
            published_as(text % odd, source="c")
    both = '{"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "use_dora": true, "use_rslora": %s}'
    assert published_as(both % "false", source="c").constants == {"scaling": 2.0}
    for odd in ("true", "1", "null"):
        with pytest.raises(ArtefactError, match="`use_rslora` beside `use_dora`"):
            published_as(both % odd, source="c")
    other = (
        '{"peft_type": "IA3", "use_dora": true, "target_modules": [], "feedforward_modules": []}'
    )
    with pytest.raises(ArtefactError, match="`use_dora` changes"):
        published_as(other, source="c")
