"""The file ``open_adapter.py`` of a PEFT folder: the adapter on its base by plain transformers. (P-5.1)

Few bases compute what ``AutoModelForSequenceClassification`` would: it pools in one way per family, with
layers of its own before the head. So a folder brings the few lines that do, and where the ordinary class
computes something else it finds no head of the name that it has. (docs/adr/0032)
"""

from __future__ import annotations

OPENER_FILE, OPENER_MODULE = "open_adapter.py", "open_adapter"

# What openers share: the adapter put on a model, and the tensors that a base's codes stand for.
SHARED = '''
def _adapted(model, folder, config):
    """The adapter in `folder` on `model`, whose head has the name that the folder calls it by."""
    if config["peft_type"] in OWN:  # none of peft's
        return OWN[config["peft_type"]](model, config, load_file(folder / "adapter_model.safetensors"))
    adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    for module in adapted.modules():
        if hasattr(module, "ln_tuning_layers"):
            _multiply_in(module.base_layer, module.ln_tuning_layers["default"])
        for own in getattr(module, "lora_magnitude_vector", {}).values():  # above the base's lengths
            own.weight.data.add_(module.get_base_layer().weight.norm(dim=1))
    return adapted


@torch.no_grad()
def _multiply_in(norm, own):
    """A norm of the folder is relative to the base's: scale * (norm(x) + shift)."""
    if own.bias is not None:
        own.bias.add_(norm.bias).mul_(own.weight)
    own.weight.mul_(norm.weight)


def _with_bottlenecks(model, config, tensors):
    """An adapter of bottlenecks alone, and its head."""
    _add_bottlenecks(model, config, tensors)
    for name, parameter in model.get_submodule(model.path_of_head).named_parameters():
        key = f"base_model.model.{model.path_of_head}.{name}"
        parameter.data.copy_(tensors[key])
    return model.eval()


def _add_bottlenecks(model, config, tensors):
    """Each adds s * relu(x D + b) U to an output, x being that output or, in parallel, the target's input."""
    tensors = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}
    for target, output in zip(config["target_modules"], config["output_modules"]):
        down, bias, up = (
            nn.Parameter(tensors[f"{target}.bottleneck_{part}"]) for part in ("down", "bias", "up")
        )
        entered = []
        if target != output:
            read = model.get_submodule(target)
            read.register_forward_pre_hook(lambda _, inputs, to=entered: to.append(inputs[0]))

        def add(_module, _inputs, y, entered=entered, weights=(down, bias, up)):
            x = entered.pop() if entered else y
            down, bias, up = (weight.to(y) for weight in weights)
            return y + torch.relu(x @ down + bias) @ up * config["scaling"]

        model.get_submodule(output).register_forward_hook(add)


def _with_members(model, config, tensors):
    """Methods side by side: one inside the other as they act on a linear, a prompt around them all."""
    outer, members = model, config["members"]
    for number, member in _from_within(members):
        start, name, kind = f"{number}.", f"member_{number}", member["peft_type"]
        own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if kind == "BOTTLENECK":
            _add_bottlenecks(model, member, own)
            continue
        settings = get_peft_config({**member, "task_type": config["task_type"]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one tuner around another
            if kind not in ("PROMPT_TUNING", "PREFIX_TUNING"):
                inject_adapter_in_model(settings, model, name)
                continue
            outer = get_peft_model(model, settings, adapter_name=name)
        outer.prompt_encoder[name].embedding.weight.data.copy_(own["prompt_embeddings"])
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):  # one with two adapters of a kind uses both
            names = {n for kind in layer.adapter_layer_names for n in getattr(layer, kind)}
            layer.set_adapter(sorted(names))
    parameters = {}
    for key, parameter in model.named_parameters():
        plain = key.replace(".base_layer", "")
        for number in range(len(members)):
            if plain != (own := plain.replace(f".member_{number}", "")):
                parameters[f"{number}.base_model.model.{own}"] = parameter
    for key, value in tensors.items():
        if key in parameters:
            parameters[key].data.copy_(value)
        elif key.startswith("base_model.model."):  # the head, of which peft has a copy beside a prompt
            path, _, part = key.removeprefix("base_model.model.").rpartition(".")
            head = model.get_submodule(path)
            for module in [head, *getattr(head, "modules_to_save", {}).values()]:
                if isinstance(module, nn.Linear):
                    getattr(module, part).data.copy_(value)
    for module in model.modules():
        for own in getattr(module, "ln_tuning_layers", {}).values():
            _multiply_in(module.base_layer, own)
    if outer is not model:
        outer.register_forward_pre_hook(_keep_types, with_kwargs=True)
    return outer.eval()


def _from_within(members):
    """Numbers and settings: what shifts a linear, what scales its outputs, factors, what scales inputs."""
    order = ["SHIFT", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "NARROW", "BOTTLENECK"]
    placed = []
    for number, member in enumerate(members):
        kind = "SHIFT" if member.get("lora_bias") else member["peft_type"]
        if kind == "IA3":
            narrow = member["feedforward_modules"]
            wide = [path for path in member["target_modules"] if path not in narrow]
            for place, paths, inputs in (("IA3", wide, []), ("NARROW", narrow, narrow)):
                part = {"target_modules": paths, "feedforward_modules": inputs}
                if paths:
                    placed.append((order.index(place), number, {**member, **part}))
        else:
            place = order.index(kind) if kind in order else len(order)
            placed.append((place, number, member))
    return [(number, member) for _, number, member in sorted(placed, key=lambda each: each[0])]


OWN = {"BOTTLENECK": _with_bottlenecks, "HYBRID": _with_members}


def _keep_types(_model, arguments, named):
    """Behind a soft prompt peft drops what is called token_type_ids: which text of a pair a token is of."""
    types = named.pop("token_type_ids", None)
    return arguments, named if types is None else {**named, "segments": types}


def _is_base(base):
    return (Path(base) / "manifest.json").is_file()


def _values(base, fingerprint):
    """The tensors of a base's folder; codes become the values they stand for."""
    manifest = json.loads((Path(base) / "manifest.json").read_text("utf-8"))
    if manifest["fingerprint"] != fingerprint:
        raise ValueError(f"{base} is another base than the adapter's, {fingerprint}")
    tensors = load_file(Path(base) / "weights.safetensors")
    for linear in manifest["linears"] if manifest["bits"] in (4, 8) else ():
        codes, scales = (tensors.pop(f"{linear['path']}.{kind}") for kind in ("qweight", "scales"))
        if manifest["bits"] == 4:  # two to a byte, the lower half first
            codes = torch.stack([codes & 15, codes >> 4], -1)
        values = codes.reshape(*scales.shape, -1).float() - 2 ** (manifest["bits"] - 1)
        weight = (values * scales.unsqueeze(-1)).reshape(len(scales), -1)
        tensors[f"{linear['path']}.weight"] = weight[:, : linear["in_features"]].contiguous()
    return tensors
'''

CLASSIFIER = '''
COUNT_PADS = ("roberta", "xlm-roberta", "camembert", "mpnet")
NO_POOLER = {"distilbert": torch.relu, "electra": nn.functional.gelu}  # and what follows the head's layer


class Classifier(PreTrainedModel):
    """An encoder, its pooling, a linear head; module paths are those that the adapter was trained under."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, encoder, dense, pooling, head, labels):
        super().__init__(encoder.config)
        self.prefix = self.base_model_prefix = encoder.base_model_prefix
        self.pooling, self.path_of_head = pooling, head
        self.add_module(self.prefix, encoder)
        self.dense = dense  # of pooling `pooler`: between the first token and the head
        # without labels: one output, the share of the range of release.json
        self.add_module(head, nn.Linear(self.config.hidden_size, len(labels) or 1))
        self.config.id2label = dict(enumerate(labels))
        self.config.label2id = {label: index for index, label in enumerate(labels)}

    def get_input_embeddings(self):
        return self.get_submodule(self.prefix).get_input_embeddings()

    def forward(
        self, input_ids=None, attention_mask=None, inputs_embeds=None, segments=None, **others
    ):
        inputs = {"input_ids": input_ids}
        if inputs_embeds is not None:  # behind a soft prompt
            inputs = {"inputs_embeds": inputs_embeds, **self._positions(inputs_embeds)}
        types = others.get("token_type_ids") if segments is None else segments
        if types is not None and getattr(self.config, "type_vocab_size", 0) > 1:
            width = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            inputs["token_type_ids"] = nn.functional.pad(types, (width - types.shape[1], 0))
        encoder = self.get_submodule(self.prefix)
        hidden = encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        if self.pooling == "mean":
            weight = torch.ones_like(hidden[..., :1])
            if attention_mask is not None:
                weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        else:
            pooled = hidden[:, 0]
        if self.dense is not None:
            activation = NO_POOLER.get(self.config.model_type, torch.tanh)
            pooled = activation(self.dense(pooled))
        return SequenceClassifierOutput(logits=self.get_submodule(self.path_of_head)(pooled))

    def _positions(self, embeddings):
        """Some count positions from the ids, past pads; here the pads are known by their embedding."""
        if self.config.model_type not in COUNT_PADS:
            return {}
        pad = self.get_input_embeddings().weight[self.config.pad_token_id].to(embeddings.dtype)
        counted = (embeddings != pad).any(-1).long()
        return {"position_ids": counted.cumsum(1) * counted + self.config.pad_token_id}


def _without_pooler(config):
    """Options of AutoModel: the pooling is the classifier's here."""
    return {} if config.model_type in NO_POOLER else {"add_pooling_layer": False}
'''

OPENER = f'''"""Opens the adapter in this folder by torch, transformers and peft; written by fedge.

    from {OPENER_MODULE} import load, tokenizer

    model = load("FOLDER", "BASE")
    inputs = tokenizer("BASE")(["a text"], padding=True, truncation=True, return_tensors="pt")
    model.config.id2label[int(model(**inputs).logits.argmax())]

BASE is the folder of the base that the adapter was trained on (its codes: the answers are the trained
ones), or the Hugging Face model that the base was built from, as a folder or an id. There the weights
are not rounded to codes: the answers are near, not equal.
"""

import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel, get_peft_config, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import SequenceClassifierOutput


def load(folder, base):
    """The adapter in `folder` on `base`, ready to answer."""
    folder, base = Path(folder), str(base)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if "auto_mapping" not in config:  # of a model that writes text
        model = WRITING[config["task_type"]].from_pretrained(base, dtype=torch.float32)
        return OWN[config["peft_type"]](model, config, load_file(folder / "adapter_model.safetensors"))
    note = json.loads((folder / "release.json").read_text("utf-8"))
    pooling, (head,) = config["auto_mapping"]["pooling"], config["modules_to_save"]
    read = _of_codes if _is_base(base) else _of_source
    encoder, dense = read(base, pooling, note["base_fingerprint"])
    model = Classifier(encoder, dense, pooling, head, note["labels"])
    adapted = _adapted(model, folder, config)
    if config["peft_type"] not in OWN:
        adapted.register_forward_pre_hook(_keep_types, with_kwargs=True)
    return adapted


WRITING = {{"CAUSAL_LM": AutoModelForCausalLM, "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM}}


def tokenizer(base):
    """The base's tokenizer; cut texts to `max_length` of release.json, as in training."""
    if not _is_base(base):
        return AutoTokenizer.from_pretrained(str(base))
    file = Path(base) / "tokenizer.json"
    pad = json.loads(file.read_text("utf-8"))["padding"]["pad_token"]
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), pad_token=pad, model_input_names=names
    )


def _of_codes(base, pooling, fingerprint):
    """Encoder and inner layer of the head from a base's folder; codes become the values they stand for."""
    tensors = _values(base, fingerprint)
    config = AutoConfig.from_pretrained(base)
    encoder = AutoModel.from_config(config, **_without_pooler(config)).float()
    own, layer = encoder.base_model_prefix + ".", None
    if pooling == "pooler":
        name = "pooler" if config.model_type in NO_POOLER else f"{{own}}pooler"
        name += "" if f"{{name}}.weight" in tensors else ".dense"
        layer = nn.Linear(config.hidden_size, config.hidden_size)
        layer.load_state_dict({{k: tensors.pop(f"{{name}}.{{k}}").float() for k in ("weight", "bias")}})
    rest = {{k.removeprefix(own): v.float() for k, v in tensors.items() if k.startswith(own)}}
    missing, odd = encoder.load_state_dict(rest, strict=False)
    if missing or odd:
        raise ValueError(f"{{base}} does not fit at {{[*missing, *odd][0]}}")
    return encoder, layer


def _of_source(base, pooling, _fingerprint):
    """The same from the Hugging Face model, in float32."""
    config = AutoConfig.from_pretrained(base)
    if pooling != "pooler":
        options = _without_pooler(config)
        return AutoModel.from_pretrained(base, dtype=torch.float32, **options), None
    kinds = config.architectures or ()
    pooled = config.model_type in ("bert", "ernie", "albert")
    if pooled or not any(k.endswith("ForSequenceClassification") for k in kinds):
        encoder = AutoModel.from_pretrained(base, dtype=torch.float32)
        return encoder, getattr(encoder.pooler, "dense", encoder.pooler)
    whole = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    encoder = getattr(whole, whole.base_model_prefix)
    return encoder, whole.pre_classifier if config.model_type == "distilbert" else whole.classifier.dense

{SHARED}
{CLASSIFIER}'''
