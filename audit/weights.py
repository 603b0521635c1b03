"""Weights of an auditor's own base, where what devices run hangs on them. (P-2.5, P-8.16)"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.documents import OddError, parse_json
from protocol.encoding import hasher_of
from protocol.errors import ArtefactError, MachineError
from protocol.frozen_linears import StoredLinears
from protocol.manifests import AnyManifest
from storage.regular import open_regular

WEIGHTS, HEADER = "weights.safetensors", 2**26
KINDS = {"float32": "<f4", "float16": "<f2", "uint8": "u1"}
REMEDY = "name a base's folder: --base"


def linears_at(base: Path, manifest: AnyManifest) -> StoredLinears:
    """The linears of the base at ``base``: each tensor is, by its digest, the one that ``manifest`` lists.

    What is read raises ArtefactError, MachineError where the file cannot be; other files of the folder are
    not looked at.
    """
    path = base / WEIGHTS

    def read(name: str) -> npt.NDArray[Any]:
        entry = manifest.tensors.get(name)
        if entry is None or entry.dtype not in KINDS:
            raise ArtefactError(f"the manifest lists no tensor {name}", "do not use this base")
        dtype = np.dtype(KINDS[entry.dtype])
        data = _bytes(path, name, math.prod(entry.shape) * dtype.itemsize)
        hasher = hasher_of("tensor")
        hasher.update(data)
        if hasher.hexdigest() != entry.sha256:
            raise ArtefactError(f"{path}: {name} is not the manifest's", REMEDY)
        return np.frombuffer(data, dtype).reshape(entry.shape)

    return StoredLinears(manifest, read)


def _bytes(path: Path, name: str, size: int) -> bytes:
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > HEADER:
                raise ValueError
            header = parse_json(file.read(length), most=HEADER)
            start, end = header[name]["data_offsets"]
            if end - start != size or start < 0:
                raise ValueError
            file.seek(8 + length + start)
            return file.read(size)
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {error.strerror}", REMEDY) from None
    except (OddError, ValueError, TypeError, KeyError):
        raise ArtefactError(f"{path} is damaged at {name}", REMEDY) from None
