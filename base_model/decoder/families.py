"""Families of decoders: from Hugging Face's ``config.json`` to what is computed.

A family is a row of data, and a function where it deviates. It is listed when its graph gives what
transformers gives (tests/unit/base_model/decoder). Whatever a config asks for and is not in the rows is
refused by name: a decoder that is nearly right writes nearly sensible text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from base_model.decoder.fields import (
    ACTIVATIONS,
    OTHER,
    Config,
    activation_of,
    flag,
    layer_count,
    real,
    rope_as_said,
    rope_of,
    shown,
    size,
    verify_heads,
)
from base_model.decoder.gpt import GPT
from base_model.decoder.shape import DecoderShape, Names, Norms, Rope
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, MOST_LAYERS

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
BEFOREHAND = Norms()
FOUR_NORMS = Norms(
    after_attention="post_attention_layernorm",
    before_feed_forward="pre_feedforward_layernorm",
    after_feed_forward="post_feedforward_layernorm",
)
APART = Names()
FUSED = Names(attention=("self_attn.qkv_proj",), widening=("mlp.gate_up_proj",))
AFTERWARDS = Norms(
    before_attention="",
    after_attention="post_attention_layernorm",
    before_feed_forward="",
    after_feed_forward="post_feedforward_layernorm",
)


COMMON = {"hidden_act": "silu", "rope_theta": 10_000.0}  # of all families that say nothing else
GEMMA3 = {
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
}
GEMMA2 = {
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family like Llama by Hugging Face's ``model_type``.

    ``biases``: linears that have one whatever the config says. ``attention``: those that have one where it
    says ``attention_bias``. ``activation``: the key of ``config.json`` that names it. ``windows``: whether
    the config's ``sliding_window`` counts, always or where it says ``use_sliding_window``; it does in the
    layers that are so in its ``layer_types``, and without these in all but each ``whole``-th, 0 being none.
    ``defaults``: what transformers takes for keys that are absent. ``particular``: what else the config says,
    from it and the windows, as further fields of the shape.
    """

    model_type: str
    biases: tuple[str, ...] = ()
    attention: tuple[str, ...] = ATTENTION
    query_norm: Literal["", "head", "row"] = ""
    norms: Norms = BEFOREHAND
    unit_norms: bool = False
    names: Names = APART
    activation: str = "hidden_act"
    windows: Literal["no", "yes", "asked"] = "no"
    whole: int = 0
    defaults: Config = field(default_factory=dict)
    particular: Callable[[Config, tuple[int, ...]], dict[str, Any]] = lambda _config, _windows: {}


def _like_gemma(model_type: str, *, defaults: dict[str, Any], **others: Any) -> Family:
    common = {"tie_word_embeddings": True, "head_dim": 256}
    settings: dict[str, Any] = {"norms": FOUR_NORMS, "activation": "hidden_activation", **others}
    return Family(
        model_type=model_type,
        unit_norms=True,
        defaults={**common, settings["activation"]: "gelu_pytorch_tanh", **defaults},
        **settings,
    )


def _granite(config: Config, _windows: tuple[int, ...]) -> dict[str, Any]:
    scale = real(config, "embedding_multiplier", 1.0)
    return {
        "attention_scale": real(config, "attention_multiplier", 1.0),
        "embedding_scale": scale,
        "prompt_scale": scale,
        "residual_scale": real(config, "residual_multiplier", 1.0),
        "logits_scale": 1.0 / real(config, "logits_scaling", 1.0),
    }


def _smollm3(config: Config, _windows: tuple[int, ...]) -> dict[str, Any]:
    """Some layers have no positions: each fourth, or those that are listed."""
    layers = size(config, "num_hidden_layers")
    turning = config.get("no_rope_layers")
    if turning is None:
        every = size(config, "no_rope_layer_interval", 4)
        turning = [(layer + 1) % every != 0 for layer in range(layers)]
    if not isinstance(turning, list) or len(turning) < layers:
        raise ArtefactError(f"{CONFIG}: `no_rope_layers` is no list of all layers", "correct it")
    rope = rope_of(config)
    return {"ropes": tuple(rope if turns else None for turns in turning[:layers])}


def _gemma(config: Config, _windows: tuple[int, ...]) -> dict[str, Any]:
    # `gelu` is what old files say, and they mean its approximation
    name = config.get("hidden_act")
    changed = {"activation": ACTIVATIONS["gelu_new"]} if name == "gelu" else {}
    return {"embedding_scale": size(config, "hidden_size") ** 0.5, **changed}


def _gemma2(config: Config, windows: tuple[int, ...]) -> dict[str, Any]:
    caps = {"scores_cap": "attn_logit_softcapping", "logits_cap": "final_logit_softcapping"}
    return {
        "embedding_scale": size(config, "hidden_size") ** 0.5,
        "attention_scale": real(config, "query_pre_attn_scalar") ** -0.5,
        **{key: real(config, name) for key, name in caps.items() if config.get(name) is not None},
    }


def _gemma3(config: Config, windows: tuple[int, ...]) -> dict[str, Any]:
    return {**_gemma2(config, windows), **_two_ropes(config, windows)}


def _two_ropes(config: Config, windows: tuple[int, ...]) -> dict[str, Any]:
    """Layers with a window have positions of their own, which an old config never stretches."""
    theta, said = real(config, "rope_theta"), config.get("rope_parameters")
    local = real(config, "rope_local_base_freq", theta)
    if isinstance(said, Mapping) and {"full_attention", "sliding_attention"} & set(said):
        near = rope_as_said(said.get("sliding_attention") or {}, local)
        far = rope_as_said(said.get("full_attention") or {}, theta)
    else:
        near, far = Rope(theta=local), rope_of(config)
    return {"ropes": tuple(near if window else far for window in windows)}


LIKE_LLAMA = {
    family.model_type: family
    for family in (
        Family(model_type="llama"),
        Family(model_type="mistral", windows="yes", defaults={"sliding_window": 4096}),
        Family(model_type="qwen2", biases=ATTENTION[:3], attention=(), windows="asked"),
        Family(model_type="qwen3", query_norm="head", windows="asked", defaults={"head_dim": 128}),
        Family(model_type="granite", particular=_granite),
        Family(
            model_type="smollm3",
            windows="asked",
            defaults={"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
            particular=_smollm3,
        ),
        Family(model_type="phi3", names=FUSED, attention=(), windows="yes"),
        Family(model_type="olmo2", query_norm="row", norms=AFTERWARDS),
        Family(
            model_type="olmo3",
            query_norm="row",
            norms=AFTERWARDS,
            windows="yes",
            whole=4,
            defaults={"sliding_window": 4096, "rope_theta": 500_000.0},
            particular=_two_ropes,
        ),
        _like_gemma(
            "gemma", norms=BEFOREHAND, activation="hidden_act", defaults={}, particular=_gemma
        ),
        _like_gemma("gemma2", windows="yes", whole=2, defaults=GEMMA2, particular=_gemma2),
        _like_gemma(
            "gemma3_text",
            windows="yes",
            whole=6,
            query_norm="head",
            defaults=GEMMA3,
            particular=_gemma3,
        ),
    )
}
REFUSED = {
    "t5": "it turns a text into another, for which there is --task seq2seq-lm",
    "mt5": "it turns a text into another, for which there is --task seq2seq-lm",
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
    "use_bidirectional_attention": (None, False),
}
REMEDIES = {
    "quantization_config": "name the model as it was before, or its GGUF file; fedge quantises by itself",
    "compression_config": "name the model as it was before; fedge quantises by itself",
    "auto_map": "use a model that needs no code of its own",
}


def shape_of(config: Config) -> DecoderShape:
    """What a model of this config computes. Raises ArtefactError that names what is not supported."""
    name = _family(config)
    for key, values in NEUTRAL.items():
        if config.get(key) not in values:
            raise ArtefactError(
                f"{CONFIG}: `{key}` is {shown(config[key])}, which is not supported",
                REMEDIES.get(key, OTHER),
            )
    return FAMILIES[name](config)


def _like_llama_shape(family: Family, config: Config) -> DecoderShape:
    config = {**COMMON, **family.defaults, **config}
    layers = layer_count(config, "num_hidden_layers")
    heads, hidden = size(config, "num_attention_heads"), size(config, "hidden_size")
    head_size = size(config, "head_dim", hidden // heads)
    verify_heads(heads, size(config, "num_key_value_heads", heads), head_size)
    windows = _windows(config, family, layers)
    particular = family.particular(config, windows)
    if "ropes" not in particular:
        particular["ropes"] = (rope_of(config),) * layers
    return DecoderShape(
        family=family.model_type,
        layers=layers,
        hidden=hidden,
        feed_forward=size(config, "intermediate_size"),
        heads=heads,
        kv_heads=size(config, "num_key_value_heads", heads),
        head_size=head_size,
        vocabulary=size(config, "vocab_size"),
        context=size(config, "max_position_embeddings"),
        epsilon=real(config, "rms_norm_eps"),
        tied=flag(config, "tie_word_embeddings", False),
        windows=windows,
        norms=family.norms,
        biases=_biases(config, family),
        query_norm=family.query_norm,
        unit_norms=family.unit_norms,
        names=family.names,
        **{
            "attention_scale": head_size**-0.5,
            "activation": activation_of(config, family.activation),
            **particular,
        },
    )


FAMILIES: dict[str, Callable[[Config], DecoderShape]] = {
    **{name: partial(_like_llama_shape, family) for name, family in LIKE_LLAMA.items()},
    **GPT,
}


def _family(config: Config) -> str:
    """The name of a family that is supported."""
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ArtefactError(f"{CONFIG}: there is no `model_type`", "save it with transformers")
    if name not in FAMILIES:
        why = f": {REFUSED[name]}" if name in REFUSED else ""
        raise ArtefactError(
            f"{CONFIG}: model type {shown(name)} cannot be a base that writes text{why}",
            f"use a decoder of: {', '.join(FAMILIES)}",
        )
    return name


def _biases(config: Config, family: Family) -> frozenset[str]:
    named = set(family.biases)
    if family.attention and flag(config, "attention_bias", False):
        named |= set(family.attention)
    if family.names != FUSED and flag(config, "mlp_bias", False):
        named |= set(FEED_FORWARD)
    return frozenset(named)


def _windows(config: Config, family: Family, layers: int) -> tuple[int, ...]:
    """How many tokens are seen, layer by layer; 0 where it is all of them."""
    if family.windows == "no" or config.get("sliding_window") is None:
        return (0,) * layers
    if family.windows == "asked" and not flag(config, "use_sliding_window", False):
        return (0,) * layers
    window, kinds = size(config, "sliding_window"), config.get("layer_types")
    if kinds is None and family.windows == "yes":
        whole = size(config, "sliding_window_pattern", family.whole or MOST_LAYERS + 1)
        return tuple(window if (layer + 1) % whole else 0 for layer in range(layers))
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
