"""A tiny decoder that chats, plans on it and rows of it: what tests of sites that learn text begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.verify import read_manifest
from client.data import Rows
from protocol.chat.messages import Chat, chat_from
from protocol.plan import Plan, plan_from
from tests.unit.base_model.decoder.models import write_decoder
from tests.unit.base_model.sources import WORDS_64

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)
END = 2
WORDS = WORDS_64[:8]


def build_chat_bases(folder: Path) -> dict[str, Path]:
    """A tiny llama that chats, and the same without a template."""
    bases = {}
    for name, template in (("chat", TEMPLATE), ("plain", None)):
        source = write_decoder(folder / name)
        settings = json.loads((source / "tokenizer_config.json").read_text())
        settings = {key: value for key, value in settings.items() if key != "chat_template"}
        settings |= {"chat_template": template} if template else {}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["assistant"] = vocabulary.pop(WORDS_64[-1])  # a role that the template writes
        vocabulary["user"] = vocabulary.pop(WORDS_64[-2])
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        bases[name] = folder / f"{name}-base"
        build_decoder(decoder_source(str(source)), bits=4, out=bases[name], calibration=None)
    return bases


def plan_for(base: Path, **task: Any) -> Plan:
    document = {
        "name": "t",
        "seed": 3,
        "base": {"fingerprint": read_manifest(base).fingerprint},
        "task": {"kind": "causal-lm", "max_length": 32} | task,
        "adapter": {"rank": 2, "targets": ["q_proj", "down_proj"]},
        "rule": {"name": "mean"},
        "local": {"batch_size": 3, "optimizer": "sgd", "learning_rate": 0.5, "clip_norm": 1e9},
    }
    return plan_from(document, source="test")


def chat(*contents: str) -> Chat:
    roles = ("user", "assistant")
    return chat_from([{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)])


def rows_of(*texts: Any) -> Rows:
    return Rows(texts=list(texts), targets=[""] * len(texts))


def adapt(model: Any, tensors: dict[str, Any], *, scaling: float) -> dict[str, torch.Tensor]:
    """Hang low-rank branches on a torch model; its leaves by canonical name."""
    leaves = {
        name: torch.from_numpy(value).double().requires_grad_() for name, value in tensors.items()
    }
    for path in {name.rpartition(".")[0] for name in tensors}:
        a, b = leaves[f"{path}.lora_A"], leaves[f"{path}.lora_B"]

        def branch(_module: Any, inputs: Any, output: Any, a: Any = a, b: Any = b) -> Any:
            return output + scaling * (inputs[0] @ a.T @ b.T)

        model.get_submodule(path).register_forward_hook(branch)
    return leaves
