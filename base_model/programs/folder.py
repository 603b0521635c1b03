"""A program as a folder: derived from a base, kept whole or not at all, looked at before it is run.

What is derived needs no trust, so a folder that is damaged, or of another version of fedge, is simply made
anew. Only a plan that names a program's digest makes it an agreement. (P-11.3)
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.shape_inference import InferenceError

from base_model import decoder, graph_linears, seq2seq, tasks
from base_model.files import folder_that_appears, writing
from base_model.programs.build import OPSET
from base_model.programs.checks import MOST_BYTES, verify_graph
from base_model.programs.classifier import classifier_graphs
from base_model.programs.denoising import denoising_graphs
from base_model.programs.document import (
    PROGRAM,
    REMEDY,
    GraphEntry,
    ProgramDocument,
    graph_name,
    outputs_of,
    parse_program,
    tensor_rules,
    verify_layout,
)
from base_model.programs.language import SCORES, language_graphs
from base_model.programs.seq2seq import seq2seq_graphs
from base_model.programs.step import UndifferentiableError
from base_model.tasks import TASKS
from base_model.weights_file import REBUILD, WEIGHTS
from protocol import forms, frozen_linears, methods
from protocol.decoder_manifest import DECODER, IDS, MASK, WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.encoding import canonical_json, digest
from protocol.errors import ArtefactError, MachineError
from protocol.manifest import DOCUMENTS, TYPE_IDS, BaseManifest
from protocol.media import DRAWN, MEDIA
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.rules import Parts
from protocol.seq2seq_manifest import SEQ2SEQ
from storage.locks import locked
from storage.regular import read_regular
from storage.whole import remove

log = logging.getLogger("fedge.program")
Derive = Callable[[Path, Recipe, Iterable[frozenset[str]]], list[onnx.ModelProto]]
DERIVE: dict[str, Derive] = {  # by what a base was built for
    **dict.fromkeys(("sequence-classification", DOCUMENTS), classifier_graphs),
    **dict.fromkeys(MEDIA.keys() - {DRAWN.task}, classifier_graphs),
    DECODER: language_graphs,
    SEQ2SEQ: seq2seq_graphs,
    DRAWN.task: denoising_graphs,
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a folder holds, verified: the document and its graphs' bytes by name."""

    document: ProgramDocument
    graphs: Mapping[str, bytes]

    def graph(self, parts: Iterable[str]) -> bytes:
        """The graph that trains ``parts``, or that answers. Raises ArtefactError for parts it lacks."""
        name = graph_name(frozenset(parts))
        if name not in self.graphs:
            raise ArtefactError(f"the program has no {name}", "make it for this plan")
        return self.graphs[name]


def make_program(base: Path, recipe: Recipe, parts: Iterable[Parts] | None = None) -> Program:
    """Derive the program of ``recipe`` on the verified ``base``; ``parts`` instead of what its rounds train.

    Raises ArtefactError for a base whose graph has no derivative, or is none that may be run.
    """
    manifest = recipe.manifest
    sets = [frozenset[str](), *(recipe.phases if parts is None else parts)]
    trained = [frozenset(s.name for s in recipe.layout.specs if s.part in names) for names in sets]
    with deriving(base):
        models = DERIVE[manifest.task](base, recipe, trained)
    graphs = {
        graph_name(names): model.SerializeToString(deterministic=True)
        for names, model in zip(sets, models, strict=True)
    }
    document = ProgramDocument(
        base=manifest.fingerprint,
        task=recipe.plan.task.kind,
        pairs=recipe.plan.task.pairs,
        method=recipe.method.name,
        constants=dict(recipe.constants),
        opset=OPSET,
        weights=manifest.files[WEIGHTS],
        tensors=tensor_rules(recipe),
        graphs={
            graph_name(names): graph_entry(model, names, graphs[graph_name(names)])
            for names, model in zip(sets, models, strict=True)
        },
    )
    program = Program(document=document, graphs=graphs)
    _verify(program, recipe, sets, source=str(base))
    return program


@contextmanager
def deriving(base: Path) -> Iterator[None]:
    """What a graph without a derivative, or none of ours, raises becomes an ArtefactError."""
    try:
        yield
    except UndifferentiableError as error:
        raise ArtefactError(f"{base}: its graph cannot be trained: {error}", REBUILD) from None
    except (KeyError, IndexError, ValueError, DecodeError, InferenceError) as error:
        cause = f"{base}: no program can be made of its graph ({type(error).__name__}: {error})"
        raise ArtefactError(cause, REBUILD) from None


def graph_entry(model: onnx.ModelProto, parts: Parts, data: bytes) -> GraphEntry:
    """What ``program.json`` says of a graph, which is written as ``data``."""
    return GraphEntry(
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        parts=sorted(parts),
        inputs=[value.name for value in model.graph.input],
        outputs=[value.name for value in model.graph.output],
    )


def open_program(folder: Path, recipe: Recipe, parts: Iterable[Parts] | None = None) -> Program:
    """What lies in ``folder``, if it is whole, may be run, and is for this base and plan.

    It has to train ``parts``, or without them what the plan's rounds train, and to answer. Raises
    ArtefactError that names the first thing wrong.
    """
    try:
        document = parse_program(read_regular(folder / PROGRAM), source=str(folder / PROGRAM))
        graphs = {name: read_regular(folder / name, most=MOST_BYTES) for name in document.graphs}
    except OSError as error:
        raise ArtefactError(
            f"{error.filename}: {error.strerror}", "name a folder that `fedge program build` wrote"
        ) from None
    for name, entry in document.graphs.items():
        if hashlib.sha256(graphs[name]).hexdigest() != entry.sha256:
            raise ArtefactError(f"{folder / name}: its sha256 is not {PROGRAM}'s", REMEDY)
    program = Program(document=document, graphs=graphs)
    sets = [frozenset[str](), *(recipe.phases if parts is None else parts)]
    _verify(program, recipe, sets, source=str(folder))
    return program


def _verify(program: Program, recipe: Recipe, sets: Iterable[Parts], *, source: str) -> None:
    document, manifest, task = program.document, recipe.manifest, recipe.plan.task
    if (document.task, document.pairs) != (task.kind, task.pairs) or document.opset != OPSET:
        raise ArtefactError(f"{source}: it is of another task or set of operators", REMEDY)
    if lacking := {graph_name(names) for names in sets} - document.graphs.keys():
        raise ArtefactError(f"{source}: it has no {min(lacking)}", REMEDY)
    if document.base != manifest.fingerprint or document.weights != manifest.files[WEIGHTS]:
        raise ArtefactError(f"{source}: it is of base {document.base[:12]}…", REMEDY)
    if document.constants != dict(recipe.constants) or document.method != recipe.method.name:
        raise ArtefactError(f"{source}: it is of another adapter than the plan's", REMEDY)
    verify_layout(document, recipe.layout, source=source)
    verify_graphs(program, manifest, source=source)


def verify_graphs(program: Program, manifest: BaseManifest, *, source: str) -> None:
    """Each takes and gives what the document says, and may be run. Raises ArtefactError."""
    document = program.document
    for name, entry in document.graphs.items():
        if name != graph_name(frozenset(entry.parts)):
            raise ArtefactError(f"{source}: {name} does not say what it trains", REMEDY)
        _verify_signature(document, entry, manifest, source=f"{source}: {name}")
        verify_graph(
            program.graphs[name],
            entry,
            weights=manifest.files[WEIGHTS].bytes,
            source=f"{source}: {name}",
        )


def _verify_signature(
    document: ProgramDocument, entry: GraphEntry, manifest: BaseManifest, *, source: str
) -> None:
    """Inputs are rows and the adapter, outputs loss and gradients of its parts, or logits."""
    tensors = sorted(rule.name for rule in document.tensors)
    parts = set(entry.parts)
    trained = [rule.name for rule in document.tensors if rule.part in parts]
    task = TASKS[document.task]
    rows, answer = _rows_and_answer(manifest, pairs=document.pairs)
    inputs = [*rows, *tensors, *([task.TARGET] if parts or task.JUDGES else [])]
    outputs = outputs_of(trained, answer, training=bool(parts))
    if entry.inputs != inputs or entry.outputs != outputs:
        raise ArtefactError(f"{source}: inputs and outputs are not a program's", REMEDY)


def _rows_and_answer(manifest: BaseManifest, *, pairs: bool) -> tuple[list[str], str]:
    """(inputs that are rows, the output of the program that answers)."""
    if isinstance(manifest, WritingManifest):
        return [IDS, MASK], SCORES  # whole texts: no cache goes in or out
    if isinstance(manifest, DenoiserManifest):
        return manifest.graph.inputs, SCORES
    rows = [name for name in manifest.graph.inputs if pairs or name != TYPE_IDS]
    return rows, manifest.graph.output


def program_for(
    base: Path,
    recipe: Recipe,
    *,
    cache: Path | None,
    parts: Iterable[Parts] | None = None,
) -> Program:
    """The program of ``recipe`` on the verified ``base``, kept in ``cache`` for the next process.

    Raises ArtefactError when it is not the one that the plan names. A cache that cannot be written is
    no reason to fail.
    """
    plan, sets = recipe.plan, list(recipe.phases if parts is None else parts)
    folder = cache / _key(recipe, sets) if cache else None
    if folder is not None and (folder / PROGRAM).is_file():
        try:
            _verify_own(folder)
            program = open_program(folder, recipe, sets)
            if parts is None:
                verify_named(program.document, plan)
            return program
        except ArtefactError as error:
            log.warning("%s; it is made anew", error.cause)
    program = make_program(base, recipe, sets)
    if parts is None:
        verify_named(program.document, plan)
    if folder is not None:
        try:
            keep_program(program, folder)
        except (MachineError, ArtefactError) as error:
            log.warning("%s; the program is not kept", error.cause)
    return program


def _verify_own(folder: Path) -> None:
    """Nobody else may have written what is in it. Raises ArtefactError."""
    for path in (folder, *folder.iterdir()):
        state = path.lstat()
        if state.st_uid != os.geteuid() or state.st_mode & 0o022 or path.is_symlink():
            raise ArtefactError(f"{path}: another user may have written it", REMEDY)


def verify_named(document: ProgramDocument, plan: Plan) -> None:
    """It is the program that the plan names, if it names one. Raises ArtefactError."""
    if plan.base.program and document.digest != plan.base.program:
        raise ArtefactError(
            f"the program of this base is {document.digest[:12]}…, the plan names "
            f"{plan.base.program[:12]}…",
            "get the base whose graph the plan's author has; install the versions in constraints.txt",
        )


def keep_program(program: Program, folder: Path) -> None:
    """Write it: the folder appears whole, in place of what was there, and is this user's alone.

    Raises MachineError.
    """
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(".lock")):
            for leftover in folder.parent.glob(".*.tmp"):  # of a process that was killed
                remove(leftover)
            remove(folder)
            write_program(program, folder, mode=0o700)


def write_program(program: Program, folder: Path, *, mode: int = 0o755) -> None:
    """A new folder. Raises ArtefactError when there is one, OSError."""
    with folder_that_appears(folder) as new:
        for name, data in {**program.graphs, PROGRAM: program.document.render()}.items():
            (new / name).write_bytes(data)
            (new / name).chmod(mode & 0o666)
        new.chmod(mode)


def _key(recipe: Recipe, parts: Iterable[Parts]) -> str:
    """The folder's name: whatever makes another program."""
    manifest = recipe.manifest
    content = {
        "base": manifest.fingerprint,
        "task": [recipe.plan.task.kind, recipe.plan.task.pairs],
        "graph": [manifest.files[name].sha256 for name in manifest.graph_files()],
        "tensors": [rule.model_dump() for rule in tensor_rules(recipe)],
        "method": recipe.method.name,
        "constants": dict(recipe.constants),
        "parts": [sorted(names) for names in parts],
        "maker": _maker(),
    }
    return digest("program", canonical_json(content))[:32]


@lru_cache(maxsize=1)
def _maker() -> str:
    """A digest of what makes programs: our own code, and the library that infers shapes."""
    hasher = hashlib.sha256(f"onnx {onnx.__version__}".encode())
    rooms = (tasks, methods, decoder, seq2seq)
    folders = (Path(__file__).parent, *(Path(str(room.__file__)).parent for room in rooms))
    own = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    for room in (forms, frozen_linears, graph_linears):
        own.append(Path(str(room.__file__)))
    for file in own:
        hasher.update(file.read_bytes())
    return hasher.hexdigest()
