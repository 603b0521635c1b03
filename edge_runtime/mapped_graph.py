"""The base's graph with its weights beside it, so that a device maps them instead of reading them.

ONNX Runtime writes this form itself, without optimising anything; it is made once per graph and version
of ONNX Runtime and kept in the device's store. Of the embeddings only what texts need gets into memory,
and a process starts without hashing what it never reads. The graph it was made from was verified against
the manifest; what the copy must be is in ``made.json``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edge_runtime.base import REFETCH, EdgeBase, check_file, read_manifest
from edge_runtime.files import sync, write_whole
from edge_runtime.settings import Device
from edge_runtime.store import GRAPH as FOLDER
from protocol.errors import ArtefactError

GRAPH, DATA, MADE = "graph.onnx", "graph.data", "made.json"
SMALLEST = 1024  # bytes of a tensor that is kept apart


def open_device_base(device: Device) -> EdgeBase:
    """The base of a device, its graph mapped from the store. Raises ArtefactError."""
    return open_mapped(device.base, device.store / FOLDER, threads=device.threads)


def open_mapped(base: Path, cache: Path, *, threads: int) -> EdgeBase:
    """Open ``base`` by the copy in ``cache``, made at the first call or after a change.

    Where it cannot be kept (a full or read-only disk), the base's own file is opened. Raises
    ArtefactError.
    """
    manifest = read_manifest(base)
    digest = manifest.files[manifest.graph.file].sha256
    folder = cache / f"{digest[:32]}-{ort.__version__}"
    if not _is_whole(folder):
        check_file(base / manifest.graph.file, digest)
        try:
            _make(base / manifest.graph.file, folder)
        except (OSError, ArtefactError):
            return EdgeBase.open(base, threads=threads)
    try:
        return EdgeBase.open(base, threads=threads, graph=folder / GRAPH)
    except ArtefactError:
        shutil.rmtree(folder, ignore_errors=True)
        return EdgeBase.open(base, threads=threads)


def _make(graph: Path, folder: Path) -> None:
    """Write the copy; it counts once ``made.json`` is there. Older copies are removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.iterdir():
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(folder / GRAPH)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", DATA)
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(SMALLEST))
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises types of its own, also for a full disk
        first = str(error).splitlines()[0][:200]
        raise ArtefactError(f"{graph}: ONNX Runtime cannot rewrite it: {first}", REFETCH) from None
    for name in (GRAPH, DATA):
        sync(folder / name)
    write_whole(folder / MADE, json.dumps(_stamps(folder)).encode())


def _is_whole(folder: Path) -> bool:
    """The copy was finished, and its files are still those: size and time of change."""
    try:
        return bool(json.loads((folder / MADE).read_bytes()) == _stamps(folder))
    except (OSError, ValueError):
        return False


def _stamps(folder: Path) -> dict[str, Any]:
    found = {name: (folder / name).stat() for name in (GRAPH, DATA)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
