"""What an adapter costs at inference: base, adapter off, adapter on, interleaved in one run.

Times are wall time of one call; variants take turns, so that a disturbance meets all of them.
Reported are ratios of medians to the first variant, with the quartiles of the paired ratios.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_runtime.adapter import load_adapter
from edge_runtime.base import EdgeBase, open_session
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.reading import Feeds
from protocol.forms import DOWN, UP
from protocol.manifest import BOXES
from protocol.media_manifest import MediaManifest
from protocol.rows.pages import EDGE

WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One variant: median milliseconds, ratio of medians, quartiles of the paired ratios."""

    name: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """All variants of one shape; the first is what the ratios refer to."""

    batch: int
    length: int
    repeats: int
    threads: int
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def bench(
    base_folder: Path,
    adapter_folder: Path | None,
    *,
    batch: int,
    length: int,
    repeats: int,
    threads: int,
    plain_graph: Path | None = None,
    rank: int = 8,
) -> BenchResult:
    """Time the base's graph with no adapter and with one.

    Args:
        base_folder: a base; its graph has slots.
        adapter_folder: a released adapter; without it a random one of ``rank`` on every linear.
        batch, length: rows and tokens of the synthetic input.
        repeats: timed calls per variant.
        threads: of the sessions.
        plain_graph: the same base exported without slots; the ratios then refer to it.
    """
    base = EdgeBase.open(base_folder, threads=threads, verify=False)
    rng = np.random.default_rng(0)
    feeds = _feeds(base, batch, length, rng)
    with tempfile.TemporaryDirectory() as name:
        options, keep = _adapter(base, adapter_folder, Path(name) / "random.onnx_adapter", rank)
        variants: dict[str, Callable[[], Any]] = {}
        if plain_graph is not None:
            plain = open_session(plain_graph, threads=threads)
            variants["graph without slots"] = lambda: plain.run(None, feeds)
        variants["adapter off"] = lambda: base.session.run(None, feeds)
        variants["adapter on"] = lambda: base.session.run(None, feeds, options)
        times = _interleaved(variants, repeats)
        del keep
    reference = times[next(iter(variants))]
    return BenchResult(
        batch=batch,
        length=length,
        repeats=repeats,
        threads=threads,
        timings=tuple(_timing(name, times[name], reference) for name in variants),
    )


def _interleaved(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + WARM_UP):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            if turn >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    return {name: np.array(values) for name, values in times.items()}


def _timing(name: str, values: Any, reference: Any) -> Timing:
    low, high = np.quantile(values / reference, (0.25, 0.75))
    return Timing(
        name=name,
        median_ms=float(np.median(values)) * 1e3,
        ratio=float(np.median(values) / np.median(reference)),
        ratio_low=float(low),
        ratio_high=float(high),
    )


def _feeds(base: EdgeBase, batch: int, length: int, rng: np.random.Generator) -> Feeds:
    """Rows of chance: of other media than texts ``length`` says nothing."""
    manifest = base.manifest
    if isinstance(manifest, MediaManifest):
        shape = (batch, *manifest.shape)
        whole = {name: np.ones(shape, np.int64) for name in manifest.inputs}  # masks, if any
        return whole | {manifest.INPUT: rng.normal(size=shape).astype(np.float32)}
    corners = np.sort(rng.integers(0, EDGE + 1, (batch, length, 2, 2)), 2)
    boxes = {BOXES: corners.reshape(batch, length, 4).astype(np.int64)} if manifest.boxed else {}
    return boxes | {
        "input_ids": rng.integers(0, manifest.vocab_size, (batch, length)).astype(np.int64),
        "attention_mask": np.ones((batch, length), np.int64),
    }


def _adapter(base: EdgeBase, folder: Path | None, path: Path, rank: int) -> tuple[Any, Any]:
    if folder is not None:
        active = load_adapter(folder, base)
        return active.run_options, active
    write_random_adapter(base, path, rank)
    adapter = ort.LoraAdapter()
    adapter.Load(str(path))
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    return options, adapter


def write_random_adapter(base: EdgeBase, path: Path, rank: int) -> dict[str, Any]:
    """A LoRA adapter of ``rank`` on every linear at ``path``; its tensors, float32, by edge name."""
    rng = np.random.default_rng(1)
    tensors: dict[str, Any] = {}
    for linear in base.manifest.linears:
        shapes = (linear.in_features, rank), (rank, linear.out_features)
        for end, shape in zip((DOWN, UP), shapes, strict=True):
            tensors[linear.path + end] = rng.normal(0, 0.02, shape).astype(np.float32)
    write_edge_adapter(tensors, path)
    return tensors
