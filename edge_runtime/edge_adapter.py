"""Writing ``.onnx_adapter``, the form in which devices take an adapter. (P-5.2)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from protocol.layout import Tensors


def write_edge_adapter(tensors: Tensors, path: Path) -> None:
    """An ``.onnx_adapter`` with ``tensors`` (edge names and shapes, float32), sorted by name."""
    # An OrtValue of an array does not own it: the arrays have to live until they are written.
    arrays = {name: np.ascontiguousarray(tensors[name], np.float32) for name in sorted(tensors)}
    form = ort.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(1)
    form.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in arrays.items()})
    form.export_adapter(str(path))
    del arrays
