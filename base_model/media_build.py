"""What building a base of a medium is: images (P-1.15) or sounds (P-1.16)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import onnx
import torch
from torch import Tensor

from base_model.encoder import HeadedModel
from base_model.export import ONE_FILE, adapt_linears, attach_head, finished_graph
from base_model.graph_check import verify_features
from base_model.headed_build import (
    ACCURACY_LEVEL,
    HeadedSource,
    Written,
    build_folder,
    described,
    filled,
    write_numbers,
)
from base_model.quantised import BLOCK, Progress
from base_model.store import GRAPH
from protocol.manifest import Slot
from protocol.media import DRAWN, IMAGE, SOUND
from protocol.media_manifest import MediaManifest, SortingMediaManifest

BUILDERS = {  # modules and functions, by task
    IMAGE.task: ("base_model.images.build", "build_images"),
    SOUND.task: ("base_model.sounds.build", "build_sounds"),
    DRAWN.task: ("base_model.denoisers.build", "build_denoiser"),
}


class MediaModel(HeadedModel):
    """One whose features come of one array for each file, and of masks of its shape.

    ``features``: what the head reads, (rows, width), of ``inputs`` in their order, each (rows, *shape).
    """

    key: str  # last path component of the linears that give keys
    features: Callable[..., Tensor]
    front: tuple[str, ...] = ()  # what paths of norms begin with before which nothing is adapted

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs: what it reads, and its masks."""
        return [self.main_input_name]


class MediaSource(HeadedSource, Protocol):
    """A loaded source of a base of a medium."""

    @property
    def MANIFEST(self) -> type[SortingMediaManifest]:  # noqa: N802  # a constant of every class
        """Of bases that are built from it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the graph reads of one file."""
        ...

    def own_fields(self) -> dict[str, Any]:
        """What the manifest has that those of other media have not, but its format."""
        ...


S = TypeVar("S", bound=MediaSource)


@dataclass(frozen=True, kw_only=True)
class MediaBuild(Generic[S]):
    """A medium: how a source is loaded, its model of so many labels, and that in ONNX.

    A source is loaded with the seconds that it is to hear, 0 where nobody says.
    """

    load: Callable[[str, int], S]
    model: Callable[[S, int], MediaModel]
    export: Callable[[Any, tuple[int, ...]], onnx.ModelProto]


class Builder(Protocol):
    """What builds a base of a medium, also one that draws."""

    def __call__(
        self,
        source: str,
        *,
        bits: int,
        out: Path,
        scales: bool = False,
        seconds: int = 0,
        progress: Progress | None = None,
        explain: Callable[[str], None] | None = None,
    ) -> MediaManifest:
        """See :func:`build_media`."""
        ...


def builder_of(task: str) -> Builder:
    """What builds a base for the task of a medium."""
    module, name = BUILDERS[task]
    return cast(Builder, getattr(import_module(module), name))


def build_media(
    kind: MediaBuild[S],
    source: str,
    *,
    bits: int,
    out: Path,
    scales: bool = False,
    seconds: int = 0,
    one_file: int = ONE_FILE,
    progress: Progress | None = None,
    explain: Callable[[str], None] | None = None,
) -> SortingMediaManifest:
    """Build the folder ``out`` from ``source``, as :func:`base_model.build.build_base` does of texts.

    ``seconds``: of a sound, where the source does not say how many it hears. Raises PlanError for bits that
    are not offered and for seconds that are lacking or said, ArtefactError for the source or out, and
    MachineError for what this machine lacks.
    """
    return build_folder(
        out,
        bits=bits,
        load=lambda: kind.load(source, seconds),
        fill=lambda folder, loaded, tell: _fill(
            kind, folder, loaded, bits=bits, scales=scales, one_file=one_file, tell=tell
        ),
        progress=progress,
        explain=explain,
    )


def _fill(
    kind: MediaBuild[S],
    folder: Path,
    source: S,
    *,
    bits: int,
    scales: bool,
    one_file: int,
    tell: Progress,
) -> SortingMediaManifest:
    """Every file of a base but its manifest, in the order of what is made from what."""
    model = filled(kind.model(source, len(source.labels) if source.labels else 2), source)
    written = write_numbers(folder, model, source, bits, tell)
    tell("exporting the edge graph", 0.6)
    slots = write_graph(
        kind.export(model, source.shape),
        model,
        written,
        path=folder / GRAPH,
        bits=bits,
        scales=scales,
        most=one_file,
    )
    tell("opening the edge graph", 0.9)
    check_media(folder / GRAPH, model, source.shape)
    tell("describing", 0.95)
    manifest = source.MANIFEST(
        fingerprint="0" * 64,
        task=source.MANIFEST.MEDIUM.task,
        **source.own_fields(),
        **described(folder, model, source, written, bits=bits, inputs=model.inputs, slots=slots),
    )
    return manifest.fingerprinted()


def write_graph(
    exported: onnx.ModelProto,
    model: MediaModel,
    written: Written,
    *,
    path: Path,
    bits: int,
    scales: bool = False,
    most: int = ONE_FILE,
) -> list[Slot]:
    """Write ``graph.onnx`` and return its slots, as :func:`base_model.export.export_graph`."""
    graph = exported.graph
    adapt_linears(
        graph,
        written.linears,
        written.codes,
        bits=bits,
        block=BLOCK,
        accuracy_level=ACCURACY_LEVEL,
        unshifted=model.key,
        slots=True,
        scales=scales,
        hidden=model.config.hidden_size,
        front=model.front,
    )
    attach_head(graph, model.classifier, slots=True)
    return finished_graph(exported, path, quantised=bool(written.codes), most=most)


def check_media(path: Path, model: MediaModel, shape: tuple[int, ...]) -> None:
    """``path`` opens in ONNX Runtime and gives ``model``'s features of its inputs. Raises ArtefactError."""
    whole = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    # of files that fill what is read, and of smaller ones
    part = torch.arange(shape[-1]) < torch.tensor([1.0, 0.6, 0.0])[:, None] * shape[-1]
    masks = [part.long() for _ in model.inputs[1:]]
    inputs = [whole, *masks]
    with torch.no_grad():
        features = model.features(*inputs).numpy()
    feeds = {name: value.numpy() for name, value in zip(model.inputs, inputs, strict=True)}
    verify_features(path, feeds, features)
