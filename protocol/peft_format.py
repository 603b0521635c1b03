"""The published adapter: names in a PEFT folder, names in the edge graph, and release.json.

Pure mapping: no files are opened here. ``server`` writes the PEFT folder with it, ``base_model``
the ``.onnx_adapter``, ``edge_runtime`` checks against it. (P-5)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from protocol.adapter import LORA_A, LORA_B, SOFT_PROMPT, lora_scaling, target_linears
from protocol.calibration import Calibration
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.manifest import Manifest, Word

if TYPE_CHECKING:  # a device reads no plan
    from protocol.plan import Plan

PEFT_PREFIX = "base_model.model."
PROMPT_KEY = "prompt_embeddings"
CONFIG_FILE, WEIGHTS_FILE, EDGE_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.onnx_adapter",
)
RELEASE_FILE, CARD_FILE = "release.json", "README.md"
MOST_NOTE = 2**20  # bytes of a release.json
MOST_LABELS, MOST_TOKENS = 4096, 65_536  # of a task, of one text
# Whoever shows a label may not be steered by it.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
PASSPORT_FILE = "passport.tlog-proof"  # that the release is in the run's log (P-8.15)


def to_peft(tensors: Tensors) -> Tensors:
    """Canonical names to the keys of ``adapter_model.safetensors``; plain LoRA, without cores.

    Row-major: ``safetensors`` writes the memory of a transposed array as it lies.
    """
    prefix = _prefix(SOFT_PROMPT in tensors)
    return {_peft_key(name, prefix): np.ascontiguousarray(x) for name, x in tensors.items()}


def from_peft(tensors: Tensors) -> Tensors:
    """The reverse. Raises ArtefactError for a key no fedge adapter has."""
    prefix = _prefix(PROMPT_KEY in tensors)
    named: Tensors = {}
    for key, value in tensors.items():
        if key == PROMPT_KEY:
            named[SOFT_PROMPT] = value
        elif key.startswith(prefix):
            name = key.removeprefix(prefix)
            named[name.removesuffix(".weight") if ".lora_" in name else name] = value
        else:
            raise ArtefactError(
                f"adapter tensor {key!r} is not known", "use an adapter that fedge wrote"
            )
    return named


def _prefix(prompt: bool) -> str:
    # A tuner (LoRA) wraps the model once more than prompt learning does.
    return "base_model." if prompt else PEFT_PREFIX


def _peft_key(name: str, prefix: str) -> str:
    if name == SOFT_PROMPT:
        return PROMPT_KEY
    return f"{prefix}{name}.weight" if ".lora_" in name else f"{prefix}{name}"


def peft_config(plan: Plan, manifest: Manifest, *, rank: int, base_name: str) -> dict[str, Any]:
    """``adapter_config.json``. ``rank`` is the adapter's own; scaling stays the plan's."""
    head = manifest.head.path
    if plan.adapter.method == "lora":
        return {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": base_name,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": lora_scaling(plan) * rank,
            "lora_dropout": plan.adapter.dropout,
            "bias": "none",
            "target_modules": [linear.path for linear in target_linears(plan.adapter, manifest)],
            "modules_to_save": [head],
        }
    return {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": plan.adapter.tokens,
        "token_dim": manifest.hidden_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": 1,  # a prompt has none, but peft insists on a number
        "num_layers": manifest.layers,
        "prompt_tuning_init": "RANDOM",
        "modules_to_save": [head],
    }


def to_edge(tensors: Tensors, *, scaling: float) -> Tensors:
    """Canonical tensors to the edge graph's slots: ``A.T`` (in, r) and ``B.T * s`` (r, out)."""
    slots: Tensors = {}
    for name, value in tensors.items():
        if name.endswith(LORA_A):
            value = value.T
        elif name.endswith(LORA_B):
            value = value.T * np.float32(scaling)
        slots[name] = np.ascontiguousarray(value, np.float32)
    return slots


class Parity(BaseModel):
    """torch on the codes against ONNX Runtime, same adapter, same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    rows: Annotated[int, Field(gt=0, lt=2**53)]
    max_relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    label_agreement: Annotated[float, Field(ge=0, le=1)]
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ReleaseNote(BaseModel):
    """``release.json``: what an adapter belongs to and what was measured of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    format: Literal[1] = 1
    plan_name: Word
    plan_digest: Word
    base_fingerprint: Word
    round: Annotated[int, Field(ge=0, lt=2**53)]
    adapter_digest: Word
    labels: Annotated[list[Label], Field(max_length=MOST_LABELS)]
    max_length: Annotated[int, Field(gt=0, le=MOST_TOKENS)]
    exchange: Word
    files: dict[Word, Word] = Field(description="sha256 of every file beside this one")
    metrics: dict[Word, Annotated[float, Field(allow_inf_nan=False)]]
    parity: Parity | None = None
    calibration: Calibration | None = Field(
        default=None, description="of its probabilities, from the release on"
    )


def render_config(config: dict[str, Any]) -> bytes:
    """The file ``adapter_config.json``."""
    return (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()


def render_release(note: ReleaseNote) -> bytes:
    """The file ``release.json``."""
    return (json.dumps(note.model_dump(mode="json"), indent=1) + "\n").encode()


def parse_release(text: str, *, source: str) -> ReleaseNote:
    """Read ``release.json``. Raises ArtefactError."""
    try:
        return json_as(ReleaseNote, text, most=MOST_NOTE)
    except OddError as odd:
        raise ArtefactError(f"{source}: {odd}", "fetch the adapter again") from None
