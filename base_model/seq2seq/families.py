"""Families of encoders with a decoder: from Hugging Face's ``config.json`` to what is computed.

What a config says and these do not know is refused by name. Two things a config does not say for sure: an
output layer of its own is one where the checkpoint has another than the words, and the first token that is
written may be in the settings for generation. ``base_model.seq2seq.folder`` writes both into the base's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from base_model.decoder.fields import OTHER, Config, flag, real, shown, size
from base_model.decoder.shape import Activation
from base_model.seq2seq.shape import OFFSET, Seq2SeqShape
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, MOST_LAYERS

T5 = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
}
# What transformers takes for keys that are absent.
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": T5 | {"feed_forward_proj": "relu"},
    "mt5": T5 | {"feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
    "bart": {
        "max_position_embeddings": 1024,
        "activation_function": "gelu",
        "scale_embedding": False,
        "pad_token_id": 1,
        "decoder_start_token_id": 2,
    },
}
REFUSED = {
    "umt5": "each of its layers has positions of its own",
    "longt5": "its encoder sees a part of the text at a time",
    "switch_transformers": "it routes tokens to experts",
    "mbart": "its norms stand before its blocks, and what it writes begins with the last token",
    "marian": "its logits have a bias",
    "pegasus": "its positions are waves",
    "m2m_100": "its positions are waves",
    "whisper": "it reads sound",
}
CONTEXT = 512  # tokens, where a config says none: what the family was trained on
MOST_DISTANCE = 2**16  # tokens, of the table of buckets
PROJECTIONS: dict[str, tuple[Activation, bool]] = {  # and whether they are gated
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}
FUNCTIONS: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "swish": ("silu", False),
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (None, True),
}


def shape_of(config: Config) -> Seq2SeqShape:
    """What a model of this config computes. Raises ArtefactError that names what is not supported."""
    family = _family(config)
    config = {**FAMILIES[family], **config}
    for key, values in NEUTRAL.items():
        if config.get(key) not in values:
            raise ArtefactError(
                f"{CONFIG}: `{key}` is {shown(config[key])}, which is not supported",
                "name the model as it was before; fedge quantises by itself"
                if key == "quantization_config"
                else OTHER,
            )
    vocabulary = size(config, "vocab_size")
    return Seq2SeqShape(
        family=family,
        hidden=size(config, "d_model"),
        vocabulary=vocabulary,
        tied=flag(config, "tie_word_embeddings", True),
        start=_token(config, "decoder_start_token_id", vocabulary),
        padding=_token(config, "pad_token_id", vocabulary),
        **(_bart(config) if family == "bart" else _t5(config)),
    )


def _t5(config: Config) -> dict[str, Any]:
    """What is particular about T5's style."""
    activation, gated = _activation(config, "feed_forward_proj", PROJECTIONS)
    buckets, distance = _positions(config)
    return {
        "style": "t5",
        "encoder_layers": _layers(config, "num_layers"),
        "layers": _layers(config, "num_decoder_layers", size(config, "num_layers")),
        "feed_forward": size(config, "d_ff"),
        "heads": size(config, "num_heads"),
        "head_size": _head_size(size(config, "d_kv")),
        "context": size(config, "n_positions", CONTEXT),
        "epsilon": real(config, "layer_norm_epsilon"),
        "activation": activation,
        "gated": gated,
        "buckets": buckets,
        "distance": distance,
        "logits_scale": size(config, "d_model") ** -0.5 if is_scaled(config) else 1.0,
    }


def _bart(config: Config) -> dict[str, Any]:
    """What is particular about BART's style. Its two stacks have layers of one size."""
    alike = {}
    for name in ("attention_heads", "ffn_dim"):
        alike[name] = size(config, f"encoder_{name}")
        if size(config, f"decoder_{name}") != alike[name]:
            raise ArtefactError(
                f"{CONFIG}: `encoder_{name}` and `decoder_{name}` differ, which is not supported",
                OTHER,
            )
    hidden, heads = size(config, "d_model"), alike["attention_heads"]
    if hidden % heads:
        raise ArtefactError(f"{CONFIG}: {hidden} numbers in {heads} heads", "correct it")
    positions = size(config, "max_position_embeddings")
    activation, _ = _activation(config, "activation_function", FUNCTIONS)
    return {
        "style": "bart",
        "encoder_layers": _layers(config, "encoder_layers"),
        "layers": _layers(config, "decoder_layers"),
        "feed_forward": alike["ffn_dim"],
        "heads": heads,
        "head_size": _head_size(hidden // heads),
        "context": positions,
        "table": positions + OFFSET,
        "epsilon": 1e-5,
        "activation": activation,
        "attention_scale": (hidden // heads) ** -0.5,
        "embedding_scale": hidden**0.5 if flag(config, "scale_embedding", False) else 1.0,
    }


def is_scaled(config: Config) -> bool:
    """Whether what the output layer reads is scaled down: in T5, unless it says that words are not tied.

    transformers 5 writes that words are tied into every config, and the scale under a name of its own.
    """
    if config.get("model_type") != "t5":
        return False
    return flag(config, "scale_decoder_outputs", flag(config, "tie_word_embeddings", True))


def _family(config: Config) -> str:
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ArtefactError(f"{CONFIG}: there is no `model_type`", "save it with transformers")
    if name not in FAMILIES:
        why = f": {REFUSED[name]}" if name in REFUSED else ""
        raise ArtefactError(
            f"{CONFIG}: model type {shown(name)} cannot be a base that turns a text into another{why}",
            f"use a model of: {', '.join(FAMILIES)}",
        )
    return name


def _activation(
    config: Config, key: str, known: Mapping[str, tuple[Activation, bool]]
) -> tuple[Activation, bool]:
    name = config[key]
    if not isinstance(name, str) or name not in known:
        raise ArtefactError(
            f"{CONFIG}: `{key}` is {shown(name)}, which is not supported",
            f"use a model with one of: {', '.join(known)}",
        )
    return known[name]


def _layers(config: Config, name: str, default: int | None = None) -> int:
    layers = size(config, name, default)
    if layers > MOST_LAYERS:
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {layers}", f"use a model of at most {MOST_LAYERS} layers"
        )
    return layers


def _head_size(head_size: int) -> int:
    """ONNX Runtime's attention takes eight numbers at once."""
    if head_size % 8:
        raise ArtefactError(
            f"{CONFIG}: heads of {head_size} numbers; they have to be a multiple of 8", OTHER
        )
    return head_size


def _positions(config: Config) -> tuple[int, int]:
    """Buckets, and the distance from which on they are one: the wide ones have to grow."""
    buckets = size(config, "relative_attention_num_buckets")
    distance = size(config, "relative_attention_max_distance")
    if buckets < 4 or not buckets // 2 < distance <= MOST_DISTANCE:
        raise ArtefactError(
            f"{CONFIG}: relative positions of {buckets} buckets over {distance} tokens", OTHER
        )
    return buckets, distance


def _token(config: Mapping[str, Any], name: str, vocabulary: int) -> int:
    token = config.get(name)
    if type(token) is not int or not 0 <= token < vocabulary:
        raise ArtefactError(
            f"{CONFIG}: `{name}` is {shown(token)}, no token of its {vocabulary} words",
            "take the config.json that belongs to the checkpoint",
        )
    return token
