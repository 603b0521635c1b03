"""Fields of a decoder's ``config.json``, which anybody may have written: checked one by one, by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from base_model.decoder.shape import Activation, Rope
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, MOST_LAYERS

Config = Mapping[str, Any]
MOST = 2**24  # of any size in a config
OTHER = "use a model of another kind"
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def rope_of(config: Config) -> Rope:
    """Rotary positions, as transformers 5 writes them (``rope_parameters``) or as older ones did."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return rope_as_said(said, real(config, "rope_theta"))


def rope_as_said(said: object, theta: float) -> Rope:
    """The rope of one table of a config; ``theta`` where it says none."""
    if not isinstance(said, Mapping):
        raise ArtefactError(f"{CONFIG}: `rope_parameters` is no table", "correct it")
    turn = real(said, "rope_theta", theta)
    kind = said.get("rope_type", said.get("type", "default"))
    if said.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ArtefactError(f"{CONFIG}: only a part of each head has positions", OTHER)
    match kind:
        case "default":
            return Rope(theta=turn)
        case "linear":
            return Rope(theta=turn, scaling="linear", factor=real(said, "factor"))
        case "llama3":
            return Rope(
                theta=turn,
                scaling="llama3",
                factor=real(said, "factor"),
                low=real(said, "low_freq_factor"),
                high=real(said, "high_freq_factor"),
                original=size(said, "original_max_position_embeddings"),
            )
    raise ArtefactError(
        f"{CONFIG}: positions are stretched by {shown(kind)}, which is not supported",
        "use a model of one of: default, linear, llama3; often the variant with the shorter context",
    )


def activation_of(config: Config, name: str) -> Activation:
    """The activation that the key ``name`` says. Raises ArtefactError."""
    value = config.get(name)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {shown(value)}, which is not supported",
            f"use a model with one of: {', '.join(ACTIVATIONS)}",
        )
    return ACTIVATIONS[value]


def verify_heads(heads: int, kv_heads: int, head_size: int) -> None:
    """ONNX Runtime's attention takes groups of equal size, and turns eight numbers at once."""
    if heads % kv_heads:
        raise ArtefactError(
            f"{CONFIG}: {heads} heads of queries cannot share {kv_heads} of keys", "correct it"
        )
    if head_size % 8:
        raise ArtefactError(
            f"{CONFIG}: heads of {head_size} numbers; they have to be a multiple of 8", OTHER
        )


def size(config: Config, name: str, default: int | None = None) -> int:
    """A whole number above 0, or the default where there is none. Raises ArtefactError."""
    value = config.get(name)
    if value is None and default is not None:
        value = default
    if type(value) is not int or not 0 < value <= MOST:
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {shown(value)}, not a whole number from 1 to {MOST}",
            "take the config.json that belongs to the checkpoint",
        )
    return value


def layer_count(config: Config, name: str) -> int:
    """How many layers, which a graph has nodes for. Raises ArtefactError."""
    layers = size(config, name)
    if layers > MOST_LAYERS:
        raise ArtefactError(f"{CONFIG}: {layers} layers", f"use a model of at most {MOST_LAYERS}")
    return layers


def real(config: Config, name: str, default: float | None = None) -> float:
    """A finite number above 0, or the default where there is none. Raises ArtefactError."""
    value = config.get(name)
    if value is None and default is not None:
        value = default
    if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {shown(value)}, not a number above 0",
            "take the config.json that belongs to the checkpoint",
        )
    return float(value)  # type: ignore[arg-type]


def flag(config: Config, name: str, default: bool) -> bool:
    """True or false, or the default where nothing is said. Raises ArtefactError."""
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {shown(value)}, not true or false", "correct it"
        )
    return value


def shown(value: object) -> str:
    """A value for an error, not longer than a line."""
    return repr(value)[:60]
