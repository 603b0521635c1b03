"""Random encoders that hear samples, as transformers saves them: wav2vec 2.0's and HuBERT's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

from tests.sound_models import LABELS, RATE

SECONDS, POSITIONS, LEAST = 1, 49, 420  # a position hears 420 samples, every 320
CLASSES: dict[str, tuple[Any, Any, Any, Any]] = {  # config, encoder, with its head, with another
    "wav2vec2": (
        *(Wav2Vec2Config, Wav2Vec2Model),
        *(Wav2Vec2ForSequenceClassification, Wav2Vec2ForPreTraining),
    ),
    "hubert": (HubertConfig, HubertModel, HubertForSequenceClassification, HubertForCTC),
}
# As small models are, and as large ones: norms behind layers and before them.
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {
    "wav2vec2": ("wav2vec2", BASE, False),
    "wav2vec2-large": ("wav2vec2", LARGE, True),
    "hubert": ("hubert", BASE, False),
    "hubert-large": ("hubert", LARGE, True),
    "wav2vec2-told": ("wav2vec2", BASE, True),
    "hubert-large-untold": ("hubert", LARGE, False),
    "wav2vec2-crossed": ("wav2vec2", BASE | {"do_stable_layer_norm": True}, True),
}


def waveform_preprocessing(**others: Any) -> dict[str, Any]:
    """``preprocessor_config.json`` as transformers writes it."""
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": RATE,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": True,
        "return_attention_mask": False,
    } | others


def write_waveform_source(
    folder: Path,
    kind: str = "wav2vec2",
    *,
    head: str = "",
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A tiny encoder of a kind, or with ``head`` "own" or "other" one of the classes on it."""
    folder.mkdir(parents=True)
    family, switches, masked = KINDS[kind]
    settings_of, encoder, own, other = CLASSES[family]
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    shape = settings_of(
        **{
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
            **{"intermediate_size": 48, "conv_dim": [16, 16, 16], "classifier_proj_size": 24},
            **{"conv_kernel": [20, 9, 5], "conv_stride": [10, 8, 4]},
            **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4},
            **{"num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8},
            **{"vocab_size": 12, "layerdrop": 0.0},
            **switches,
            **(named if head else {}),
            **config,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = {"": encoder, "own": own, "other": other}[head](shape)
        for name, parameter in model.float().named_parameters():  # large: the sound shall matter
            if "original0" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
                continue
            norm = "layer_norm" in name and name.endswith("weight")
            torch.nn.init.normal_(parameter, float(norm), 0.3 if parameter.ndim > 1 else 0.1)
    model.save_pretrained(folder)
    asked = settings or waveform_preprocessing(return_attention_mask=masked)
    (folder / "preprocessor_config.json").write_text(json.dumps(asked))
    return folder


def with_old_names(folder: Path) -> Path:
    """The same checkpoint with the kernel of positions as transformers of before wrote it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        (name,) = [name for name in tensors if name.endswith(f"parametrizations.weight.{new}")]
        plain = name.removesuffix(f"parametrizations.weight.{new}")
        tensors[f"{plain}{old}"] = tensors.pop(name)
    save_file(tensors, path)
    return folder
