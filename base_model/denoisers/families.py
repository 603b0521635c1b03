"""Configs of models that draw, as diffusers writes them: what is taken, and what is refused, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from base_model.denoisers.shape import DenoiserShape
from base_model.preprocessor_file import int_of, shown
from protocol.documents import OddError, value_as
from protocol.errors import ArtefactError
from protocol.image_manifest import MOST_SIDE
from protocol.manifest import MOST_LAYERS
from protocol.noise import Schedule

FAMILY = "dit"
PARTS = ("transformer", "scheduler")  # folders of a pipeline
SCHEDULER_CONFIG = f"{PARTS[1]}/scheduler_config.json"
CLASS_NAME = "_class_name"
TRANSFORMER = "DiTTransformer2DModel"
REFUSED = {
    "UNet2DModel": "it has convolutions where adapters have linears",
    "UNet2DConditionModel": "it draws what a text says, by convolutions where adapters have linears",
    "Transformer2DModel": "a DiT that an older diffusers wrote has this name: save it anew",
    "PixArtTransformer2DModel": "it draws what a text says",
    "SD3Transformer2DModel": "it draws what a text says",
    "FluxTransformer2DModel": "it draws what a text says",
    "HunyuanDiT2DModel": "it draws what a text says",
    "UViT2DModel": "it draws tokens, not pixels",
    "AutoencoderKL": "it turns images into latents, and draws nothing by itself",
}
# What a model computes, with the one value that is computed here; None: any.
FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "upcast_attention": False,
    "dropout": None,  # of training alone, and a base is frozen
    "norm_num_groups": None,  # read by nobody
}
SIZES = (
    *("num_attention_heads", "attention_head_dim", "in_channels", "num_layers"),
    *("sample_size", "patch_size", "num_embeds_ada_norm"),
)
# What says who wrote a file, or how others draw with it: here images are drawn as P-1.18 says.
ABOUT = {CLASS_NAME, "_diffusers_version", "_name_or_path", "_use_default_values"}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
OTHERS_WAYS = {
    *("clip_sample", "clip_sample_range", "set_alpha_to_one", "steps_offset", "timestep_spacing"),
    *("variance_type", "sample_max_value", "dynamic_thresholding_ratio", "skip_prk_steps"),
}
NOISE = ("num_train_timesteps", "beta_schedule", "prediction_type")
FIELDS = {"steps": NOISE[0], "betas": NOISE[1], "start": "beta_start", "end": "beta_end"}
UNLESS_FALSY = {
    "trained_betas": "betas of its own",
    "thresholding": "values that are cut by their quantile",
    "rescale_betas_zero_snr": "betas that are rescaled",
}
MOST_PATCHES = 2**14  # of an image: its attention has a number for each two of them, in every head
OWN = "take the config.json that belongs to the checkpoint"


def is_denoiser(folder: Path) -> bool:
    """Whether a folder is laid out as a pipeline that draws, whatever is in it."""
    return (folder / SCHEDULER_CONFIG).is_file()


def shape_of(config: Mapping[str, Any], *, source: str) -> DenoiserShape:
    """What a transformer's ``config.json`` computes. Raises ArtefactError for what is not computed here."""
    name = config.get(CLASS_NAME)
    if name != TRANSFORMER:
        why = f": {REFUSED[name]}" if isinstance(name, str) and name in REFUSED else ""
        raise ArtefactError(
            f"{source}: a {shown(name)} cannot be a base that draws{why}",
            f"use a {TRANSFORMER} on pixels",
        )
    try:
        return _shape(dict(config))
    except KeyError as error:
        raise ArtefactError(
            f"{source}: it does not say `{error.args[0]}`, which would be guessed", OWN
        ) from None
    except ValueError as error:
        raise ArtefactError(f"{source}: {error}", OWN) from None


def _shape(config: dict[str, Any]) -> DenoiserShape:
    sizes = _sizes(config)
    channels, heads = sizes["in_channels"], sizes["num_attention_heads"]
    head_size = sizes["attention_head_dim"]
    said = config.get("out_channels")
    outputs = channels if said is None else said
    if type(outputs) is not int or outputs not in (channels, 2 * channels):
        raise ValueError(
            f"`out_channels` is {shown(outputs)}: {channels} or {2 * channels} are noise"
        )
    epsilon, bias = config.get("norm_eps", 1e-5), config.get("attention_bias", True)
    if type(epsilon) is not float or not 0 < epsilon < 1 or type(bias) is not bool:
        raise ValueError("`norm_eps` or `attention_bias` is of another type")
    if heads * head_size % 4:
        raise ValueError(
            f"{heads * head_size} hidden numbers cannot hold places, which take four each"
        )
    return DenoiserShape(
        channels=cast(Any, channels),
        outputs=outputs,
        side=sizes["sample_size"],
        patch=sizes["patch_size"],
        layers=sizes["num_layers"],
        heads=heads,
        head_size=head_size,
        classes=sizes["num_embeds_ada_norm"],
        epsilon=epsilon,
        bias=bias,
    )


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    """By key, of a model that computes what is computed here. Raises ValueError, KeyError."""
    known = {*FIXED, *SIZES, *ABOUT, "out_channels", "attention_bias", "norm_eps"}
    if unknown := sorted(config.keys() - known):
        raise ValueError(f"`{unknown[0]}` is not known here, and may change what is computed")
    for key, value in FIXED.items():
        if value is not None and config.get(key, value) != value:
            raise ValueError(f"`{key}` is {shown(config[key])}, and only {shown(value)} is here")
    sizes = {key: int_of(key, config) for key in SIZES}
    for key, size in sizes.items():
        if not 1 <= size <= 2**20:
            raise ValueError(f"`{key}` is {size}, which is no size")
    if sizes["num_layers"] > MOST_LAYERS:
        raise ValueError(f"`num_layers` is {sizes['num_layers']}, more than {MOST_LAYERS}")
    channels, side, patch = (sizes[key] for key in ("in_channels", "sample_size", "patch_size"))
    if channels not in (1, 3):
        raise ValueError(
            f"it reads {channels} channels, as of latents; images have 1 or 3: a model of pixels is needed"
        )
    if side % patch or side > MOST_SIDE:
        raise ValueError(
            f"images of {side} by {side} pixels, in patches of {patch}, cannot be read"
        )
    if (side // patch) ** 2 > MOST_PATCHES:
        raise ValueError(
            f"an image has {(side // patch) ** 2} patches, more than {MOST_PATCHES}: each looks at all"
        )
    return sizes


def schedule_of(config: Mapping[str, Any], *, source: Path) -> Schedule:
    """How noise grows by a ``scheduler_config.json``, whoever draws with it. Raises ArtefactError."""
    try:
        return _schedule(dict(config))
    except KeyError as error:
        reason = f"it does not say `{error.args[0]}`, which would be guessed"
    except OddError as odd:  # begins with a field
        field, _, fault = str(odd).partition(": ")
        reason = f"`{FIELDS[field]}`: {fault}" if field in FIELDS else fault
    except ValueError as error:
        reason = str(error)
    raise ArtefactError(
        f"{source}: {reason}",
        f"take the one that belongs to the checkpoint, of: {', '.join(SCHEDULERS)}",
    )


def _schedule(config: dict[str, Any]) -> Schedule:
    if (name := config.get(CLASS_NAME)) not in SCHEDULERS:
        raise ValueError(f"a scheduler {shown(name)} is not known here")
    known = {*NOISE, *UNLESS_FALSY, *OTHERS_WAYS, *ABOUT, "beta_start", "beta_end"}
    if unknown := sorted(config.keys() - known):
        raise ValueError(f"`{unknown[0]}` is not known here, and may change how noise grows")
    for key, what in UNLESS_FALSY.items():
        if config.get(key):
            raise ValueError(f"`{key}` is {shown(config[key])}: {what} are not computed here")
    steps, betas, prediction = (config[key] for key in NOISE)
    if prediction != "epsilon":
        raise ValueError(
            f"`prediction_type` is {shown(prediction)}, and only the noise is asked for here"
        )
    own = betas == "squaredcos_cap_v2"
    bounds = (None, None) if own else (config["beta_start"], config["beta_end"])
    fields = {"steps": steps, "betas": betas, "start": bounds[0], "end": bounds[1]}
    return value_as(Schedule, fields)
