"""The file ``open_adapter.py`` of a PEFT folder of a base that reads files. (P-5.1)"""

from __future__ import annotations

from protocol.peft_opener import OPENER_MODULE


def preface(*, reader: str, example: str, imports: str, of: str = '"BASE"') -> str:
    """What it says of itself, and what it needs; ``reader``: its function that reads files, ``of`` what."""
    return f'''"""Opens the adapter in this folder by torch, transformers and peft; written by fedge.

    from {OPENER_MODULE} import load, {reader}

    model = load("FOLDER", "BASE")
    inputs = {reader}({of})(["{example}"])
    model.config.id2label[int(model(**inputs).logits.argmax())]

BASE is the folder of the base that the adapter was trained on (its codes: the answers are the trained
ones), or the Hugging Face model that the base was built from, as a folder or an id. There the weights
are not rounded to codes: the answers are near, not equal.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel, get_peft_config, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
{imports}
'''
