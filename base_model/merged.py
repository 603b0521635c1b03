"""Base and adapter as one float model, a Hugging Face folder or an ONNX file. (docs/adr/0033)

The values that the codes stand for plus ``s B A``: never codes again, which would lose the adapter. What is
written is opened as its user opens it and compared with the released adapter in ONNX Runtime.
"""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from base_model.encoder import EncoderClassifier
from base_model.export import export_graph
from base_model.families import FAMILIES
from base_model.files import folder_that_appears, writing
from base_model.frozen_linears import stored_linears
from base_model.merged_texts import OPENER, OPENER_FILE, card
from base_model.parity import Array, Bounds, compare
from base_model.peft_folder import published_of, read_note, read_peft
from base_model.release import ROWS, edge_session
from base_model.store import OpenBase, open_base
from protocol.errors import ArtefactError
from protocol.forms import BOTTLENECK, DOWN, SCALE, SHIFT, SOFT_PROMPT, UP
from protocol.layout import Tensors
from protocol.manifest import TOKENIZER
from protocol.peft_format import CARD_FILE, EDGE_FILE, Parity, ParityError, ReleaseNote, to_edge

transformers.utils.logging.disable_progress_bar()  # the commands draw their own

HALF_BOUND = 1e-2  # of a row's largest logit: a float16 has 11 bits
GRAPH, LABELS, PARITY, HEAD_FILE, SETTINGS = (
    "model.onnx",
    "labels.json",
    "parity.json",
    "head.safetensors",
    "head.json",
)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The float32 model, ready to answer, and the soft prompt (n, hidden) in front of its texts, if any."""

    opened: OpenBase
    note: ReleaseNote
    model: EncoderClassifier
    prompt: Array | None
    bits: int


def write_merged(
    adapter: Path, base: Path, out: Path, *, kind: str, bits: int, texts: list[str], bounds: Bounds
) -> Parity:
    """Write the folder ``out``, whole or not at all; how near it is to the released adapter on ``texts``.

    ``kind`` is ``hf`` or ``onnx``, ``bits`` 16 or 32 for the numbers in the files; ``bounds`` hold at 32.
    Raises ArtefactError for what cannot be merged, ParityError where the answers are too far away.
    """
    merged = _merge(adapter, base, bits)
    reference = _released_logits(merged.opened, adapter, texts, merged.note.max_length)
    reference = reference / np.float32(temperature_of(merged.note))
    write = {"hf": _write_folder, "onnx": _write_onnx}[kind]
    allowed = bounds if bits == 32 else Bounds(relative=HALF_BOUND)
    with writing(out), folder_that_appears(out) as folder:
        answer = write(merged, folder)
        parity = compare(reference, answer(texts), allowed)
        if not parity.max_relative <= parity.bound:
            raise ParityError(
                f"{out}: the merged model and the adapter differ by {parity.max_relative:.2e}, "
                f"the bound is {parity.bound:.0e}",
                "write it with 32 bits" if bits == 16 else "use the adapter unmerged",
                parity,
            )
        about = {
            "against": "the released adapter on the base's graph, in ONNX Runtime",
            "bits": bits,
            "round": merged.note.round,
            "adapter_digest": merged.note.adapter_digest,
            "base_fingerprint": merged.note.base_fingerprint,
            "temperature": temperature_of(merged.note),
        }
        _write_json(folder / PARITY, parity.model_dump(mode="json") | about)
        text = card(merged.opened.manifest, merged.note, kind=kind, bits=bits)
        (folder / CARD_FILE).write_text(text, "utf-8")
    return parity


def _merge(adapter: Path, base: Path, bits: int) -> Merged:
    note = read_note(adapter)
    opened = open_base(base, labels=len(note.labels))
    linears = stored_linears(base, opened.manifest)
    slots = to_edge(read_peft(adapter), published=published_of(adapter), linears=linears)
    if any(name.endswith(BOTTLENECK) for name in slots):
        raise ArtefactError(
            f"{adapter}: a bottleneck is no weight of its base", "use the adapter unmerged"
        )
    values = _values(opened, slots, temperature_of(note))
    if bits == 16:
        values = {name: value.to(_stored(value)).float() for name, value in values.items()}
    if odd := sorted(name for name, value in values.items() if not value.isfinite().all()):
        raise ArtefactError(f"{odd[0]} has values beyond {bits} bits", "write it with 32 bits")
    config = _config(opened.model.config, note.labels)
    # eager attention exports to plain matrix products, in every family
    model = EncoderClassifier(
        config,
        pooling=opened.manifest.pooling,
        labels=len(note.labels),
        attention="eager",
    )
    model.load_state_dict(values)
    model.float().eval().requires_grad_(False)
    return Merged(opened=opened, note=note, model=model, prompt=slots.get(SOFT_PROMPT), bits=bits)


def _config(source: PretrainedConfig, labels: list[str]) -> PretrainedConfig:
    """What the encoder is, the labels, and that a text has one: nothing else of the source's config.

    What the source's author set for a pipeline (sigmoids for many labels, parameters by task, tuples in
    place of named outputs) would change what the merged model answers.
    """
    kind = type(source)
    own = kind().to_dict().keys() - PretrainedConfig().to_dict().keys()
    return kind(
        **{name: value for name, value in source.to_dict().items() if name in own},
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
    )


def temperature_of(note: ReleaseNote) -> float:
    """What a device divides the logits by before it says probabilities. (P-5.5)"""
    return note.calibration.temperature if note.calibration else 1.0


def _values(opened: OpenBase, slots: Tensors, temperature: float) -> dict[str, Tensor]:
    """Every parameter of the merged model by name, float32; products in float64.

    What the answering graph does with ``slots`` (P-1.11) is done to the weights. The head is divided by the
    temperature: others' softmax then gives a device's probabilities.
    """
    values = {name: value.detach() for name, value in opened.model.named_parameters()}
    for linear in opened.manifest.linears:
        name = f"{linear.path}.weight"
        weight = opened.model.get_submodule(linear.path).weight
        assert isinstance(weight, Tensor)
        values[name] = weight.detach().as_subclass(Tensor)
    for slot, value in slots.items():
        path, exact = slot.rpartition(".")[0], torch.from_numpy(value).double()
        if slot.endswith(SHIFT):
            values[f"{path}.bias"] = (values[f"{path}.bias"].double() + exact).float()
    narrow = {linear.path for linear in opened.manifest.linears if linear.narrows}
    for slot, value in slots.items():  # behind the shifts, which are scaled as well
        path, exact = slot.rpartition(".")[0], torch.from_numpy(value).double()
        for name in (f"{path}.weight", f"{path}.bias") if slot.endswith(SCALE) else ():
            if path in narrow and name.endswith("bias"):
                continue  # its inputs are scaled
            rows = values[name].dim() > 1 and path not in narrow
            values[name] = (values[name].double() * (exact[:, None] if rows else exact)).float()
    for linear in opened.manifest.linears:  # beside what is scaled, but for what scales the inputs
        if linear.path + DOWN in slots:
            down, up = (slots[linear.path + end].astype(np.float64) for end in (DOWN, UP))
            if linear.narrows and linear.path + SCALE in slots:
                down = down * slots[linear.path + SCALE][:, None]
            name = f"{linear.path}.weight"
            values[name] = (values[name].double() + torch.from_numpy((down @ up).T)).float()
    head = opened.manifest.head.path
    return values | {
        f"{head}.{end}": torch.from_numpy(slots[f"{head}.{end}"] / np.float32(temperature))
        for end in ("weight", "bias")
    }


# -- a Hugging Face folder ------------------------------------------------------------------------


def _write_folder(merged: Merged, folder: Path) -> Callable[[list[str]], Array]:
    """The ordinary class where the base pools as that does; else the encoder, a head, and what opens them."""
    if merged.prompt is not None:
        raise ArtefactError(
            "a soft prompt is no weight of a Hugging Face model", "write it with --merged onnx"
        )
    _write_tokenizer(merged, folder)
    if merged.opened.manifest.pooling == "pooler":
        _save(_ordinary(merged.model), folder, merged.bits)
        opened = AutoModelForSequenceClassification.from_pretrained(folder)
    else:
        model = merged.model
        _save(model.get_submodule(model.prefix), folder / "encoder", merged.bits)
        save_file(model.classifier.state_dict(), folder / HEAD_FILE)
        labels = merged.note.labels
        _write_json(
            folder / SETTINGS, {"pooling": merged.opened.manifest.pooling, "labels": labels}
        )
        (folder / OPENER_FILE).write_text(OPENER, "utf-8")
        opened = runpy.run_path(str(folder / OPENER_FILE))["load"](folder)
    return lambda texts: _transformers_logits(opened.eval(), folder, texts)


def _stored(value: Tensor) -> torch.dtype:
    """Of a tensor in files of 16 bits: vectors stay, as all that passes a norm carries their rounding."""
    return torch.float16 if value.dim() > 1 else torch.float32


def _save(model: Any, folder: Path, bits: int) -> None:
    """transformers' own folder. Its config says float32: whoever opens it computes in that, as devices do."""
    values = model.state_dict()
    if bits == 16:
        values = {name: value.to(_stored(value)) for name, value in values.items()}
    model.save_pretrained(folder, state_dict=values)


def _ordinary(model: EncoderClassifier) -> Any:
    """``AutoModelForSequenceClassification`` with the same values under its names."""
    family = FAMILIES[model.config.model_type]
    names = {"classifier": family.out} | (
        {family.dense[1]: family.dense[0]} if family.dense else {}
    )
    values = {}
    for name, value in model.state_dict().items():
        path, _, end = name.rpartition(".")
        values[f"{names.get(path, path)}.{end}"] = value
    ordinary = AutoModelForSequenceClassification.from_config(copy.deepcopy(model.config))
    ordinary.load_state_dict(values)
    return ordinary


def _write_tokenizer(merged: Merged, folder: Path) -> None:
    file = merged.opened.folder / TOKENIZER
    pad = json.loads(file.read_text("utf-8"))["padding"]["pad_token"]
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(file)),
        pad_token=pad,
        model_max_length=merged.note.max_length,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)


def _transformers_logits(model: Any, folder: Path, texts: list[str]) -> Array:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = []
    for start in range(0, len(texts), ROWS):
        chunk = texts[start : start + ROWS]
        inputs = tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            parts.append(model(**inputs).logits.float().numpy())
    return np.concatenate(parts)


# -- an ONNX file ---------------------------------------------------------------------------------


def _write_onnx(merged: Merged, folder: Path) -> Callable[[list[str]], Array]:
    """The file, a tokenizer that cuts and pads as in training, and the labels."""
    manifest = merged.opened.manifest
    export_graph(
        merged.model,
        manifest.linears,
        {},
        path=folder / GRAPH,
        bits=merged.bits,
        block=manifest.block,
        accuracy_level=0,
        slots=False,
        prompt=merged.prompt,
        half=merged.bits == 16,
    )
    tokenizer = Tokenizer.from_file(str(merged.opened.folder / TOKENIZER))
    tokenizer.enable_truncation(merged.note.max_length)
    tokenizer.save(str(folder / TOKENIZER))
    _write_json(folder / LABELS, merged.note.labels)
    session = ort.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    opened = Tokenizer.from_file(str(folder / TOKENIZER))
    return lambda texts: _onnx_logits(session, opened, texts, None)


def _released_logits(opened: OpenBase, adapter: Path, texts: list[str], most: int) -> Array:
    """What a device answers, (rows, labels) in the order of ``texts``."""
    if not texts:
        raise ArtefactError("there are no rows to measure parity on", "pass some texts")
    session, options, _keep = edge_session(opened.folder, adapter / EDGE_FILE)
    opened.tokenizer.enable_truncation(most)
    return _onnx_logits(session, opened.tokenizer, texts, options)


def _onnx_logits(session: Any, tokenizer: Tokenizer, texts: list[str], options: Any) -> Array:
    parts = []
    for start in range(0, len(texts), ROWS):
        encoded = tokenizer.encode_batch(texts[start : start + ROWS])
        feeds = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
        }
        parts.append(session.run(["logits"], feeds, options)[0])
    return np.concatenate(parts)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")
