"""An encoder with a decoder in torch: transformers' model with the numbers that a base's codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from base_model.decoder.opened import opened_tensors
from base_model.decoder.stored import floats_of
from base_model.seq2seq.families import shape_of
from base_model.source_files import read_object
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG

REPEATED = ("embed_tokens.weight", "lm_head.weight")  # the words again


def torch_seq2seq(folder: Path) -> Any:
    """``AutoModelForSeq2SeqLM`` in float32 on a verified base, in eval mode.

    Raises ArtefactError for tensors that transformers has no place for.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = dict(read_object(folder / CONFIG))
    shape = shape_of(config)
    stored = opened_tensors(folder, shape)
    family = config.pop("model_type")
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(family, **config)).float()
    widths = {f"{path}.weight": size[1] for path, size in shape.matrices().items()}
    state = {
        name: torch.from_numpy(floats_of(value, widths.get(name, 0)).copy())
        for name, value in stored.items()
    }
    words = state[f"{shape.embeddings}.weight"]
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in state and name.endswith(REPEATED):
            state[name] = words
        elif name not in state and name == "final_logits_bias":
            state[name] = torch.zeros_like(value)
    if odd := sorted(state.keys() ^ expected.keys()):
        raise ArtefactError(
            f"{folder}: {odd[0]} is not where transformers has it",
            "install the versions in constraints.txt, and build the base again",
        )
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()
