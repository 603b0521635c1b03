"""The installed base of a device that draws: verified files, one ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.base import (
    REFETCH,
    check_graph,
    open_session,
    read_any_manifest,
    verify_slots,
)
from protocol.denoiser_manifest import IMAGES, NOISE, DenoiserManifest
from protocol.errors import ArtefactError

Images = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class DrawingBase:
    """A base that was checked and opened. One session serves many threads."""

    folder: Path
    manifest: DenoiserManifest
    session: Any

    @classmethod
    def open(cls, folder: Path, *, threads: int = 0, verify: bool = True) -> DrawingBase:
        """Open a folder that ``fedge base build`` wrote, as :meth:`edge_runtime.base.EdgeBase.open`.

        Raises ArtefactError, also for a base that draws nothing.
        """
        manifest = read_any_manifest(folder)
        if not isinstance(manifest, DenoiserManifest):
            raise ArtefactError(
                f"{folder} is not a base that draws images",
                "take one that was built with --task image-generation; `fedge edge infer` answers with "
                "others, `fedge edge generate` with one that writes text",
            )
        check_graph(folder, manifest, verify=verify)
        session = open_session(folder / manifest.graph.file, threads=threads)
        verify_slots(session, manifest.input_slots(manifest.graph), folder)
        _check_inputs(session, manifest, folder)
        return cls(folder=folder, manifest=manifest, session=session)

    def noise(self, feeds: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Images:
        """What the graph finds in ``feeds``; ``values``: of an adapter, by slots."""
        (noise,) = self.session.run([NOISE], {**feeds, **(values or {})})
        return np.asarray(noise, np.float32)


def _check_inputs(session: Any, manifest: DenoiserManifest, folder: Path) -> None:
    """The graph reads images of the manifest's size, steps and classes. Raises ArtefactError."""
    image = ("tensor(float)", list(manifest.shape))
    wanted = {name: image if name == IMAGES else ("tensor(int64)", []) for name in manifest.inputs}
    inputs = {value.name: (value.type, value.shape[1:]) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape[1:]) for value in session.get_outputs()}
    if inputs != wanted or outputs != {NOISE: image}:
        raise ArtefactError(
            f"{folder}: the graph does not find noise on images of {' x '.join(map(str, manifest.shape))}, "
            "as its manifest says",
            REFETCH,
        )
