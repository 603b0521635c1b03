#!/usr/bin/env bash
# One would guess that a model with a trained prompt, called with `past_key_values` that it gave itself, goes on where the
# text ended: so it is without peft, and so `generate` does. peft 0.21.2 puts the soft prompt before the new tokens again
# at every such call (PROMPT_TUNING), and replaces the cache that it is handed by its own prefix (PREFIX_TUNING): the last
# token is read as if it were the first behind the prompt. There is no error and no warning, and the logits look sound.
# It matters here: who compares a device's step by step decoding with torch, or writes a loop of his own to stream, compares
# with another model. fedge follows the device's tokens in one run of the whole text, without a cache.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import importlib.metadata
import sys
import warnings

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
TEXT = torch.tensor([[5, 9, 3, 7, 11, 4]])


def model_with(config):
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        )
    )
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    if config is None:
        return base.eval()
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    return model.eval()


def apart(config):
    """How far the logits of the last token with a cache are from those of the whole text, relative."""
    model = model_with(config)
    with torch.no_grad():
        whole = model(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits[0, -1]
        first = model(input_ids=TEXT[:, :-1], attention_mask=torch.ones_like(TEXT[:, :-1]), use_cache=True)
        step = model(input_ids=TEXT[:, -1:], past_key_values=first.past_key_values, use_cache=True)
    return float((step.logits[0, -1] - whole).norm() / whole.norm())


for package in ("torch", "transformers", "peft"):
    print(package, importlib.metadata.version(package))
plain = apart(None)
prompt = apart(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
prefix = apart(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
print(f"one cached step against the whole text, relative: without peft {plain:.1e}, prompt {prompt:.2f}, prefix {prefix:.2f}")
sys.exit(0 if plain < 1e-4 and prompt > 0.02 and prefix > 0.02 else 1)
END
"$folder/venv/bin/python" "$folder/observe.py"
