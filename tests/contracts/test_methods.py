"""What every PEFT method promises, over all of them: a new one is tested by its line in the registry.

Training is compared with peft in ``tests/unit/client/test_programs.py`` and ``test_adapter_model.py``, over
the same registry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from base_model.programs.commands import app as programs
from base_model.release import (
    open_peft,
    published_of,
    read_peft,
    release_adapter,
    write_edge_adapter,
)
from base_model.store import GRAPH, open_base
from base_model.verify import read_manifest
from edge_runtime.adapter import check_tensors, load_adapter, read_tensors
from edge_runtime.base import EdgeBase
from protocol.errors import ArtefactError, PlanError
from protocol.forms import SOFT_PROMPT
from protocol.initial import ONES
from protocol.layout import HEAD_PART
from protocol.legality import check
from protocol.magnitude import kept_count
from protocol.methods import METHODS
from protocol.methods.base import Method
from protocol.model_card import model_card
from protocol.peft_format import (
    EDGE_FILE,
    WEIGHTS_FILE,
    Published,
    folder_head,
    from_peft,
    peft_config,
    to_peft,
)
from protocol.plan import Plan, plan_from
from protocol.recipe import Recipe
from protocol.rules import RULES
from tests.methods import SORTING, adapter_of, slots_on
from tests.tiers import some_by_default
from tests.tiny_model import TEXTS

NAMES = SORTING
# Plain factors, folded ones, those that hang on the base, products, shifts, an opener of its own, a prompt, several.
ONE_OF_A_KIND = ("lora", "ravan", "dora", "lokr", "bias", "bottleneck", "prompt", "hybrid")

# Whose folders are of another type than peft's own method of that name.
OTHERWISE_IN_PEFT = [name for name in NAMES if type(METHODS[name]).in_peft is not Method.in_peft]


def plan_of(base: Path, method: str, **sections: Any) -> Plan:
    document = {
        "name": "contract",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"labels": ["light", "music", "timer"], "max_length": 16},
        "adapter": adapter_of(method),
    }
    return plan_from(document | sections, source="test")


def recipe_of(base: Path, method: str) -> Recipe:
    return Recipe(plan=plan_of(base, method), manifest=read_manifest(base))


def answers(base: Path, tensors: dict[str, Any]) -> Any:
    """Logits of the answering graph with ``tensors`` in its slots."""
    session = ort.InferenceSession(str(base / GRAPH), providers=["CPUExecutionProvider"])
    return session.run(None, rows_of(base) | tensors)[0]


def rows_of(base: Path) -> dict[str, Any]:
    """Some words that the base has."""
    rng = np.random.default_rng(1)
    ids = rng.integers(5, read_manifest(base).vocab_size, (3, 6))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


@pytest.mark.parametrize("name", NAMES)
def test_its_settings_are_a_plan_of_their_own(tiny_base: Path, name: str) -> None:
    """Another method's keys are refused by name, and change no digest."""
    plan = plan_of(tiny_base, name)
    assert plan.adapter.method == name
    assert plan_from(json.loads(plan.render()), source="again").digest == plan.digest
    own = METHODS[name].settings.model_fields.keys()
    others = {key for method in METHODS.values() for key in method.settings.model_fields} - own
    for key in others:
        with pytest.raises(PlanError, match=rf"unknown key `adapter\.{key}`") as refused:
            plan_of(tiny_base, name, adapter=adapter_of(name) | {key: 1})
        assert "it is a key of" in refused.value.remedy
    assert not [
        finding for finding in check(plan, read_manifest(tiny_base)) if finding.severity == "error"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_round_0_is_the_base_but_for_the_head(tiny_base: Path, name: str) -> None:
    """A prompt apart, which is there from the first round on."""
    recipe = recipe_of(tiny_base, name)
    slots = slots_on(tiny_base, recipe, recipe.start())
    head = {key: value for key, value in slots.items() if key.startswith("classifier.")}
    same = np.allclose(answers(tiny_base, slots), answers(tiny_base, head), atol=1e-6)
    assert same == (SOFT_PROMPT not in slots)


@pytest.mark.parametrize("name", NAMES)
def test_parts_and_turns_cover_what_is_trained(tiny_base: Path, name: str) -> None:
    recipe = recipe_of(tiny_base, name)
    method = recipe.method
    parts = {spec.part for spec in recipe.layout.specs}
    assert parts - {HEAD_PART} == set(method.free)
    assert frozenset().union(*method.turns) <= set(method.free)
    for spec in recipe.layout.specs:
        assert len(recipe.dimensions(spec)) >= len(spec.shape)
    for rule in RULES.values():
        assert rule.trained(method) <= parts
        bent = rule.trained(method) & method.nonlinear
        several = rule.schedule == "all" and len(method.turns) > 1
        assert rule.exact(method) == (not bent and not several)


@pytest.mark.parametrize("name", NAMES)
def test_an_update_of_one_turn_is_linear(
    tiny_base: Path, name: str, random_tensors: Callable[[Recipe], dict[str, Any]]
) -> None:
    """What a mean of updates rests on: within a turn the forms of a mean are the mean of the forms.

    Of what goes into an activation they are too, and say nothing (``test_bottlenecks.py``).
    """
    recipe = recipe_of(tiny_base, name)
    method = recipe.method
    start = random_tensors(recipe)
    linears = [linear.path for linear in recipe.manifest.linears]

    def effect(tensors: dict[str, Any]) -> dict[str, Any]:
        """Products of low-rank slots, and the other slots as they are."""
        slots = slots_on(tiny_base, recipe, tensors)
        done = {}
        for key, value in slots.items():
            path, _, end = key.rpartition(".")
            if path in linears and end == "lora_A":
                done[path] = value.astype(np.float64) @ slots[f"{path}.lora_B"]
            elif end != "lora_B":
                done[key] = value
        return done

    for turn in [turn for turn in method.turns if not turn & method.nonlinear]:
        moves = []
        for seed in (5, 6):
            rng = np.random.default_rng(seed)
            moves.append(
                start
                | {
                    s.name: start[s.name] + rng.normal(0, 0.3, s.shape).astype(np.float32)
                    for s in recipe.layout.only(turn | {HEAD_PART}).specs
                }
            )
        mean = {key: (moves[0][key] + moves[1][key]) / 2 for key in start}
        first, second, both = (effect(tensors) for tensors in (*moves, mean))
        for key, value in both.items():
            np.testing.assert_allclose(value, (first[key] + second[key]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_method_alone_reads_its_folder(tiny_base: Path, name: str) -> None:
    """So that nothing hangs on the order in which methods are asked."""
    recipe = recipe_of(tiny_base, name)
    config = peft_config(recipe, base_name="")
    readers = {known for known, m in METHODS.items() if not m.reader and m.reads(config)}
    assert readers == {METHODS[name].reader or name}


@pytest.mark.parametrize("name", NAMES)
def test_names_are_one_to_one(
    tiny_base: Path, name: str, random_tensors: Callable[[Recipe], dict[str, Any]]
) -> None:
    recipe = recipe_of(tiny_base, name)
    plain = recipe.published(random_tensors(recipe))
    recipe.published_layout.flatten(plain)  # its names and shapes
    saved = to_peft(plain, method=recipe.method, head="head_on_mean")
    assert len(saved) == len(plain)
    back = from_peft(saved, method=Published.by(recipe.plan.adapter).method)
    assert (
        recipe.published_layout.flatten(back).tobytes()
        == recipe.published_layout.flatten(plain).tobytes()
    )
    again = recipe.published(recipe.resumed(plain))
    assert (
        recipe.published_layout.flatten(again).tobytes()
        == recipe.published_layout.flatten(plain).tobytes()
    )
    with pytest.raises(ArtefactError, match="is not known"):
        from_peft(saved | {"other": np.zeros(1, np.float32)}, method=recipe.method)


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_it_is_published_or_refused(
    tiny_base: Path, name: str, random_tensors: Callable[[Recipe], dict[str, Any]]
) -> None:
    """Where 0 means nothing, and there is more than a head; what was published is published again."""
    manifest = read_manifest(tiny_base)
    plan = plan_of(tiny_base, name, release={"keep": 0.3})
    recipe, whole = Recipe(plan=plan, manifest=manifest), recipe_of(tiny_base, name)
    specs = [spec for spec in recipe.published_layout.specs if spec.part != HEAD_PART]
    errors = [f for f in check(plan, manifest) if f.severity == "error"]
    if not specs or any(spec.law == ONES for spec in specs):
        assert [f.field for f in errors] == ["release.keep"]
        assert name in ("ia3", "norm", "head")
        return
    assert not errors
    tensors = random_tensors(recipe)
    plain, cut = whole.published(tensors), recipe.published(tensors)
    for spec in recipe.published_layout.specs:
        kept, before = cut[spec.name], plain[spec.name]
        share = 1.0 if spec.part == HEAD_PART else 0.3
        stated = np.flatnonzero(kept)
        assert len(stated) == min(np.count_nonzero(before), kept_count(spec.size, share))
        assert kept.reshape(-1)[stated].tobytes() == before.reshape(-1)[stated].tobytes()
    again = recipe.published(recipe.resumed(cut))
    flat = recipe.published_layout.flatten
    assert flat(again).tobytes() == flat(cut).tobytes()


@pytest.mark.parametrize("name", some_by_default(ONE_OF_A_KIND, NAMES))
def test_what_is_published_answers_on_torch_and_on_a_device(
    tiny_base: Path, tmp_path: Path, write_adapter: Callable[..., Path], name: str
) -> None:
    """Parity through both doors; every tensor of the published adapter moves the answers."""
    folder = write_adapter(tmp_path / "adapter", method=name)
    note = release_adapter(folder, tiny_base, texts=TEXTS, bound=1e-4)
    assert note.parity is not None
    assert note.parity.max_relative <= 1e-4
    base = EdgeBase.open(tiny_base)
    slots = read_tensors(folder / EDGE_FILE)
    check_tensors(slots, base, labels=3, source="test")
    load_adapter(folder, base)
    before = answers(tiny_base, slots)
    for key, value in slots.items():
        moved = slots | {key: value + np.float32(0.5)}
        assert not np.array_equal(answers(tiny_base, moved), before), key


@pytest.mark.parametrize("name", NAMES)
def test_peft_knows_every_key_of_its_folder(
    tiny_base: Path, tmp_path: Path, write_adapter: Callable[..., Path], name: str
) -> None:
    """What peft saves again of what it has read are the same keys and bytes; it refuses types it has not."""
    from peft import PeftModel, get_peft_model_state_dict

    folder = write_adapter(tmp_path / "adapter", method=name)
    reader = Published.by(plan_of(tiny_base, name).adapter)
    assert published_of(folder).method == reader.method
    everywhere = plan_of(tiny_base, name, adapter=adapter_of(name, targets="all-linear"))
    recipe = Recipe(plan=everywhere, manifest=read_manifest(tiny_base))
    assert read_peft(folder).keys() == {spec.name for spec in recipe.published_layout.specs}
    if not METHODS[name].of_peft:
        opened = open_base(tiny_base, labels=3, verify=False)
        with pytest.raises(KeyError, match=METHODS[name].peft_type):
            PeftModel.from_pretrained(opened.model, str(folder))
        return
    model = open_peft(open_base(tiny_base, labels=3, verify=False), folder)
    read = {
        key: value.detach().numpy()
        for key, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    ours = load_file(folder / WEIGHTS_FILE)
    assert read.keys() == ours.keys()
    assert all(read[key].tobytes() == ours[key].tobytes() for key in ours)


@pytest.mark.parametrize("name", OTHERWISE_IN_PEFT)
def test_pefts_own_method_of_that_name_answers_alike(
    tiny_base: Path, random_tensors: Callable[[Recipe], dict[str, Any]], name: str
) -> None:
    """Where a folder is of another type, the oracle is the type that peft has."""
    import torch
    from peft import get_peft_config, get_peft_model, get_peft_model_state_dict
    from peft.utils import set_peft_model_state_dict

    plan = plan_of(tiny_base, name, adapter=adapter_of(name, targets="all-linear"))
    recipe = Recipe(plan=plan, manifest=read_manifest(tiny_base))
    tensors = recipe.start() | {
        spec.name: random_tensors(recipe)[spec.name] for spec in recipe.sent_layout.specs
    }
    own = {spec.name for spec in recipe.layout.specs if spec.part != HEAD_PART}
    found = recipe.method.in_peft(
        plan.adapter, recipe.manifest, {n: x for n, x in tensors.items() if n in own}
    )
    assert found is not None
    config, values = found
    model = open_base(tiny_base, labels=3, verify=False).model
    for end in ("weight", "bias"):
        model.get_parameter(f"classifier.{end}").data = torch.from_numpy(
            tensors[f"classifier.{end}"]
        )
    adapted = get_peft_model(model, get_peft_config(config))
    assert get_peft_model_state_dict(adapted).keys() == values.keys()
    named = {key: torch.from_numpy(value) for key, value in values.items()}
    assert not set_peft_model_state_dict(adapted, named).unexpected_keys
    rows = rows_of(tiny_base)
    with torch.no_grad():
        expected = adapted.eval()(**{k: torch.from_numpy(v) for k, v in rows.items()})
    ours = answers(tiny_base, slots_on(tiny_base, recipe, tensors))
    head = {key: value for key, value in tensors.items() if key.startswith("classifier.")}
    assert np.abs(ours - answers(tiny_base, head)).max() > 0.1
    assert np.abs(ours - expected.logits.numpy()).max() <= 1e-4 * np.abs(ours).max()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_odd_about_it_is_said(tiny_base: Path, name: str) -> None:
    """Factors that decay would pull to 0; a folder that peft alone would misread."""
    manifest = read_manifest(tiny_base)
    decaying = plan_of(tiny_base, name, local={"weight_decay": 0.1})
    fields = {f.field for f in check(decaying, manifest) if f.severity == "warning"}
    around_one = any(spec.law == ONES for spec in recipe_of(tiny_base, name).layout.specs)
    assert ("local.weight_decay" in fields) == around_one
    pooled = manifest.model_copy(update={"pooling": "pooler"})
    card = model_card(plan_of(tiny_base, name), pooled, 1, True, None)
    assert f"method `{name}`" in card
    own = METHODS[name].own_opener
    assert ("with a KeyError" in card) == own
    assert folder_head(pooled, METHODS[name]) == ("head_on_pooler" if own else "classifier")


@pytest.mark.parametrize("name", NAMES)
def test_its_program_is_reproducible(tiny_base: Path, tmp_path: Path, name: str) -> None:
    """By the command that parties compare with: the graphs are made again, byte for byte."""
    (tmp_path / "plan.json").write_text(plan_of(tiny_base, name).render())
    about = ["--base", str(tiny_base), "--plan", str(tmp_path / "plan.json"), "--json"]
    folder = str(tmp_path / "program")
    built = CliRunner().invoke(programs, ["build", *about, "--out", folder], catch_exceptions=False)
    again = CliRunner().invoke(
        programs, ["verify", folder, "--rebuild", *about], catch_exceptions=False
    )
    assert (built.exit_code, again.exit_code) == (0, 0)
    said = json.loads(again.stdout)
    assert said["rebuilt"]
    assert said["program"] == json.loads(built.stdout)["program"]


def test_a_device_takes_slots_of_several_methods_at_once(tiny_base: Path, tmp_path: Path) -> None:
    """The graph knows forms, not methods: whoever fills several fills several."""
    together: dict[str, Any] = {}
    for name in ("lora", "ia3", "bias", "prompt"):
        recipe = recipe_of(tiny_base, name)
        rng = np.random.default_rng(2)
        tensors = {
            s.name: rng.normal(0, 0.3, s.shape).astype(np.float32) for s in recipe.layout.specs
        }
        together |= slots_on(tiny_base, recipe, tensors)
    write_edge_adapter(together, tmp_path / EDGE_FILE)
    check_tensors(
        read_tensors(tmp_path / EDGE_FILE), EdgeBase.open(tiny_base), labels=3, source="t"
    )


@pytest.fixture(scope="module")
def random_tensors() -> Callable[[Recipe], dict[str, Any]]:
    """Values for every tensor of a recipe."""

    def make(recipe: Recipe) -> dict[str, Any]:
        rng = np.random.default_rng(4)
        return {s.name: rng.normal(0, 0.3, s.shape).astype(np.float32) for s in recipe.layout.specs}

    return make
