"""Opening a program with ONNX Runtime: frozen tensors are mapped from the base's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Where a graph that comes as bytes finds its external data.
FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    graph: bytes,
    base: Path,
    *,
    threads: int,
    as_written: bool = False,
    values: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Any:
    """A CPU session. Codes stay codes: folding constants would expand the base to float at load.

    ``as_written``: no node is changed or moved, which matters where each is written for what is in memory.
    ``values``: of frozen tensors that lie in no file, as ``base_model.programs.expanded`` has them; whoever
    has the session keeps them.
    """
    import onnxruntime as ort  # it starts a thread, and a site's processes are forks (docs/adr/0051)

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry(FOLDER, str(base))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Nodes run in the file's order, sizes first: no tensor is kept for the sake of its shape.
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Two plans of memory: one keeps a block for all of a step, the other takes long to make. (docs/adr/0050)
    options.enable_mem_pattern = options.enable_mem_reuse = False
    if values:
        held = [ort.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
        options.add_external_initializers(list(values), held)
    return ort.InferenceSession(
        graph,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantFolding"],
    )
