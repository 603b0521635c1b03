"""The texts in the folder of a merged model: how to open it, and why the base itself is not merged."""

from __future__ import annotations

from protocol.manifest import Manifest
from protocol.peft_format import ReleaseNote
from protocol.peft_opener import CLASSIFIER

OPENER_FILE, OPENER_MODULE = "open_model.py", "open_model"

OPENER = f'''"""Opens the model in this folder by torch and transformers; written by fedge.

    from {OPENER_MODULE} import pipeline

    pipeline("FOLDER")(["a text"])
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def pipeline(folder):
    """A text-classification pipeline of transformers; texts are cut as in training."""
    tokenizer, level = AutoTokenizer.from_pretrained(folder), transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)  # it lists classes that it knows
    try:
        return transformers.pipeline(
            "text-classification", model=load(folder), tokenizer=tokenizer, truncation=True
        )
    finally:
        transformers.logging.set_verbosity(level)


def load(folder):
    """The model, ready to answer, in float32 whatever its files are stored in."""
    folder = Path(folder)
    settings = json.loads((folder / "head.json").read_text("utf-8"))
    head = load_file(folder / "head.safetensors")
    options = _without_pooler(AutoConfig.from_pretrained(folder / "encoder"))
    encoder = AutoModel.from_pretrained(folder / "encoder", dtype=torch.float32, **options)
    model = Classifier(encoder, None, settings["pooling"], "head", settings["labels"])
    model.get_submodule("head").load_state_dict(head)
    return model.eval()

{CLASSIFIER}'''

UNMERGED = """The base on devices stays as it is, with the adapter beside it: its weights are codes of a
few bits, and an adapter's change is mostly smaller than half a step between two of them. Merged and
rounded to codes again it would be gone. So this model is a copy in floating point, for programs that take
nothing else: larger, no longer the base that other adapters run on, and not in the run's log."""

HF = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="FOLDER", truncation=True)  # FOLDER is this one
print(classify(["a text"]))
```

`truncation=True` cuts texts as in training, to {most} tokens."""

OWN_HF = """It pools by {pooling}, and no class of transformers that `pipeline` opens by itself does that
before a head. So the encoder lies in `encoder` (for `AutoModel`), the head beside it, and `{file}` puts
them together with torch and transformers alone:

```python
import sys

sys.path.append("FOLDER")  # this one
from {module} import pipeline

print(pipeline("FOLDER")(["a text"]))
```"""

ONNX = """`model.onnx` holds all of it; `tokenizer.json` cuts and pads as in training; `labels.json` names
the logits:

```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("FOLDER/tokenizer.json")  # FOLDER is this one
session = onnxruntime.InferenceSession("FOLDER/model.onnx", providers=["CPUExecutionProvider"])
encoded = tokenizer.encode_batch(["a text"])
ids = np.array([text.ids for text in encoded], np.int64)
mask = np.array([text.attention_mask for text in encoded], np.int64)
(logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
with open("FOLDER/labels.json", encoding="utf-8") as file:
    labels = json.load(file)
print([labels[index] for index in logits.argmax(1)])
```"""

HALF = """Its matrices are stored in 16 bits and widened when it is opened: parity.json says what that
costs."""


def card(manifest: Manifest, note: ReleaseNote, *, kind: str, bits: int) -> str:
    """The text of ``README.md``."""
    if kind == "onnx":
        how = ONNX
    elif manifest.pooling == "pooler":
        how = HF.format(most=note.max_length)
    else:
        how = OWN_HF.format(pooling=manifest.pooling, file=OPENER_FILE, module=OPENER_MODULE)
    return f"""# {note.plan_name}, round {note.round}, merged

Base `{manifest.fingerprint}` and adapter `{note.adapter_digest}` as one model. {HALF if bits == 16 else ""}
How near its answers are to the released adapter's in ONNX Runtime is in `parity.json`. Its logits are
divided by the release's temperature already: their softmax gives the probabilities that a device says.

{how}

{UNMERGED}
"""
