"""Tiny random models of every kind, as transformers writes them, and what transformers makes of a base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from tests.unit.base_model.decoder.models import write_words

# By kind: the family, and what makes it unlike the others; ``head``: it has an output layer of its own.
KINDS: dict[str, dict[str, Any]] = {
    "t5": {"family": "t5", "feed_forward_proj": "relu"},
    "t5-1.1": {
        "family": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "head": True,
    },
    "mt5": {"family": "mt5", "num_decoder_layers": 3, "head": True},
    "bart": {"family": "bart", "scale_embedding": True, "decoder_layers": 3},
}
T5: dict[str, Any] = {
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    **{
        f"{stack}_{name}": size
        for stack in ("encoder", "decoder")
        for name, size in (("attention_heads", 4), ("ffn_dim", 96))
    },
    "max_position_embeddings": 96,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
Array = npt.NDArray[np.float32]


def write_model(folder: Path, kind: str = "t5", *, seed: int = 0, **settings: Any) -> Path:
    """A folder with two layers a stack of 64 numbers, 4 heads of 16, and buckets that a few tokens fill."""
    folder.mkdir(parents=True)
    named = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    size = write_words(folder, ["<pad>", "</s>", "<unk>"], form="$A </s>", **named)
    settings = {**KINDS[kind], **settings}
    family, head = settings.pop("family"), settings.pop("head", False)
    asked = {
        "vocab_size": size,
        "d_model": 64,
        **(BART if family == "bart" else T5),
        "pad_token_id": 0,
        "eos_token_id": 1,
        **settings,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **asked)).float()
        for name, parameter in model.named_parameters():
            vector = float(parameter.ndim == 1 and not name.endswith("bias"))
            spread = 0.3 if parameter.ndim == 1 else 0.15
            if "relative" in name or "embed_positions" in name:
                spread = 1.0
            if name.endswith(".q.weight"):
                spread = 0.05  # scores are not scaled down
            torch.nn.init.normal_(parameter, vector, spread)
        model.save_pretrained(folder)
        if head:
            path = folder / "model.safetensors"
            tensors = load_file(path)
            tensors["lm_head.weight"] = 0.25 * torch.randn_like(tensors["shared.weight"])
            save_file(tensors, path, metadata={"format": "pt"})
    return folder


def oracle(folder: Path, floats: Mapping[str, Array]) -> PreTrainedModel:
    """transformers' model of the source with the numbers of a base."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    tensors = {name: torch.from_numpy(value.copy()) for name, value in floats.items()}
    inside = "" if "shared.weight" in tensors else "model."
    words = tensors[f"{inside}shared.weight"]
    for stack in ("encoder", "decoder"):
        tensors[f"{inside}{stack}.embed_tokens.weight"] = words
    tensors.setdefault("lm_head.weight", words)
    if inside:
        tensors["final_logits_bias"] = torch.zeros(1, len(words))
    model.load_state_dict(tensors)
    return model.requires_grad_(False)


def torch_logits(
    model: PreTrainedModel,
    source: npt.NDArray[np.int64],
    written: npt.NDArray[np.int64],
    mask: npt.NDArray[np.int64] | None = None,
) -> Array:
    """(rows, tokens, vocabulary), all at once and without a cache."""
    given = {"input_ids": source, "decoder_input_ids": written}
    given["attention_mask"] = np.ones_like(source) if mask is None else mask
    asked = {name: torch.from_numpy(np.asarray(value)) for name, value in given.items()}
    return model(**asked, use_cache=False).logits.numpy()


def torch_greedy(
    model: PreTrainedModel, source: list[int], start: int, count: int
) -> tuple[list[int], list[Array]]:
    """``count`` tokens and the logits that led to each, every token from all that was written anew."""
    written, seen = [start], []
    ids = torch.tensor([source])
    states = model.get_encoder()(input_ids=ids, attention_mask=torch.ones_like(ids))
    for _ in range(count):
        given = {"encoder_outputs": states, "decoder_input_ids": torch.tensor([written])}
        logits = model(**given, attention_mask=torch.ones_like(ids), use_cache=False).logits
        seen.append(logits[0, -1].numpy())
        written.append(int(seen[-1].argmax()))
    return written[1:], seen
