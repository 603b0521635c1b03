"""The base's graph as this machine runs it, its weights beside it: a device maps them instead of reading.

ONNX Runtime writes this form itself, optimised and with the weights packed for its kernels. It is made
once per graph, version of ONNX Runtime and kind of processor, and kept in the device's store. Opening it
packs and hashes nothing, and what texts do not need stays out of memory. The graph it was made from was
verified against the manifest; what the copy must be is in ``made.json``. The answers are the same bits.

Agent and service may start at the same moment. One of them makes the copy, under another name, and it
appears by a rename: a file that a process has mapped is never written to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edge_runtime.base import REFETCH, EdgeBase, check_graph, read_manifest
from edge_runtime.settings import Device
from edge_runtime.store import GRAPH as FOLDER
from protocol.errors import ArtefactError, FedgeError
from storage.locks import locked
from storage.whole import folder_that_appears

GRAPH, DATA, MADE, LOCK = "graph.onnx", "graph.data", "made.json", ".lock"
ROOM = 2  # times the graph's size must be free; the copy takes less
SMALLEST = 1024  # bytes of a tensor that is kept apart


def open_device_base(device: Device) -> EdgeBase:
    """The base of a device, its graph mapped from the store. Raises ArtefactError."""
    return open_mapped(device.base, device.store / FOLDER, threads=device.threads)


def open_mapped(base: Path, cache: Path, *, threads: int) -> EdgeBase:
    """Open ``base`` by the copy in ``cache``, made at the first call and after a change.

    Where it cannot be kept (a full or read-only disk), the base's own file is opened. Raises
    ArtefactError.
    """
    manifest = read_manifest(base)
    parts = [manifest.files[name] for name in manifest.graph_files()]
    size = sum(part.bytes for part in parts)
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    folder = cache / f"{digest[:32]}-{ort.__version__}-{_processor()}"
    if not _is_whole(folder):
        check_graph(base, manifest)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with locked(cache / LOCK):  # only one process makes a copy; the others wait and find it
                if not _is_whole(folder):  # another process may have made it by now
                    _make(base / manifest.graph.file, folder, size)
        except (OSError, FedgeError):
            return EdgeBase.open(base, threads=threads)
    try:
        return EdgeBase.open(base, threads=threads, ready=folder / GRAPH)
    except ArtefactError:
        shutil.rmtree(folder, ignore_errors=True)
        return EdgeBase.open(base, threads=threads)


def _make(graph: Path, folder: Path, size: int) -> None:
    """Write the copy of ``size`` bytes; it appears whole or not at all. Others are removed."""
    for old in folder.parent.iterdir():
        shutil.rmtree(old, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < ROOM * size:
        raise OSError(errno.ENOSPC, "no room for a copy of the graph")
    with folder_that_appears(folder) as making:
        _rewrite(graph, making)
        (making / MADE).write_text(json.dumps(_stamps(making)), "utf-8")


def _rewrite(graph: Path, folder: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / GRAPH)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", DATA)
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(SMALLEST))
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT raises types of its own, also for a full disk
        first = str(error).splitlines()[0][:200]
        raise ArtefactError(f"{graph}: ONNX Runtime cannot rewrite it: {first}", REFETCH) from None


def _processor() -> str:
    """Names the kind of processor: how weights are packed depends on its instructions."""
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        told = ["model name: " + platform.processor()]
    # x86 says flags, ARM Features; the cores of one kind say the same
    kinds = sorted({line for line in told if line.startswith(("flags", "Features", "model name"))})
    lines = [platform.machine(), *kinds]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _is_whole(folder: Path) -> bool:
    """The copy was finished, and its files are still those: size and time of change."""
    try:
        return bool(json.loads((folder / MADE).read_bytes()) == _stamps(folder))
    except (OSError, ValueError):
        return False


def _stamps(folder: Path) -> dict[str, Any]:
    found = {name: (folder / name).stat() for name in (GRAPH, DATA)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
