"""Families of decoders: from Hugging Face's ``config.json`` to what is computed.

A family is a row of data, and a function where it deviates. It is listed when its graph gives what
transformers gives (tests/unit/base_model/decoder). Whatever a config asks for and is not in the rows is
refused by name: a decoder that is nearly right writes nearly sensible text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from base_model.decoder.shape import Activation, DecoderShape, Norms, Rope
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, MOST_LAYERS

Config = Mapping[str, Any]
MOST = 2**24  # of any size in a config
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
BEFOREHAND = Norms()
FOUR_NORMS = Norms(
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)
AFTERWARDS = Norms(
    before_attention="",
    after_attention="post_attention_layernorm",
    before_feed_forward="",
    after_feed_forward="post_feedforward_layernorm",
)
OTHER = "use a model of another kind"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A decoder family by Hugging Face's ``model_type``.

    ``biases``: linears that have one whatever the config says. ``attention``: those that have one where it
    says ``attention_bias``. ``tied``, ``theta``: where it says nothing. ``activation``: the key of
    ``config.json`` that names it, and ``activates`` what it is where there is none. ``windows``: the
    config's ``sliding_window`` counts; in which layers is in its ``layer_types``, and where these are absent,
    in all of them, or in none unless it says ``use_sliding_window``. ``particular``: what else the
    config says, as further fields of the shape.
    """

    model_type: str
    biases: tuple[str, ...] = ()
    attention: tuple[str, ...] = ATTENTION
    query_norm: Literal["", "head", "row"] = ""
    norms: Norms = BEFOREHAND
    unit_norms: bool = False
    fused: bool = False
    tied: bool = False
    theta: float = 10_000.0
    activation: str = "hidden_act"
    activates: str = "silu"
    windows: Literal["no", "all", "asked"] = "no"
    particular: Callable[[Config], dict[str, Any]] = lambda _config: {}


def _granite(config: Config) -> dict[str, Any]:
    return {
        "attention_scale": _real(config, "attention_multiplier", 1.0),
        "embedding_scale": _real(config, "embedding_multiplier", 1.0),
        "residual_scale": _real(config, "residual_multiplier", 1.0),
        "logits_scale": 1.0 / _real(config, "logits_scaling", 1.0),
    }


def _smollm3(config: Config) -> dict[str, Any]:
    """Some layers have no positions: each fourth, or those that are listed."""
    layers = _size(config, "num_hidden_layers")
    turning = config.get("no_rope_layers")
    if turning is None:
        every = _size(config, "no_rope_layer_interval", 4)
        turning = [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(turning, list) or len(turning) < layers:
        raise ArtefactError(f"{CONFIG}: `no_rope_layers` is no list of all layers", "correct it")
    rope = _rope(config, 2_000_000.0)
    return {"ropes": tuple(rope if turns else None for turns in turning[:layers])}


FAMILIES = {
    family.model_type: family
    for family in (
        Family(model_type="llama"),
        Family(model_type="mistral", windows="all"),
        Family(model_type="qwen2", biases=ATTENTION[:3], attention=(), windows="asked"),
        Family(model_type="qwen3", query_norm="head", windows="asked"),
        Family(model_type="granite", particular=_granite),
        Family(model_type="smollm3", tied=True, windows="asked", particular=_smollm3),
        Family(model_type="phi3", fused=True, attention=(), windows="all"),
        Family(
            model_type="olmo2",
            query_norm="row",
            norms=AFTERWARDS,
            theta=500_000.0,
        ),
    )
}
REFUSED = {
    "gpt2": "its positions are a table, and its graph has no rotary attention",
    "mixtral": "it routes tokens to experts",
    "qwen2_moe": "it routes tokens to experts",
    "qwen3_moe": "it routes tokens to experts",
    "mamba": "it has no attention",
    "gemma3": "it also reads images; its text part is a model of the type gemma3_text",
}
# Keys that change the function, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "add_cross_attention": (None, False),
    "clip_qkv": (None,),
}
REMEDIES = {
    "quantization_config": "name the model as it was before, or its GGUF file; fedge quantises by itself",
    "compression_config": "name the model as it was before; fedge quantises by itself",
    "auto_map": "use a model that needs no code of its own",
}


def is_causal(config: Config) -> bool:
    """Whether it is the config of a decoder of one of the families."""
    return config.get("model_type") in FAMILIES


def shape_of(config: Config) -> DecoderShape:
    """What a model of this config computes. Raises ArtefactError that names what is not supported."""
    family = _family(config)
    for key, values in NEUTRAL.items():
        if config.get(key) not in values:
            raise ArtefactError(
                f"{CONFIG}: `{key}` is {_shown(config[key])}, which is not supported",
                REMEDIES.get(key, OTHER),
            )
    layers = _size(config, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise ArtefactError(f"{CONFIG}: {layers} layers", f"use a model of at most {MOST_LAYERS}")
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    head_size = _size(config, "head_dim", hidden // heads)
    _check_heads(heads, _size(config, "num_key_value_heads", heads), head_size)
    particular = family.particular(config)
    if "ropes" not in particular:
        particular["ropes"] = (_rope(config, family.theta),) * layers
    return DecoderShape(
        family=family.model_type,
        layers=layers,
        hidden=hidden,
        feed_forward=_size(config, "intermediate_size"),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", heads),
        head_size=head_size,
        vocabulary=_size(config, "vocab_size"),
        context=_size(config, "max_position_embeddings"),
        epsilon=_real(config, "rms_norm_eps"),
        activation=_activation(config, family),
        tied=_flag(config, "tie_word_embeddings", family.tied),
        windows=_windows(config, family, layers),
        norms=family.norms,
        biases=_biases(config, family),
        query_norm=family.query_norm,
        unit_norms=family.unit_norms,
        fused=family.fused,
        **{"attention_scale": head_size**-0.5, **particular},
    )


def _family(config: Config) -> Family:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ArtefactError(f"{CONFIG}: there is no `model_type`", "save it with transformers")
    if name not in FAMILIES:
        why = f": {REFUSED[name]}" if name in REFUSED else ""
        raise ArtefactError(
            f"{CONFIG}: model type {_shown(name)} cannot be a base that writes text{why}",
            f"use a decoder of: {', '.join(FAMILIES)}",
        )
    return FAMILIES[name]


def _check_heads(heads: int, kv_heads: int, head_size: int) -> None:
    """ONNX Runtime's attention takes groups of equal size, and turns eight numbers at once."""
    if heads % kv_heads:
        raise ArtefactError(
            f"{CONFIG}: {heads} heads of queries cannot share {kv_heads} of keys", "correct it"
        )
    if head_size % 8:
        raise ArtefactError(
            f"{CONFIG}: heads of {head_size} numbers; they have to be a multiple of 8", OTHER
        )


def _activation(config: Config, family: Family) -> Activation:
    name = config.get(family.activation, family.activates) or family.activates
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ArtefactError(
            f"{CONFIG}: `{family.activation}` is {_shown(name)}, which is not supported",
            f"use a model with one of: {', '.join(ACTIVATIONS)}",
        )
    return ACTIVATIONS[name]


def _biases(config: Config, family: Family) -> frozenset[str]:
    named = set(family.biases)
    if family.attention and _flag(config, "attention_bias", False):
        named |= set(family.attention)
    if not family.fused and _flag(config, "mlp_bias", False):
        named |= set(FEED_FORWARD)
    return frozenset(named)


def _windows(config: Config, family: Family, layers: int) -> tuple[int, ...]:
    """How many tokens are seen, layer by layer; 0 where it is all of them."""
    if family.windows == "no" or config.get("sliding_window") is None:
        return (0,) * layers
    if family.windows == "asked" and not _flag(config, "use_sliding_window", False):
        return (0,) * layers
    window, kinds = _size(config, "sliding_window"), config.get("layer_types")
    if kinds is None and family.windows == "all":
        return (window,) * layers
    if (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or set(map(str, kinds)) - {"sliding_attention", "full_attention"}
    ):
        raise ArtefactError(
            f"{CONFIG}: `sliding_window` counts, and `layer_types` does not say in which layers",
            "load and save the model with a recent transformers, which writes the list",
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _rope(config: Config, theta: float) -> Rope:
    """Rotary positions, as transformers 5 writes them (``rope_parameters``) or as older ones did."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(said, Mapping):
        raise ArtefactError(f"{CONFIG}: `rope_parameters` is no table", "correct it")
    turn = _real(said, "rope_theta", _real(config, "rope_theta", theta))
    kind = said.get("rope_type", said.get("type", "default"))
    if said.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ArtefactError(f"{CONFIG}: only a part of each head has positions", OTHER)
    match kind:
        case "default":
            return Rope(theta=turn)
        case "linear":
            return Rope(theta=turn, scaling="linear", factor=_real(said, "factor"))
        case "llama3":
            return Rope(
                theta=turn,
                scaling="llama3",
                factor=_real(said, "factor"),
                low=_real(said, "low_freq_factor"),
                high=_real(said, "high_freq_factor"),
                original=_size(said, "original_max_position_embeddings"),
            )
    raise ArtefactError(
        f"{CONFIG}: positions are stretched by {_shown(kind)}, which is not supported",
        "use a model of one of: default, linear, llama3; often the variant with the shorter context",
    )


def _size(config: Config, name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        value = default
    if type(value) is not int or not 0 < value <= MOST:
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {_shown(value)}, not a whole number from 1 to {MOST}",
            "take the config.json that belongs to the checkpoint",
        )
    return value


def _real(config: Config, name: str, default: float | None = None) -> float:
    value = config.get(name)
    if value is None and default is not None:
        value = default
    if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {_shown(value)}, not a number above 0",
            "take the config.json that belongs to the checkpoint",
        )
    return float(value)  # type: ignore[arg-type]


def _flag(config: Config, name: str, default: bool) -> bool:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {_shown(value)}, not true or false", "correct it"
        )
    return value


def _shown(value: object) -> str:
    return repr(value)[:60]
