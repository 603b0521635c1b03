#!/usr/bin/env bash
# One would guess that an adapter with a trained head is refused on a model that has no module of that name: without
# the head its answers are chance. peft 0.21.2 opens it and says nothing: a name in modules_to_save that fits no module
# is passed over, and the head's tensors in the file are dropped, whenever task_type is null. Of task_type SEQ_CLS it
# looks for "classifier" in the file itself, and stops with a KeyError.
# It matters here: folders of bases that compute otherwise than the ordinary class have a head of a name of their own,
# so that nobody opens them there (P-5.1). Of images and sounds, which need no task_type, they have SEQ_CLS therefore.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import json
import sys
import warnings
from pathlib import Path

import peft
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class Sorter(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, head):
        super().__init__(PretrainedConfig())
        self.body = nn.Linear(4, 4)
        self.add_module(head, nn.Linear(4, 2))


folder = Path(sys.argv[1])
config = peft.LoraConfig(r=1, target_modules=["body"], modules_to_save=["own_head"])
peft.get_peft_model(Sorter("own_head"), config).save_pretrained(folder)
found = {}
for task in (None, "SEQ_CLS"):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": task}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            peft.PeftModel.from_pretrained(Sorter("classifier"), folder)
            said = [w for w in map(str, (each.message for each in caught)) if "head" in w or "missing" in w]
            found[task] = f"opened, {len(said)} warnings of heads or of what is missing"
        except KeyError as error:
            found[task] = f"KeyError: {error}"
print("versions", peft.__version__, torch.__version__)
for task, what in found.items():
    print("task_type", task, "->", what)
sys.exit(0 if found[None].startswith("opened, 0") and found["SEQ_CLS"].startswith("KeyError") else 1)
END
"$folder/venv/bin/python" "$folder/observe.py" "$folder/adapter"
