#!/usr/bin/env bash
# One would guess that an option of a library is no fault to the same library: LoraConfig(lora_bias=True) gives the
# second factor a bias, and a bias has one dimension. peft 0.21.2 takes every tensor below lora_A or lora_B with fewer
# than two dimensions for the rest of a sharded model: save_pretrained warns that all of them "have invalid shape",
# blames DeepSpeed or FSDP, and advises to gather parameters, on a CPU with neither. The file is whole and loads.
# It matters here: biases of linears travel in PEFT folders as such biases (method = "bias"), so whoever saves such an
# adapter again from peft is told that it is broken. fedge writes these folders itself, and says what the warning is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import sys
import warnings

import peft
import torch
from safetensors.torch import load_file
from torch import nn

model = nn.Sequential(nn.Linear(4, 3))
adapted = peft.get_peft_model(
    model, peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"], lora_bias=True, init_lora_weights=True)
)
with torch.no_grad():
    adapted.base_model.model[0].lora_B["default"].bias += 2.0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    adapted.save_pretrained(sys.argv[1])
said = [str(each.message) for each in caught if "invalid shape" in str(each.message)]
x = torch.ones(1, 4)
again = peft.PeftModel.from_pretrained(nn.Sequential(model[0].base_layer), sys.argv[1])
same = torch.equal(again(x), adapted(x))
shapes = {name: tuple(value.shape) for name, value in load_file(f"{sys.argv[1]}/adapter_model.safetensors").items()}
print("versions", peft.__version__, torch.__version__)
print("saved", shapes)
print("warned", said)
print("loaded again, it answers the same:", same)
sys.exit(0 if len(said) == 1 and "DeepSpeed" in said[0] and same else 1)
END
"$folder/venv/bin/python" "$folder/observe.py" "$folder/adapter"
