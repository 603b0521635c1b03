"""``program.json``: what a program is made of, by sha256, and what it takes and gives. (P-11)"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from base_model.programs.build import GRADIENT, LOSS
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError
from protocol.head_tensors import MOST_PHASES
from protocol.layout import Layout
from protocol.manifest import SAFE_NAME, Count, FileEntry, Sha256, Size, TensorName, Word
from protocol.recipe import Recipe

PROGRAM = "program.json"
ANSWER = "answer.onnx"
MOST_GRAPHS, MOST_TENSORS = MOST_PHASES + 1, 4 * 8192
REMEDY = "remove the program's folder: it is made again from the base"


class Record(BaseModel):
    """A table of the document: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class TensorRule(Record):
    """A tensor of the adapter; a dimension with a name is free, and the same wherever it stands."""

    name: TensorName
    part: Word
    shape: Annotated[list[Size | Word], Field(min_length=1, max_length=4)]


class GraphEntry(Record):
    """A graph's file: the parts whose gradients it gives (none: it answers), inputs and outputs."""

    sha256: Sha256
    bytes: Size
    parts: Annotated[list[Word], Field(max_length=16)]
    inputs: Annotated[list[TensorName], Field(max_length=MOST_TENSORS)]
    outputs: Annotated[list[TensorName], Field(min_length=1, max_length=MOST_TENSORS)]


class ProgramDocument(Record):
    """``program.json``."""

    format: Literal[2] = 2
    base: Sha256
    task: Word
    pairs: bool
    method: Word
    constants: Annotated[
        dict[Word, Annotated[float, Field(allow_inf_nan=False)]], Field(max_length=16)
    ]
    opset: Count
    weights: FileEntry
    tensors: Annotated[list[TensorRule], Field(min_length=1, max_length=MOST_TENSORS)]
    graphs: Annotated[dict[str, GraphEntry], Field(min_length=1, max_length=MOST_GRAPHS)]

    def render(self) -> bytes:
        """The file's bytes: sorted, indented, newline at the end."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()

    @property
    def digest(self) -> str:
        """The program's identity: sha256 of the file."""
        return hashlib.sha256(self.render()).hexdigest()


def parse_program(data: bytes, *, source: str) -> ProgramDocument:
    """Read ``program.json``. Raises ArtefactError, also for names that leave the folder."""
    try:
        document = json_as(ProgramDocument, data)
    except OddError as odd:
        raise ArtefactError(f"{source}: {odd}", REMEDY) from None
    if document.render() != data:
        raise ArtefactError(f"{source}: not written as programs are", REMEDY)
    for name in document.graphs:
        if not SAFE_NAME.fullmatch(name) or not name.endswith(".onnx"):
            raise ArtefactError(f"{source}: {name!r} is not the name of a graph", REMEDY)
    return document


def tensor_rules(recipe: Recipe) -> list[TensorRule]:
    """The rules that the shapes of the recipe's tensors follow."""
    return [
        TensorRule(
            name=spec.name,
            part=spec.part,
            shape=[
                free or size
                for free, size in zip(recipe.dimensions(spec), spec.shape, strict=False)
            ],
        )
        for spec in recipe.layout.specs
    ]


def verify_layout(document: ProgramDocument, layout: Layout, *, source: str) -> None:
    """The program is for adapters of ``layout``. Raises ArtefactError that names a tensor."""
    rules = {rule.name: rule for rule in document.tensors}
    sizes: dict[str, int] = {}
    for spec in layout.specs:
        rule = rules.pop(spec.name, None)
        fits = rule is not None and rule.part == spec.part and len(rule.shape) == len(spec.shape)
        for dimension, size in zip(rule.shape if rule else (), spec.shape, strict=False):
            expected = (
                sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension
            )
            fits = fits and expected == size
        if not fits:
            raise ArtefactError(f"{source}: it does not train the plan's {spec.name}", REMEDY)
    if rules:
        raise ArtefactError(
            f"{source}: it has the tensor {min(rules)}, which the plan has not", REMEDY
        )


def graph_name(parts: frozenset[str]) -> str:
    """The file of the graph that trains ``parts``; of none, the one that answers."""
    return f"train-{'.'.join(sorted(parts))}.onnx" if parts else ANSWER


def outputs_of(names: list[str], output: str, *, training: bool) -> list[str]:
    """Outputs of a graph that trains the tensors ``names``, or that answers."""
    return [LOSS, *(f"{GRADIENT}{name}" for name in names)] if training else [output]
