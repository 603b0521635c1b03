"""The installed base on a device: verified files, one ONNX Runtime session, what reads questions.

A text becomes ids the way training did it: the base's tokenizer with its special tokens, cut to the
adapter's ``max_length``, of a pair the longer text first, padded on the right with the tokenizer's own
padding id; of a page the tokens of each word get its box (P-1.17). An image or a sound becomes an array
the same way, as the manifest says. (P-1.15, P-1.16)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from tokenizers import Tokenizer

from edge_runtime.graph_bounds import verify_graph
from edge_runtime.reading import Feeds, MediaReader, PageReader, Reader, TextReader
from protocol.decoder_manifest import WritingManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.documents import OddError, parse_json
from protocol.errors import ArtefactError
from protocol.manifest import (
    BOXES,
    CONFIG,
    GRAPH_DATA,
    MANIFEST_NAME,
    TYPE_IDS,
    TYPES_SHAPE,
    BaseManifest,
    HeadManifest,
    Slot,
)
from protocol.manifests import AnyManifest, SortingManifest, parse_any_manifest
from protocol.media_manifest import MediaManifest
from protocol.panics import tokenizing
from storage.regular import open_regular, read_regular_text, sha256_of

TOKENIZER = "tokenizer.json"
REFETCH = "fetch the base again"


@dataclass(frozen=True, kw_only=True)
class EdgeBase:
    """A base that was checked and opened. One session serves many threads."""

    folder: Path
    manifest: SortingManifest
    session: Any
    reader: Reader

    @classmethod
    def open(
        cls, folder: Path, *, threads: int = 0, verify: bool = True, ready: Path | None = None
    ) -> EdgeBase:
        """Open a base folder.

        Args:
            folder: what ``fedge base build`` wrote.
            threads: of the session within an operator; 0 lets ONNX Runtime choose.
            verify: compare the sha256 of the graph and the tokenizer with the manifest first. The
                weights file is for training; a device need not hold it.
            ready: an optimised copy of the manifest's graph, to open in its place.

        Raises ArtefactError when a file is missing, damaged or does not fit the manifest.
        """
        manifest = read_manifest(folder)
        reader = _reader(folder, manifest, verify=verify)
        if ready is None:
            check_graph(folder, manifest, verify=verify)
            session = open_session(folder / manifest.graph.file, threads=threads)
        else:
            session = open_session(ready, threads=threads, optimise=False)
        _check_slots(session, manifest, folder)
        if isinstance(manifest, MediaManifest):
            _check_input(session, manifest, folder)
        elif manifest.boxed:
            _check_boxes(session, folder)
        return cls(folder=folder, manifest=manifest, session=session, reader=reader)

    def own_labels(self) -> list[str]:
        """Names of the base's own head, in the order of its logits; numbered where it has none.

        Raises ArtefactError for a ``config.json`` that is not the manifest's.
        """
        count = self.manifest.head.labels
        numbered = numbered_labels(count)
        path = self.folder / CONFIG
        if not path.is_file():
            return numbered
        entry = self.manifest.files[CONFIG]
        check_file(path, entry.sha256, size=entry.bytes)
        try:
            names = parse_json(read_regular_text(path)).get("id2label", {})
            return [str(names[str(index)]) for index in range(count)] if names else numbered
        except (OSError, OddError, ValueError, AttributeError, KeyError, TypeError):
            raise ArtefactError(f"{path}: its labels cannot be read", REFETCH) from None

    def batch(self, items: Sequence[Any], *, max_length: int) -> Feeds:
        """What the graph reads of questions, in rows."""
        return self.reader.feeds(items, max_length=max_length)


def _reader(folder: Path, manifest: SortingManifest, *, verify: bool) -> Reader:
    """What reads this base's questions. Raises ArtefactError."""
    if isinstance(manifest, MediaManifest):
        return MediaReader(manifest)
    path, entry = folder / TOKENIZER, manifest.files[TOKENIZER]
    check_file(path, entry.sha256, size=entry.bytes, verify=verify)
    tokenizer = open_tokenizer(path)
    if manifest.boxed:
        return PageReader(tokenizer, source=str(path), remedy=REFETCH)
    typed = TYPE_IDS in manifest.graph.inputs
    return TextReader(tokenizer, typed=typed, source=str(path), remedy=REFETCH)


def numbered_labels(count: int) -> list[str]:
    """What labels are called that nobody named."""
    return [f"label-{index}" for index in range(count)]


def manifest_text(folder: Path) -> str:
    """What lies in a base's folder as its manifest. Raises ArtefactError."""
    try:
        return read_regular_text(folder / MANIFEST_NAME)
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(
            f"{folder} is not a base: {MANIFEST_NAME} cannot be read",
            "name the folder that `fedge base build --out` wrote",
        ) from None


def read_any_manifest(folder: Path) -> AnyManifest:
    """The manifest of a base's folder, whichever kind of base it is. Raises ArtefactError."""
    return parse_any_manifest(manifest_text(folder), source=str(folder / MANIFEST_NAME))


def read_manifest(folder: Path) -> SortingManifest:
    """The manifest of a folder whose base answers with labels or numbers. Raises ArtefactError."""
    manifest = read_any_manifest(folder)
    if isinstance(manifest, WritingManifest):
        raise ArtefactError(
            f"{folder} is a base that writes text; it answers with no labels or numbers",
            "use `fedge edge generate` or `serve-text`, or `fedge edge chat` where it knows chats",
        )
    if isinstance(manifest, DenoiserManifest):
        raise ArtefactError(
            f"{folder} is a base that draws images; it answers with no labels or numbers",
            "use `fedge edge draw`",
        )
    return manifest


def check_graph(folder: Path, manifest: BaseManifest, *, verify: bool = True) -> None:
    """The graphs' files are the manifest's and keep to themselves. (P-1.8) Raises ArtefactError."""
    for name in manifest.graph_files():
        entry = manifest.files[name]
        check_file(folder / name, entry.sha256, size=entry.bytes, verify=verify)
    data = manifest.files.get(GRAPH_DATA)
    for graph in manifest.graphs():
        verify_graph(
            folder / graph.file,
            size=manifest.files[graph.file].bytes,
            beside=(GRAPH_DATA, data.bytes) if data else None,
        )


def check_file(path: Path, sha256: str, *, size: int | None = None, verify: bool = True) -> None:
    """Raises ArtefactError unless ``path`` is a file and, with ``verify``, has this sha256.

    No more than ``size`` bytes are read of it where that is given.
    """
    try:
        if not verify:
            with open_regular(path, most=size):
                return
        found = sha256_of(path, size=size)
    except OSError:
        raise ArtefactError(f"{path} is missing or cannot be read", REFETCH) from None
    if found != sha256:
        raise ArtefactError(f"{path} is damaged: its sha256 is not the one named", REFETCH)


def open_session(
    graph: Path, *, threads: int = 0, optimise: bool = True, one_by_one: bool = False
) -> Any:
    """A CPU session on a graph. Raises ArtefactError when ONNX Runtime refuses the file.

    ``one_by_one``: for many short runs, no two of like shapes: a plan of memory would be made for
    nothing, and threads that wait for the next by spinning cost more than they compute.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # ORT would warn about every slot
    options.intra_op_num_threads = threads
    if one_by_one:
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises types of its own, without a common public base
        first = str(error).splitlines()[0][:200]
        raise ArtefactError(f"{graph}: ONNX Runtime cannot open it: {first}", REFETCH) from None


def _check_slots(session: Any, manifest: HeadManifest, folder: Path) -> None:
    others = {TYPE_IDS: ("tensor(int64)", TYPES_SHAPE)} if TYPE_IDS in manifest.graph.inputs else {}
    verify_slots(session, manifest.input_slots(manifest.graph), folder, others)


def _check_input(session: Any, manifest: MediaManifest, folder: Path) -> None:
    """The graph reads rows of what the manifest makes of files. Raises ArtefactError.

    What it reads besides are masks, of the same shape.
    """
    shape = [str(dim) for dim in manifest.shape]
    kinds = {manifest.INPUT: "tensor(float)"}
    inputs = [
        (value.name, value.type, [str(dim) for dim in value.shape[1:]])
        for value in session.get_inputs()
    ]
    if inputs != [(name, kinds.get(name, "tensor(int64)"), shape) for name in manifest.inputs]:
        raise ArtefactError(
            f"{folder}: the graph does not read `{manifest.INPUT}` of {' x '.join(shape)}, as its manifest "
            "says",
            REFETCH,
        )


def _check_boxes(session: Any, folder: Path) -> None:
    """The graph reads four whole numbers of each token. Raises ArtefactError."""
    read = {value.name: (value.type, value.shape[2:]) for value in session.get_inputs()}
    if read.get(BOXES) != ("tensor(int64)", [4]):
        raise ArtefactError(f"{folder}: the graph does not read `{BOXES}` of four numbers", REFETCH)


def verify_slots(
    session: Any,
    slots: Sequence[Slot],
    folder: Path,
    others: Mapping[str, tuple[str, list[int | str]]] | None = None,
) -> None:
    """The graph's optional inputs are these ``slots`` and ``others``, (type, shape) by name.

    Raises ArtefactError.
    """
    found = {
        slot.name: (slot.type, [str(dim) for dim in slot.shape])
        for slot in session.get_overridable_initializers()
    }
    named = {slot.name: ("tensor(float)", [str(dim) for dim in slot.shape]) for slot in slots}
    for name, (kind, shape) in (others or {}).items():
        named[name] = (kind, [str(dim) for dim in shape])
    if found != named:
        odd = sorted(
            name for name in found.keys() | named.keys() if found.get(name) != named.get(name)
        )
        raise ArtefactError(
            f"{folder}: the graph's slots are not the manifest's; first difference: {odd[0]}",
            REFETCH,
        )


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file. Raises ArtefactError."""
    with tokenizing(f"{path}: not a tokenizer", REFETCH):
        return Tokenizer.from_file(str(path))
