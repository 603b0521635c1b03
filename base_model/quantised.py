"""A model's tensors as a base keeps them: codes of linears, everything else in float32. (P-1.3, P-1.4)"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from base_model.encoder import HeadedModel
from base_model.graph_linears import Codes
from protocol.codes import dequantise, quantise
from protocol.manifest import Linear

BLOCK = 32
Progress = Callable[[str, float], None]


def linears_of(model: HeadedModel) -> list[Linear]:
    """What is quantised, by path."""
    return [
        Linear(path=path, in_features=module.in_features, out_features=module.out_features)
        for path, module in sorted(model.linears.items())
    ]


def quantised(
    model: nn.Module, linears: list[Linear], bits: int, tell: Progress
) -> tuple[dict[str, Tensor], Codes]:
    """Tensors for the file, codes for the graph; ``model`` ends up with the values they stand for."""
    tensors = {name: value.detach().clone() for name, value in model.named_parameters()}
    codes: Codes = {}
    for number, linear in enumerate(linears):
        name = f"{linear.path}.weight"
        weight = tensors.pop(name)
        if bits == 32:
            tensors[name] = weight
        elif bits == 16:
            tensors[name] = weight.half()
            value = tensors[name].float()
        else:
            packed, scales = quantise(weight.numpy(), bits=bits, block=BLOCK)
            codes[linear.path] = packed, scales
            tensors[f"{linear.path}.qweight"] = torch.from_numpy(packed.reshape(len(packed), -1))
            tensors[f"{linear.path}.scales"] = torch.from_numpy(scales)
            value = torch.from_numpy(
                np.ascontiguousarray(
                    dequantise(packed, scales, bits=bits, in_features=linear.in_features)
                )
            )
        if bits != 32:
            model.get_parameter(name).data.copy_(value)
        tell(f"quantising to {bits} bits", 0.1 + 0.4 * number / len(linears))
    return {name: tensors[name].contiguous() for name in sorted(tensors)}, codes


def config_text(config: PretrainedConfig, labels: list[str] | None) -> str:
    """The config without what does not change the function; names of labels with a head. (P-1.10)"""
    document: dict[str, Any] = config.to_dict()
    # what differs between versions and machines, and does not change the function
    names = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
    for key in (*names, "id2label", "label2id"):
        document.pop(key, None)
    if labels:
        document["id2label"] = {str(index): name for index, name in enumerate(labels)}
        document["label2id"] = {name: index for index, name in enumerate(labels)}
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
