"""The model card of a published adapter: it follows from plan, base, round and privacy. (P-5.1)"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from protocol.decoder_manifest import WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.manifest import HeadManifest
from protocol.manifests import AnyManifest
from protocol.media import IMAGE, SOUND, Medium
from protocol.media_manifest import SortingMediaManifest
from protocol.methods import method_of
from protocol.methods.base import Method
from protocol.peft_format import fits_ordinary_class
from protocol.peft_opener import OPENER_FILE, OPENER_MODULE
from protocol.plan import Plan
from protocol.tasks.base import OutputTask
from protocol.tasks.image_generation import ImageGeneration

# By medium: what in a folder's module reads files, an example, and what that needs.
OPENING: dict[Medium, tuple[str, str, str]] = {
    IMAGE: ("pixels", "an image.png", "torch, transformers, peft and Pillow"),
    SOUND: ("features", "a sound.wav", "torch, transformers and peft"),
}
PAGES = ("pages", "a page.json", "torch, transformers and peft")
ORDINARY = {
    IMAGE: "AutoModelForImageClassification",
    SOUND: "AutoModelForAudioClassification",
}


def model_card(
    plan: Plan,
    manifest: AnyManifest,
    round_number: int,
    secure: bool,
    privacy: Mapping[str, Any] | None,
) -> str:
    """The text of ``README.md``; ``privacy`` is the record's, None without any. (P-5.1)"""
    seen = (
        "The coordinator saw sums of updates only."
        if secure
        else "INSECURE exchange: the coordinator saw every client's update."
    )
    match manifest:
        case WritingManifest():
            use = _writing(plan)
        case SortingMediaManifest():
            use = _of_files(plan, manifest)
        case DenoiserManifest():
            use = _drawing(plan, manifest)
        case _:
            use = _of_pages(plan, manifest) if manifest.boxed else _sorting(plan, manifest)
    return f"""---
library_name: peft
base_model: {json.dumps(manifest.source)}
---
# {plan.name}, round {round_number}

An adapter trained by federated rounds with fedge: method `{plan.adapter.method}`, rule `{plan.rule.name}`,
{plan.task.said}.
It belongs to the base with fingerprint `{manifest.fingerprint}` and computes nothing sensible on another.

{use}

{seen} {_spent(privacy)}{_kept(plan)}
"""


def _kept(plan: Plan) -> str:
    if plan.release.keep == 1:
        return ""
    return (
        f"\n\nOf each tensor but the head's the share {plan.release.keep:g} of the largest magnitudes is in "
        "here; the other numbers are 0."
    )


def _writing(plan: Plan) -> str:
    """How an adapter of a base that writes is opened: by the ordinary classes."""
    how = """tokenizer.apply_chat_template(
    [{"role": "user", "content": "a question"}],
    add_generation_prompt=True, return_dict=True, return_tensors="pt",
)"""
    kind = "AutoModelForCausalLM" if plan.task.kind == "causal-lm" else "AutoModelForSeq2SeqLM"
    if plan.task.kind != "causal-lm" or plan.task.form == "text":
        how = 'tokenizer("a text", return_tensors="pt")'
    if method_of(plan.adapter).own_opener:
        opening = f"""import sys

from transformers import AutoTokenizer

sys.path.append("FOLDER")  # this one
from {OPENER_MODULE} import load

model = load("FOLDER", "MODEL")"""
    else:
        opening = f"""from peft import PeftModel
from transformers import {kind}, AutoTokenizer

model = PeftModel.from_pretrained({kind}.from_pretrained("MODEL"), "FOLDER")  # this one"""
    return f"""It opens on the model that the base was built from, with torch, transformers and peft:

```python
{opening}
tokenizer = AutoTokenizer.from_pretrained("MODEL")
inputs = {how}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

MODEL is that model; there the weights are not rounded, and the answers are near, not equal."""


def _drawing(plan: Plan, manifest: DenoiserManifest) -> str:
    """How an adapter of a base that draws is opened: by diffusers' class, which has its module paths."""
    assert isinstance(plan.task, ImageGeneration)
    labels = ", ".join(json.dumps(label, ensure_ascii=False) for label in plan.task.labels[:20])
    more = ", …" if len(plan.task.labels) > 20 else ""
    return f"""It draws images of: {labels}{more}; a label's place in that list is its class.

A model that draws may draw images that it was trained on, or parts of them.

It opens on the model that the base was built from, with torch, diffusers and peft:

```python
from diffusers import DiTTransformer2DModel
from peft import PeftModel

model = DiTTransformer2DModel.from_pretrained("MODEL", subfolder="transformer")
model = PeftModel.from_pretrained(model, "FOLDER")  # this one
noise = model(images, timestep=steps, class_labels=classes).sample[:, :{manifest.pixels.channels}]
```

MODEL is that model's folder; there the weights are not rounded, and the noise is near, not equal."""


def _of_files(plan: Plan, manifest: SortingMediaManifest) -> str:
    """How an adapter of a base of images or sounds is opened; the sentences are those of texts."""
    return _read(plan, manifest, OPENING[manifest.MEDIUM], '"BASE"')


def _of_pages(plan: Plan, manifest: HeadManifest) -> str:
    """The same of documents, of which pages are cut as in training."""
    text = _read(plan, manifest, PAGES, '"FOLDER", "BASE"')
    if not (tokens := method_of(plan.adapter).tokens(plan.adapter)):
        return text
    more = (
        f"The ordinary class wants boxes for the prompt as well: {tokens} of zeros before a page's."
    )
    return f"{text}\n\n{more}"


def _read(plan: Plan, manifest: HeadManifest, opening: tuple[str, str, str], arguments: str) -> str:
    reader, example, needed = opening
    return f"""{_ordinary(manifest, method_of(plan.adapter))} `{OPENER_FILE}` in this folder opens it, \
with {needed} alone:

```python
import sys

sys.path.append("FOLDER")  # this one
from {OPENER_MODULE} import load, {reader}

model = load("FOLDER", "BASE")
inputs = {reader}({arguments})(["{example}"])
print(model.config.id2label[int(model(**inputs).logits.argmax())])
```

BASE is the folder of that base, or the model that it was built from; there the weights are not rounded,
and the answers are near, not equal."""


def _sorting(plan: Plan, manifest: HeadManifest) -> str:
    """How an adapter of an encoder is opened: by the module in its folder."""
    assert isinstance(plan.task, OutputTask)
    return f"""{_ordinary(manifest, method_of(plan.adapter))} `{OPENER_FILE}` in this folder opens it, \
with torch, transformers and peft alone:

```python
import sys

sys.path.append("FOLDER")  # this one
from {OPENER_MODULE} import load, tokenizer

model = load("FOLDER", "BASE")
inputs = tokenizer("BASE")(
    {plan.task.asked}, padding=True, truncation=True, max_length={plan.task.max_length}, return_tensors="pt"
)
{plan.task.shown}
```

BASE is the folder of that base, or the model that it was built from; there the weights are not rounded,
and the answers are near, not equal."""


def _ordinary(manifest: HeadManifest, method: Method[Any]) -> str:
    ordinary = "AutoModelForSequenceClassification"
    if isinstance(manifest, SortingMediaManifest):
        ordinary = ORDINARY[manifest.MEDIUM]
    if not method.of_peft:
        return f"peft has no adapters of type {method.peft_type}, and refuses this folder with a KeyError."
    if method.own_opener:
        return (
            f"What is in here is relative to the base, which peft's {method.peft_type} is not: so there "
            f"is no head of `{ordinary}`'s name, and peft refuses it with a KeyError."
        )
    if fits_ordinary_class(manifest.family, manifest.pooling):
        return (
            "On the model that the base was built from, `PeftModel.from_pretrained` over "
            f"`{ordinary}` works."
        )
    return (
        f"`{ordinary}` has another layer before the head or pools otherwise than "
        f"this base ({manifest.pooling}), and would answer nonsense: so there is no head of that class's "
        "name in here, and peft refuses it with a KeyError."
    )


def _spent(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return "There is no differential privacy: it may reveal single rows of a client."
    return (
        f"Differential privacy of one client's whole update ({privacy['mechanism']} noise): epsilon "
        f"{privacy['epsilon']:.3f} at delta {privacy['delta']:g}."
    )
