"""Bases that draw: what diffusers computes on the same codes, and what is refused, by name. (P-1.18)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from base_model.decoder.opened import opened_tensors
from base_model.denoisers.build import build_denoiser
from base_model.denoisers.families import schedule_of, shape_of
from base_model.denoisers.source import denoiser_source
from base_model.denoisers.torch_model import opened_denoiser, state_of
from base_model.media_read import task_of_folder
from base_model.programs.folder import make_program
from base_model.slot_check import verify_slots
from base_model.source_files import read_object
from base_model.verify import read_manifest, verify_base
from edge_runtime.drawing.base import DrawingBase
from protocol.denoiser_manifest import CLASSES, IMAGES, NOISE, STEPS, DenoiserManifest
from protocol.errors import ArtefactError, PlanError
from protocol.manifests import parse_any_manifest
from protocol.noise import noisy, step_back, steps_down
from protocol.plan import plan_from
from protocol.recipe import Recipe
from tests.denoiser_models import CLASSES as COUNT
from tests.denoiser_models import CONFIG, SCHEDULER, SIDE, write_denoiser_source

BITS = (4, 8, 16, 32)
Inputs = dict[str, np.ndarray[Any, Any]]


def inputs_of(channels: int = 1, steps: int = 40) -> Inputs:
    """Of every class, and of none, at the first step and the last."""
    rng = np.random.default_rng(3)
    return {
        IMAGES: rng.standard_normal((6, channels, SIDE, SIDE), np.float32),
        STEPS: np.array([0, 1, 7, steps // 2, steps - 2, steps - 1]),
        CLASSES: np.arange(COUNT + 1),
    }


def graph_noise(base: Path, inputs: Inputs) -> np.ndarray[Any, Any]:
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(base / "graph.onnx"), settings)
    (noise,) = session.run([NOISE], inputs)
    return np.asarray(noise)


def torch_noise(base: Path, inputs: Inputs) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        model = opened_denoiser(base)
        return model(*(torch.from_numpy(value) for value in inputs.values())).numpy()


def test_a_base_is_whole_and_says_what_it_is(tiny_denoiser: Path) -> None:
    manifest = verify_base(tiny_denoiser)
    assert isinstance(manifest, DenoiserManifest)
    verify_slots(tiny_denoiser, manifest)
    assert (manifest.classes, manifest.max_positions, manifest.schedule.steps) == (COUNT, 4, 40)
    assert manifest.shape == (1, SIDE, SIDE)
    paths = {linear.path for linear in manifest.linears}
    assert len(paths) == 2 * 7
    assert {f"{path}.lora_{end}" for path in paths for end in "AB"} == {
        slot.name for slot in manifest.slots()
    }
    inputs = inputs_of()
    apart = np.abs(graph_noise(tiny_denoiser, inputs) - torch_noise(tiny_denoiser, inputs)).max()
    assert apart < 1e-5


def test_a_graph_may_have_its_tensors_in_a_file_beside_it(tmp_path: Path) -> None:
    """Devices open it, and programs are made of it."""
    source = write_denoiser_source(tmp_path / "source")
    build_denoiser(str(source), bits=8, out=tmp_path / "base", one_file=0)
    assert (tmp_path / "base" / "graph.data").is_file()
    manifest = verify_base(tmp_path / "base")
    inputs = inputs_of()
    noise = DrawingBase.open(tmp_path / "base", threads=1).noise(inputs)
    assert np.abs(noise - torch_noise(tmp_path / "base", inputs)).max() < 1e-5
    document = {
        "name": "apart",
        "base": {"fingerprint": manifest.fingerprint},
        "task": {"kind": "image-generation", "labels": ["a", "b"]},
    }
    plan = plan_from(document, source="a test")
    program = make_program(tmp_path / "base", Recipe(plan=plan, manifest=manifest))
    assert max(len(data) for data in program.graphs.values()) < 200_000  # no weights are in it


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"in_channels": 3, "out_channels": 3, "attention_bias": False},
        {"attention_head_dim": 20, "num_attention_heads": 3, "patch_size": 2, "norm_eps": 1e-3},
    ],
    ids=["learnt variance", "colours, no bias", "widths that fill no block"],
)
def test_the_noise_is_that_of_diffusers_own_class(
    tmp_path: Path, bits: int, config: dict[str, Any]
) -> None:
    """With the numbers that the codes stand for; to 1e-4."""
    from diffusers import DiTTransformer2DModel

    source = write_denoiser_source(tmp_path / "source", **config)
    own = DiTTransformer2DModel.from_pretrained(source / "transformer")
    build_denoiser(str(source), bits=bits, out=tmp_path / "base")
    shape = shape_of(read_object(tmp_path / "base" / "config.json"), source="a test")
    own.load_state_dict(dict(state_of(shape, opened_tensors(tmp_path / "base", shape))))
    inputs = inputs_of(shape.channels)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        expected = own.eval()(**tensors).sample[:, : shape.channels].numpy()
    assert np.abs(expected).max() > 0.1
    assert np.abs(graph_noise(tmp_path / "base", inputs) - expected).max() < 1e-4
    assert np.abs(torch_noise(tmp_path / "base", inputs) - expected).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_grows_and_goes_as_diffusers_schedulers_have_it(betas: str) -> None:
    from diffusers import DDIMScheduler, DDPMScheduler

    config = SCHEDULER | {"beta_schedule": betas}
    schedule = schedule_of(config, source=Path("a test"))
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    forward = DDPMScheduler(**known)
    assert schedule.alphas() == pytest.approx(forward.alphas_cumprod.numpy(), rel=1e-5, abs=1e-7)
    rng = np.random.default_rng(1)
    image, noise = rng.standard_normal((2, 3, 1, 4, 4), np.float32)
    steps = np.array([0, 17, 39])
    added = forward.add_noise(*(torch.from_numpy(x) for x in (image, noise, steps))).numpy()
    assert np.abs(noisy(image, noise, steps, schedule) - added).max() < 1e-5
    known.pop("variance_type")
    back = DDIMScheduler(**known, timestep_spacing="trailing")
    back.set_timesteps(10)
    down = steps_down(schedule, 10)
    assert back.timesteps.tolist() == down.tolist()
    for step, before in zip(down.tolist(), [*down[1:].tolist(), -1], strict=True):
        their = back.step(torch.from_numpy(noise), step, torch.from_numpy(image)).prev_sample
        ours = step_back(image, noise, step, before, schedule)
        assert np.abs(ours - their.numpy()).max() < 1e-4


def test_a_folder_is_known_for_what_it_does(tmp_path: Path) -> None:
    source = write_denoiser_source(tmp_path / "source")
    assert task_of_folder(str(source)) == "image-generation"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "UNet2DModel"}, "UNet2DModel.*convolutions"),
        ({"_class_name": "PixArtTransformer2DModel"}, "what a text says"),
        ({"_class_name": 5}, "a 5 cannot be a base that draws"),
        ({"in_channels": 4, "out_channels": 8}, "4 channels, as of latents"),
        ({"out_channels": 3}, "`out_channels` is 3: 1 or 2 are noise"),
        ({"out_channels": 2.0}, "`out_channels` is 2.0"),
        ({"out_channels": True}, "`out_channels` is true"),
        ({"out_channels": 0}, "`out_channels` is 0"),
        ({"num_layers": 1025}, "`num_layers` is 1025, more than 1024"),
        ({"sample_size": 1032}, "66564 patches, more than 16384"),
        ({"activation_fn": "geglu"}, '`activation_fn` is "geglu"'),
        ({"norm_type": "ada_norm_single"}, "`norm_type`"),
        ({"norm_elementwise_affine": True}, "`norm_elementwise_affine` is true"),
        ({"upcast_attention": True}, "`upcast_attention`"),
        ({"sample_size": 10}, "10 by 10 pixels, in patches of 4"),
        ({"sample_size": [8, 8]}, "`sample_size` is .*no whole number"),
        ({"num_layers": 0}, "`num_layers` is 0"),
        ({"num_layers": True}, "`num_layers`"),
        ({"attention_head_dim": 5}, "10 hidden numbers cannot hold places"),
        ({"norm_eps": 0}, "`norm_eps`"),
        ({"attention_type": "gated"}, "`attention_type` is not known here"),
        ({"patch_size": None}, "`patch_size`"),
    ],
)
def test_other_models_are_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        shape_of(CONFIG | config, source="config.json")


@pytest.mark.parametrize("key", ["in_channels", "patch_size", "num_embeds_ada_norm"])
def test_what_is_not_said_is_not_guessed(key: str) -> None:
    with pytest.raises(ArtefactError, match=f"does not say `{key}`"):
        shape_of({name: value for name, value in CONFIG.items() if name != key}, source="config")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"prediction_type": "v_prediction"}, "only the noise is asked for"),
        ({"beta_schedule": "sigmoid"}, "`beta_schedule`: "),
        ({"trained_betas": [0.1]}, "betas of its own"),
        ({"rescale_betas_zero_snr": True}, "rescaled"),
        ({"thresholding": True}, "quantile"),
        ({"num_train_timesteps": 10**6}, "`num_train_timesteps`: "),
        ({"num_train_timesteps": 1}, "`num_train_timesteps`: "),
        ({"beta_end": 1.0}, "`beta_end`: "),
        ({"beta_start": 0.5}, "noise grows"),
        ({"beta_start": 0.5, "beta_end": 0.9, "num_train_timesteps": 1000}, "nothing is left"),
        ({"shift": 3.0}, "`shift` is not known here"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatch.* is not known here"),
        ({"_class_name": ["DDPMScheduler"]}, "is not known here"),
    ],
)
def test_other_schedulers_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        schedule_of(SCHEDULER | config, source=Path("scheduler_config.json"))


@pytest.mark.parametrize("key", ["beta_start", "beta_schedule", "prediction_type"])
def test_a_scheduler_says_how_noise_grows(key: str) -> None:
    rest = {name: value for name, value in SCHEDULER.items() if name != key}
    with pytest.raises(ArtefactError, match=f"does not say `{key}`"):
        schedule_of(rest, source=Path("scheduler_config.json"))


def test_pipelines_of_latents_are_refused(tmp_path: Path) -> None:
    source = write_denoiser_source(tmp_path / "source")
    index = source / "model_index.json"
    index.write_text(json.dumps({"vae": [None, None]}))
    denoiser_source(str(source))
    index.write_text(json.dumps({"vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ArtefactError, match="latents, not pixels"):
        denoiser_source(str(source))
    index.unlink()
    (source / "vae").mkdir()
    with pytest.raises(ArtefactError, match="latents, not pixels"):
        denoiser_source(str(source))


@pytest.mark.parametrize("gone", ["scheduler/scheduler_config.json", "transformer/config.json"])
def test_folders_that_lack_a_part_are_refused(tmp_path: Path, gone: str) -> None:
    source = write_denoiser_source(tmp_path / "source")
    (source / gone).unlink()
    with pytest.raises(ArtefactError, match=gone.rpartition("/")[2]):
        denoiser_source(str(source))


def test_checkpoints_are_those_of_their_config(tmp_path: Path) -> None:
    source = write_denoiser_source(tmp_path / "source")
    path = source / "transformer" / "config.json"
    for change, said in (
        ({"num_layers": 3}, "lacks transformer_blocks.2"),
        ({"num_layers": 1}, "has transformer_blocks.1.*no place"),
        ({"num_embeds_ada_norm": 7}, "embedding_table.weight is .6, 32. .*and by config.json"),
        ({"attention_bias": False}, "no place"),
    ):
        path.write_text(json.dumps(CONFIG | change))
        with pytest.raises(ArtefactError, match=said):
            denoiser_source(str(source))


def test_options_of_other_bases_are_refused(tmp_path: Path) -> None:
    source = str(write_denoiser_source(tmp_path / "source"))
    for options, said in (
        ({"scales": True}, "--scales"),
        ({"seconds": 3}, "--seconds"),
        ({"bits": 5}, "--bits 5"),
    ):
        with pytest.raises(PlanError, match=said):
            build_denoiser(source, **({"bits": 4, "out": tmp_path / "out"} | options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": 6}, "fingerprint"),
        ({"schedule": {"steps": 41}}, "fingerprint"),
        ({"pixels": {"mean": [0.5]}}, "from -1 to 1"),
        ({"pixels": {"height": 4}}, "not cut out"),
        ({"graph": {"inputs": ["hidden_states"]}}, "does not read"),
        ({"graph": {"output": "logits"}}, "does not give `noise`"),
        ({"pooling": "cls"}, "pooling"),
        ({"schedule": {"betas": "exp"}}, "betas"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(
    tiny_denoiser: Path, change: dict[str, Any], said: str
) -> None:
    document = json.loads((tiny_denoiser / "manifest.json").read_text())
    for key, value in change.items():
        document[key] = document[key] | value if isinstance(value, dict) else value
    with pytest.raises(ArtefactError, match=said):
        parse_any_manifest(json.dumps(document), source="manifest.json")


def test_what_the_fingerprint_covers_changes_it(tiny_denoiser: Path) -> None:
    manifest = read_manifest(tiny_denoiser)
    assert isinstance(manifest, DenoiserManifest)
    shorter = manifest.schedule.model_copy(update={"steps": 39})
    seen = {manifest.fingerprint}
    for change in ({"classes": 4}, {"schedule": shorter}, {"bits": 8}):
        seen.add(manifest.model_copy(update=change).fingerprinted().fingerprint)
    assert len(seen) == 4
