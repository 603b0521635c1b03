"""A decoder's base in torch: transformers' model with the numbers that its codes stand for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from base_model.decoder.checkpoint_names import turned_weights
from base_model.decoder.opened import opened_decoder
from base_model.decoder.stored import floats_of
from base_model.hybrid import open_hybrid
from base_model.peft_folder import published_of, read_peft
from base_model.source_files import read_object
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG
from protocol.methods.hybrid import Hybrid


def torch_decoder(folder: Path) -> Any:
    """``AutoModelForCausalLM`` in float32 on a verified base, in eval mode.

    Raises ArtefactError for tensors that transformers has no place for.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape, stored = opened_decoder(folder)
    config = dict(read_object(folder / CONFIG))
    family = config.pop("model_type")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    widths = {f"{path}.weight": size[1] for path, size in shape.matrices().items()}
    turned = turned_weights(shape)
    with torch.no_grad():
        state = {}
        for name, value in stored.items():
            floats = floats_of(value, widths.get(name, 0))
            state[name] = torch.from_numpy((floats.T if name in turned else floats).copy())
        odd = model.float().load_state_dict(state, strict=False)
    if odd.unexpected_keys or set(odd.missing_keys) - {"lm_head.weight"}:
        name = min([*odd.unexpected_keys, *odd.missing_keys])
        raise ArtefactError(
            f"{folder}: {name} is not where transformers has it",
            "install the versions in constraints.txt, and build the base again",
        )
    if odd.missing_keys:
        model.tie_weights()
    return model.requires_grad_(False).eval()


def torch_adapted(folder: Path, adapter: Path) -> Any:
    """The same under the adapter of a PEFT folder, as ``PeftModel.from_pretrained`` opens it."""
    return opened_adapter(torch_decoder(folder), adapter)


def opened_adapter(model: Any, adapter: Path) -> Any:
    """A model of transformers that writes, under an adapter: by peft, or member by member."""
    from peft import PeftModel

    published = published_of(adapter)
    if isinstance(published.method, Hybrid):
        return open_hybrid(model, adapter, published, read_peft(adapter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, str(adapter)).eval()
