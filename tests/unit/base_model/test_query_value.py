"""``targets = "query-value"`` means in every family what peft adapts there by default."""

from __future__ import annotations

import pytest
import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_PEFT
from transformers import AutoConfig, AutoModel

from base_model.decoder.families import FAMILIES as DECODERS
from base_model.decoder.families import shape_of as decoder_shape
from base_model.decoder.gpt import GPT
from base_model.families import FAMILIES as ENCODERS
from base_model.seq2seq.families import FAMILIES as SEQ2SEQ
from base_model.seq2seq.families import shape_of as seq2seq_shape
from protocol.methods.targets import QUERIES_AND_VALUES
from tests.unit.base_model.decoder.models import PARTICULAR
from tests.unit.base_model.seq2seq.models import BART, T5

# Families that peft has no default for.
OTHERS = {
    "distilbert": ["q_lin", "v_lin"],
    "mpnet": ["q", "v"],
    "phi3": ["qkv_proj"],
    **{family: ["query", "value"] for family in ("camembert", "ernie", "albert")},
    "dit": ["to_q", "to_v"],
    **{family: ["q_proj", "v_proj"] for family in ("granite", "smollm3", "olmo2", "olmo3")},
}


def paths(family: str) -> list[str]:
    """Of every linear that can be adapted, in a model of two layers."""
    if family in SEQ2SEQ:
        settings = BART if family == "bart" else T5
        config = AutoConfig.for_model(family, d_model=64, pad_token_id=0, **settings)
        return [linear.path for linear in seq2seq_shape(config.to_dict()).linears()]
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family in DECODERS:
        keys = {} if family in GPT else {"num_key_value_heads": 2}
        config = AutoConfig.for_model(family, **sizes | keys | PARTICULAR[family])
        return [linear.path for linear in decoder_shape(config.to_dict()).linears()]
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(family, **sizes))
    between = ENCODERS[family].layers
    modules = model.named_modules()
    return [path for path, m in modules if isinstance(m, torch.nn.Linear) and between in f".{path}"]


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS, *SEQ2SEQ])
def test_it_is_what_peft_adapts(family: str) -> None:
    names = {path.rpartition(".")[2] for path in paths(family)}
    assert sorted(names & QUERIES_AND_VALUES) == (BY_PEFT.get(family) or OTHERS[family])
    assert (family in OTHERS) is (family not in BY_PEFT)


def test_no_name_is_of_no_family() -> None:
    used = [
        *OTHERS.values(),
        *(BY_PEFT[f] for f in [*ENCODERS, *DECODERS, *SEQ2SEQ] if f in BY_PEFT),
    ]
    assert set().union(*used) == QUERIES_AND_VALUES
