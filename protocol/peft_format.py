"""The published adapter: names in a PEFT folder, names in the edge graph, and release.json.

Pure mapping: no files are opened here. ``server`` writes the PEFT folder with it, ``base_model``
the ``.onnx_adapter``, ``edge_runtime`` checks against it. (P-5)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.calibration import Calibration
from protocol.documents import OddError, json_as, parse_json
from protocol.errors import ArtefactError
from protocol.forms import HEAD
from protocol.frozen_linears import FrozenLinears
from protocol.layout import Tensors
from protocol.manifest import BaseManifest, HeadManifest, Word
from protocol.manifests import AnyManifest
from protocol.media import DRAWN
from protocol.methods import method_of, reader_for, reader_of
from protocol.methods.base import Constants, Method, Settings
from protocol.peft_opener import OPENER_MODULE
from protocol.section import MOST_LABELS, MOST_TOKENS, MOST_VALUE, Label
from protocol.tasks import TASKS
from protocol.tasks.base import TextSection
from protocol.waveform_manifest import WaveformManifest

if TYPE_CHECKING:  # a device reads no plan
    from protocol.plan import Plan
    from protocol.recipe import Recipe

CONFIG_FILE, WEIGHTS_FILE, EDGE_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter.onnx_adapter",
)
RELEASE_FILE, CARD_FILE = "release.json", "README.md"
MOST_NOTE = 2**20  # bytes of a release.json
PASSPORT_FILE = "passport.tlog-proof"  # that the release is in the run's log (P-8.15)


def fits_ordinary_class(family: str, pooling: str) -> bool:
    """Whether Hugging Face's class with a head of this family computes what the base does.

    DistilBERT's and RoBERTa's classes have a layer before the head whose name peft takes for the head.
    """
    return (family, pooling) in (
        ("bert", "pooler"),
        ("vit", "cls"),
        ("deit", "cls"),
        ("whisper", "projected"),
        ("wav2vec2", "projected"),
        ("hubert", "projected"),
        ("layoutlm", "pooler"),
    )


def folder_head(manifest: BaseManifest, method: Method[Any]) -> str:
    """The head's name in a PEFT folder: one that no ordinary class has, where that computes otherwise.

    "" of a base whose own output layer answers.
    """
    if not isinstance(manifest, HeadManifest):
        return ""
    if fits_ordinary_class(manifest.family, manifest.pooling) and not method.own_opener:
        return manifest.head.path
    return f"head_on_{manifest.pooling}"


def has_opener(manifest: AnyManifest, method: Method[Any]) -> bool:
    """Whether a folder brings what opens it: transformers and peft open most of a base that writes."""
    return isinstance(manifest, HeadManifest) or method.own_opener


REFUSING = "SEQ_CLS"  # of other types peft leaves out a head that it does not find, without a word
# Keys of an adapter_config.json that no folder of ours has, but for those that a method is known by.
CHANGING = ("use_dora", "alpha_pattern", "rank_pattern", "rank_dropout", "module_dropout")


@dataclass(frozen=True, kw_only=True)
class Published:
    """How the tensors of a PEFT folder are read: its method, and what the forms hang on."""

    method: Method[Any]
    constants: Constants

    @classmethod
    def by(cls, settings: Settings) -> Published:
        """As a plan with these settings of ``[adapter]`` publishes."""
        return cls(method=reader_of(settings), constants=method_of(settings).constants(settings))


def published_as(text: str | bytes, *, source: str) -> Published:
    """By an ``adapter_config.json``. Raises ArtefactError."""
    try:
        config = parse_json(text)
    except OddError as odd:
        raise ArtefactError(f"{source}: {odd}", "fetch the adapter again") from None
    if not isinstance(config, dict):
        raise ArtefactError(f"{source}: not an adapter's settings", "fetch the adapter again")
    method = reader_for(config, source=source)
    changing = [key for each in _settings_in(config) for key in CHANGING if each.get(key)]
    if changing := [key for key in changing if key not in method.switches]:
        raise ArtefactError(
            f"{source}: `{changing[0]}` changes what is computed, and is not known here",
            "use an adapter that fedge wrote",
        )
    try:
        constants = method.constants_of(config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise ArtefactError(
            f"{source}: not a {method.peft_type} adapter's settings", "fetch the adapter again"
        ) from None
    return Published(method=method, constants=constants)


def _settings_in(config: dict[str, Any]) -> list[dict[str, Any]]:
    """An adapter's settings, and those of a hybrid's members."""
    members = config.get("members")
    inner = members if isinstance(members, list) else []
    return [config, *(each for each in inner if isinstance(each, dict))]


def to_peft(tensors: Tensors, *, method: Method[Any], head: str = HEAD) -> Tensors:
    """Published tensors to the keys of ``adapter_model.safetensors``.

    ``head`` is its name there. Row-major: ``safetensors`` writes the memory of a transposed array as it
    lies.
    """
    named: Tensors = {}
    for name, value in tensors.items():
        if is_head(name):
            key = method.saved_prefix + head + name.removeprefix(HEAD)
        else:
            key = method.saved_name(name)
        named[key] = np.ascontiguousarray(value)
    return named


def from_peft(tensors: Tensors, *, method: Method[Any]) -> Tensors:
    """The reverse. Raises ArtefactError for a key no fedge adapter has."""
    named: Tensors = {}
    for key, value in tensors.items():
        name = re.sub(
            rf"^{re.escape(method.saved_prefix)}(head_on_(mean|cls|pooler|projected)|{HEAD})\.",
            f"{HEAD}.",
            key,
        )
        if not is_head(name):
            name = method.canonical_name(key)
            if name == key or method.saved_name(name) != key:
                raise ArtefactError(
                    f"adapter tensor {key!r} is not known", "use an adapter that fedge wrote"
                )
        named[name] = value
    return named


def is_head(name: str) -> bool:
    """Whether a canonical name is of the head."""
    return name.startswith(f"{HEAD}.")


def peft_config(recipe: Recipe, *, base_name: str) -> dict[str, Any]:
    """``adapter_config.json``."""
    manifest = recipe.manifest
    config: dict[str, Any] = {
        "task_type": recipe.plan.task.PEFT_TASK,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
    }
    if isinstance(manifest, HeadManifest):
        head = folder_head(manifest, recipe.method)
        if head != manifest.head.path:  # of this type peft insists on a head of an ordinary name
            config["task_type"] = REFUSING
        config["modules_to_save"] = [head]
        config["auto_mapping"] = {
            "base_model_class": "Classifier",
            "parent_library": OPENER_MODULE,
            "pooling": manifest.pooling,
            "how": f"{OPENER_MODULE}.load(folder, base)",
        }
    if isinstance(manifest, WaveformManifest):  # the source does not say how long it hears
        config["auto_mapping"]["seconds"] = manifest.waveform.seconds
    return config | recipe.method.peft_config(recipe.plan.adapter, manifest)


def slots_of(
    tensors: Mapping[str, Any],
    *,
    method: Method[Any],
    constants: Constants,
    linears: FrozenLinears | None = None,
) -> dict[str, Any]:
    """What trained or published tensors, arrays or symbols, put into the answering graph's slots.

    ``linears`` of the base, for methods that read them; without them these raise ArtefactError.
    """
    head = {name: value for name, value in tensors.items() if is_head(name)}
    own: Mapping[str, Any] = {name: value for name, value in tensors.items() if name not in head}
    if method.reads_base:
        if linears is None:
            raise ArtefactError(
                f"what `{method.name}` does hangs on weights of the base", "name the base's folder"
            )
        own = method.on_base(own, constants, linears)
    return method.forms(own, constants) | head


def to_edge(
    tensors: Tensors, *, published: Published, linears: FrozenLinears | None = None
) -> Tensors:
    """Published tensors to the edge graph's slots, float32, row-major. See :func:`slots_of`."""
    method, constants = published.method, published.constants
    slots = slots_of(tensors, method=method, constants=constants, linears=linears)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in slots.items()}


Real = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Parity(BaseModel):
    """torch on the codes against ONNX Runtime, same adapter, same rows.

    Of a base that writes text ``rows`` are positions, ``label_agreement`` is of the likeliest tokens.

    ``max_relative`` is relative to a row's largest logit, or to ``absolute / bound`` where that is larger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    rows: Annotated[int, Field(gt=0, lt=2**53)]
    max_relative: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    label_agreement: Annotated[float, Field(ge=0, le=1)]
    bound: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    absolute: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    tokens: tuple[Count, Count] | None = Field(
        default=None, description="of a text: written alike by both, of so many"
    )

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


def verify_answers(kind: str, labels: Sequence[str], limits: tuple[float, float] | None) -> None:
    """Labels or a range, ``limits``, are what a task of this kind has. Raises ValueError."""
    if labels and limits is not None:
        raise ValueError("labels and a range exclude each other")
    if limits is not None and not limits[0] < limits[1]:
        raise ValueError("the range ends before it begins")
    if limits is not None and max(map(abs, limits)) > MOST_VALUE:
        raise ValueError(f"the range goes beyond {MOST_VALUE:g}")
    task = TASKS.get(kind)  # a newer one is the device's to refuse, by its name
    answers = "labels" if labels else "text" if limits is None else "range"
    if task is not None and answers != {"images": "labels"}.get(task.ANSWERS, task.ANSWERS):
        raise ValueError(f"task {kind} has {task.ANSWERS}, and here are {answers}")


def head_rows(kind: str, labels: Sequence[str], limits: tuple[float, float] | None) -> int:
    """Rows of the head of an adapter that answers so; 0 where the base itself does."""
    return 0 if kind == DRAWN.task else len(labels) or int(limits is not None)


def verify_length(kind: str, max_length: int) -> None:
    """Texts have a length, and nothing else has. Raises ValueError."""
    task = TASKS.get(kind)
    if task is not None and issubclass(task, TextSection) != (max_length > 0):
        raise ValueError(f"task {kind} and a max_length of {max_length} do not go together")


class ReleaseNote(BaseModel):
    """``release.json``: what an adapter belongs to and what was measured of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    format: Literal[1] = 1
    plan_name: Word
    plan_digest: Word
    base_fingerprint: Word
    program: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="digest of the program that its plan names, if any"
    )
    round: Annotated[int, Field(ge=0, lt=2**53)]
    adapter_digest: Word
    task: Word = Field(default="classification", description="the plan's task.kind")
    pairs: bool = Field(default=False, description="whether a row has two texts")
    labels: Annotated[list[Label], Field(max_length=MOST_LABELS)]
    range: tuple[Real, Real] | None = Field(
        default=None,
        description="of a regression: its one output is the share of this, from low to high",
    )
    max_length: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = Field(
        description="tokens of a text, longer ones are cut; 0 where rows are no texts"
    )
    exchange: Word
    files: dict[Word, Word] = Field(description="sha256 of every file beside this one")
    metrics: dict[Word, Annotated[float, Field(allow_inf_nan=False)]]
    nested: bool = Field(
        default=False,
        description="whether the first ranks of its factors were trained to answer alone",
    )
    parity: Parity | None = None
    calibration: Calibration | None = Field(
        default=None, description="of its probabilities, from the release on"
    )

    @model_validator(mode="after")
    def _answers_mean_something(self) -> ReleaseNote:
        verify_answers(self.task, self.labels, self.range)
        verify_length(self.task, self.max_length)
        return self

    @property
    def draws(self) -> bool:
        """Whether what it answers are images of its labels."""
        return self.task == DRAWN.task

    @property
    def outputs(self) -> int:
        """Rows of the head; 0 of a text, or of an image."""
        return head_rows(self.task, self.labels, self.range)


def render_config(config: dict[str, Any]) -> bytes:
    """The file ``adapter_config.json``."""
    return (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()


def render_release(note: ReleaseNote) -> bytes:
    """The file ``release.json``: ``nested`` is there only where it is so."""
    unsaid = set() if note.nested else {"nested"}
    return (json.dumps(note.model_dump(mode="json", exclude=unsaid), indent=1) + "\n").encode()


def parse_release(text: str, *, source: str) -> ReleaseNote:
    """Read ``release.json``. Raises ArtefactError."""
    try:
        return json_as(ReleaseNote, text, most=MOST_NOTE)
    except OddError as odd:
        raise ArtefactError(f"{source}: {odd}", "fetch the adapter again") from None
