"""A base's own linears, read from its folder where forms of a method hang on them. (P-2.5)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from base_model.weights_file import REBUILD, WEIGHTS
from protocol.errors import ArtefactError
from protocol.frozen_linears import StoredLinears
from protocol.manifest import BaseManifest


def stored_linears(base: Path, manifest: BaseManifest) -> StoredLinears:
    """Those of the verified ``base``. What is read raises ArtefactError."""

    def read(name: str) -> npt.NDArray[Any]:
        try:
            with safe_open(base / WEIGHTS, "np") as file:
                tensor: npt.NDArray[Any] = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{base / WEIGHTS}: {name}: {error}", REBUILD) from None

    return StoredLinears(manifest, read)
