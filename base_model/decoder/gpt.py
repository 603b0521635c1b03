"""The GPT family of decoders: norms that centre, a feed-forward block without a gate, biases.

Two of them have a table of positions, which is as long as their longest text; the third turns a part of each
head, and its blocks read the same. As with the others, what a config asks for and is not here is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from base_model.decoder.fields import (
    OTHER,
    Config,
    activation_of,
    flag,
    layer_count,
    real,
    rope_as_said,
    shown,
    size,
    verify_heads,
)
from base_model.decoder.shape import DecoderShape, Names, Norms, Rope
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, MOST_LAYERS

TURNED_AT_ONCE = 8  # numbers, by ONNX Runtime
IN_ORDER = Norms(before_attention="ln_1", before_feed_forward="ln_2")
# What transformers takes for keys that are absent.
DEFAULTS: Config = {"activation_function": "gelu_new", "tie_word_embeddings": True}
KINDS = ((("global", "local"), 12),)
# Sizes by the names that most families give them, and by these families' own.
GPT2_SIZES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
NEO_SIZES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
GPT2 = Names(
    embeddings="transformer.wte",
    positions="transformer.wpe",
    layers="transformer.h",
    last_norm="transformer.ln_f",
    attention=("attn.c_attn",),
    mixing="attn.c_proj",
    widening=("mlp.c_fc",),
    narrowing="mlp.c_proj",
)
NEO = replace(
    GPT2,
    attention=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    mixing="attn.attention.out_proj",
)
NEOX = Names(
    embeddings="gpt_neox.embed_in",
    layers="gpt_neox.layers",
    last_norm="gpt_neox.final_layer_norm",
    attention=("attention.query_key_value",),
    mixing="attention.dense",
    widening=("mlp.dense_h_to_4h",),
    narrowing="mlp.dense_4h_to_h",
)


def gpt2_shape(config: Config) -> DecoderShape:
    """GPT-2: its linears are what transformers calls Conv1D, and queries, keys and values one of them."""
    config = _with_own_names({**DEFAULTS, **config}, GPT2_SIZES)
    if flag(config, "scale_attn_by_inverse_layer_idx", False):
        raise ArtefactError(f"{CONFIG}: `scale_attn_by_inverse_layer_idx` is not supported", OTHER)
    hidden, heads = size(config, "n_embd"), size(config, "n_head")
    layers, positions = layer_count(config, "n_layer"), size(config, "n_positions")
    return DecoderShape(
        family="gpt2",
        layers=layers,
        feed_forward=size(config, "n_inner", 4 * hidden),
        context=positions,
        positions=positions,
        windows=(0,) * layers,
        ropes=(None,) * layers,
        epsilon=real(config, "layer_norm_epsilon", 1e-5),
        activation=activation_of(config, "activation_function"),
        norms=IN_ORDER,
        names=GPT2,
        biases=frozenset({"c_attn", "c_proj", "c_fc"}),
        transposed=True,
        attention_scale=(
            (hidden // heads) ** -0.5 if flag(config, "scale_attn_weights", True) else 1.0
        ),
        **_common(config, hidden, heads),
    )


def gpt_neo_shape(config: Config) -> DecoderShape:
    """GPT-Neo: some layers see a window only, and scores are not scaled."""
    config = _with_own_names({**DEFAULTS, **config}, NEO_SIZES)
    hidden, heads = size(config, "hidden_size"), size(config, "num_heads")
    layers, positions = layer_count(config, "num_layers"), size(config, "max_position_embeddings")
    return DecoderShape(
        family="gpt_neo",
        layers=layers,
        feed_forward=size(config, "intermediate_size", 4 * hidden),
        context=positions,
        positions=positions,
        windows=_windows(config, layers),
        ropes=(None,) * layers,
        epsilon=real(config, "layer_norm_epsilon", 1e-5),
        activation=activation_of(config, "activation_function"),
        norms=IN_ORDER,
        names=NEO,
        biases=frozenset({"out_proj", "c_fc", "c_proj"}),
        attention_scale=1.0,
        **_common(config, hidden, heads),
    )


def gpt_neox_shape(config: Config) -> DecoderShape:
    """GPT-NeoX, which Pythia is: no table, three in one matrix head by head, blocks side by side."""
    config = {"hidden_act": "gelu", **config}
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    layers = layer_count(config, "num_hidden_layers")
    biased = flag(config, "attention_bias", True)
    return DecoderShape(
        family="gpt_neox",
        layers=layers,
        feed_forward=size(config, "intermediate_size"),
        context=size(config, "max_position_embeddings"),
        windows=(0,) * layers,
        ropes=(_part_rope(config, hidden // heads),) * layers,
        epsilon=real(config, "layer_norm_eps", 1e-5),
        activation=activation_of(config, "hidden_act"),
        norms=Norms(),
        names=NEOX,
        biases=frozenset(
            {"dense_h_to_4h", "dense_4h_to_h", *(("query_key_value", "dense") if biased else ())}
        ),
        by_head=True,
        parallel=flag(config, "use_parallel_residual", True),
        attention_scale=(hidden // heads) ** -0.5,
        **_common(config, hidden, heads),
    )


GPT: dict[str, Callable[[Config], DecoderShape]] = {
    "gpt2": gpt2_shape,
    "gpt_neo": gpt_neo_shape,
    "gpt_neox": gpt_neox_shape,
}


def _with_own_names(config: Config, sizes: Mapping[str, str]) -> Config:
    """With the family's own names of sizes, where a config has the general ones."""
    return {
        **{own: config[general] for general, own in sizes.items() if general in config},
        **config,
    }


def _common(config: Config, hidden: int, heads: int) -> dict[str, Any]:
    """What all of them have: as many heads of keys as of queries, which fill a row."""
    if hidden % heads:
        raise ArtefactError(f"{CONFIG}: {heads} heads do not divide {hidden} numbers", "correct it")
    if config.get("head_dim") not in (None, hidden // heads):
        raise ArtefactError(f"{CONFIG}: heads of another size than a row's share", OTHER)
    verify_heads(heads, heads, hidden // heads)
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_size": hidden // heads,
        "vocabulary": size(config, "vocab_size"),
        "tied": flag(config, "tie_word_embeddings", False),
        "centred": True,
        "gated": False,
    }


def _windows(config: Config, layers: int) -> tuple[int, ...]:
    """Per layer, of ``attention_types``: [[kinds, times], …], each list of kinds so many times."""
    said = config.get("attention_types")
    said = KINDS if said is None else said
    kinds: list[object] = []
    try:
        for part, times in said:
            if type(times) is not int or not 0 <= times <= MOST_LAYERS or len(kinds) > layers:
                raise ValueError
            kinds += [*part] * times
    except (TypeError, ValueError):
        raise ArtefactError(
            f"{CONFIG}: `attention_types` is {shown(said)}, no lists of kinds with how often",
            "take the config.json that belongs to the checkpoint",
        ) from None
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        raise ArtefactError(
            f"{CONFIG}: `attention_types` says other than `global` or `local` for {layers} layers",
            "take the config.json that belongs to the checkpoint",
        )
    window = size(config, "window_size", 256)
    return tuple(window if kind == "local" else 0 for kind in kinds)


def _part_rope(config: Config, head_size: int) -> Rope:
    """The rope of the first numbers of each head, a quarter where nothing is said."""
    said = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(said, Mapping):
        raise ArtefactError(f"{CONFIG}: `rope_parameters` is no table", "correct it")
    share = real(said, "partial_rotary_factor", real(config, "rotary_pct", 0.25))
    rest = {key: value for key, value in said.items() if key != "partial_rotary_factor"}
    rope = rope_as_said(rest, real(config, "rotary_emb_base", 10_000.0))
    turning = int(head_size * min(share, 2.0))
    if turning % TURNED_AT_ONCE or not 0 < turning <= head_size:
        raise ArtefactError(
            f"{CONFIG}: {turning} of {head_size} numbers of a head turn; they have to be a multiple "
            f"of {TURNED_AT_ONCE}",
            OTHER,
        )
    return replace(rope, turning=turning if turning < head_size else 0)
