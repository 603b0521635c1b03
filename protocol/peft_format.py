"""The published adapter: names in a PEFT folder, names in the edge graph, and release.json.

Pure mapping: no files are opened here. ``server`` writes the PEFT folder with it, ``base_model``
the ``.onnx_adapter``, ``edge_runtime`` checks against it. (P-5)
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.adapter import LORA_A, LORA_B, SOFT_PROMPT, target_linears
from protocol.calibration import Calibration
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.manifest import Manifest, Word
from protocol.peft_opener import OPENER_MODULE

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
HEAD = "classifier"  # path of a base's head
MOST_NOTE = 2**20  # bytes of a release.json
MOST_LABELS, MOST_TOKENS = 4096, 65_536  # of a task, of one text
# Whoever shows a label may not be steered by it.
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
PASSPORT_FILE = "passport.tlog-proof"  # that the release is in the run's log (P-8.15)


def fits_ordinary_class(family: str, pooling: str) -> bool:
    """Whether ``AutoModelForSequenceClassification`` of this family computes what the base does.

    DistilBERT's and RoBERTa's classes have a layer before the head whose name peft takes for the head.
    """
    return (family, pooling) == ("bert", "pooler")


def folder_head(manifest: Manifest) -> str:
    """The head's name in a PEFT folder: one that no ordinary class has, where that computes otherwise."""
    if fits_ordinary_class(manifest.family, manifest.pooling):
        return manifest.head.path
    return f"head_on_{manifest.pooling}"


def to_peft(tensors: Tensors, *, head: str = HEAD) -> Tensors:
    """Canonical names to the keys of ``adapter_model.safetensors``; plain LoRA, without cores.

    ``head`` is its name there. Row-major: ``safetensors`` writes the memory of a transposed array as it
    lies.
    """
    prefix = _prefix(SOFT_PROMPT in tensors)
    named = {re.sub(rf"^{HEAD}\.", f"{head}.", name): x for name, x in tensors.items()}
    return {_peft_key(name, prefix): np.ascontiguousarray(x) for name, x in named.items()}


def from_peft(tensors: Tensors) -> Tensors:
    """The reverse. Raises ArtefactError for a key no fedge adapter has."""
    prefix = _prefix(PROMPT_KEY in tensors)
    named: Tensors = {}
    for key, value in tensors.items():
        if key == PROMPT_KEY:
            named[SOFT_PROMPT] = value
        elif key.startswith(prefix):
            name = re.sub(r"^head_on_(mean|cls|pooler)\.", f"{HEAD}.", key.removeprefix(prefix))
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


def peft_config(plan: Plan, manifest: Manifest, *, base_name: str) -> dict[str, Any]:
    """``adapter_config.json``."""
    both = {
        "task_type": plan.task.PEFT_TASK,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "modules_to_save": [folder_head(manifest)],
        "auto_mapping": {
            "base_model_class": "Classifier",
            "parent_library": OPENER_MODULE,
            "pooling": manifest.pooling,
            "how": f"{OPENER_MODULE}.load(folder, base)",
        },
    }
    if plan.adapter.method == "lora":
        return both | {
            "peft_type": "LORA",
            "r": plan.adapter.rank,
            "lora_alpha": plan.adapter.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": [linear.path for linear in target_linears(plan.adapter, manifest)],
        }
    return both | {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": plan.adapter.tokens,
        "token_dim": manifest.embedding_size,
        "num_transformer_submodules": 1,
        "num_attention_heads": 1,  # a prompt has none, but peft insists on a number
        "num_layers": manifest.layers,
        "prompt_tuning_init": "RANDOM",
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


Real = Annotated[float, Field(allow_inf_nan=False)]


class Parity(BaseModel):
    """torch on the codes against ONNX Runtime, same adapter, same rows.

    ``max_relative`` is relative to a row's largest logit, or to ``absolute / bound`` where that is larger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    rows: Annotated[int, Field(gt=0, lt=2**53)]
    max_relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    label_agreement: Annotated[float, Field(ge=0, le=1)]
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def meets(self, plan: Plan) -> bool:
        """Whether it was measured against a plan's bounds and is within them."""
        bounds = plan.release
        floor = self.absolute if bounds.parity_max_absolute == 0 else bounds.parity_max_absolute
        if (self.bound, self.absolute) != (bounds.parity_max_relative, floor):
            return False
        return self.max_relative <= self.bound


class ParityError(ArtefactError):
    """Two engines answer too differently; ``parity`` is None where an answer is no number."""

    def __init__(self, cause: str, remedy: str, parity: Parity | None) -> None:
        super().__init__(cause, remedy)
        self.parity = parity


class ReleaseNote(BaseModel):
    """``release.json``: what an adapter belongs to and what was measured of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    format: Literal[1] = 1
    plan_name: Word
    plan_digest: Word
    base_fingerprint: Word
    round: Annotated[int, Field(ge=0, lt=2**53)]
    adapter_digest: Word
    task: Word = Field(default="classification", description="the plan's task.kind")
    pairs: bool = Field(default=False, description="whether a row has two texts")
    labels: Annotated[list[Label], Field(max_length=MOST_LABELS)]
    range: tuple[Real, Real] | None = Field(
        default=None,
        description="of a regression: its one output is the share of this, from low to high",
    )
    max_length: Annotated[int, Field(gt=0, le=MOST_TOKENS)]
    exchange: Word
    files: dict[Word, Word] = Field(description="sha256 of every file beside this one")
    metrics: dict[Word, Annotated[float, Field(allow_inf_nan=False)]]
    parity: Parity | None = None
    calibration: Calibration | None = Field(
        default=None, description="of its probabilities, from the release on"
    )

    @model_validator(mode="after")
    def _answers_mean_something(self) -> ReleaseNote:
        if bool(self.labels) == (self.range is not None):
            raise ValueError("labels and a range exclude each other, and one is there")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("the range ends before it begins")
        return self

    @property
    def outputs(self) -> int:
        """Rows of the head."""
        return len(self.labels) or 1


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
