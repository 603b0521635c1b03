"""A small run's last round as a release, without a base to measure on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.edge_adapter import write_edge_adapter
from protocol.frozen_linears import StoredLinears
from protocol.manifests import parse_any_manifest
from protocol.peft_format import (
    EDGE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    Published,
    from_peft,
    to_edge,
)
from protocol.plan import plan_from_text
from protocol.tensor_file import decode_tensors
from protocol.transparency.leaf_codec import sha256
from server.releasing import log_release
from server.store import RunStore
from server.witnessing import Witness
from tests.unit.audit.runs import ONE_ROW


def drawn(name: str) -> Any:
    """A tensor of the weights that `small_manifest` has not: linears of 6 by 5, in 4 bits."""
    rng = np.random.default_rng(len(name))
    if name.endswith(".qweight"):
        return rng.integers(0, 256, (6, 16)).astype(np.uint8)
    return rng.normal(size=(6, 1) if name.endswith(".scales") else 6).astype(np.float32)


def release(run: Path, witnesses: Sequence[Witness] = ()) -> None:
    """As ``fedge release`` does, without a base to measure on."""
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    folder = sorted((run / "rounds").glob("[0-9]*"))[-1] / "adapter"
    tensors, _ = decode_tensors((folder / WEIGHTS_FILE).read_bytes(), source="x")
    published = Published.by(plan.adapter)
    named = from_peft(tensors, method=published.method)
    linears = StoredLinears(
        parse_any_manifest((run / "manifest.json").read_text(), source="x"), drawn
    )
    slots = to_edge(named, published=published, linears=linears)
    write_edge_adapter(slots, folder / EDGE_FILE)
    note = json.loads((folder / RELEASE_FILE).read_text())
    note["files"][EDGE_FILE] = sha256((folder / EDGE_FILE).read_bytes())
    note["parity"] = {
        "rows": 1,
        "max_relative": 0.0,
        "label_agreement": 1.0,
        "bound": 1.0,
        "absolute": 0.0,
    }
    shares = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.5)
    note["calibration"] = {"temperature": 1.5, "rows": 1} | shares
    (folder / RELEASE_FILE).write_text(json.dumps(note))
    store = RunStore(run)
    try:
        log_release(store, plan, note["round"], rows=ONE_ROW, metrics={}, witnesses=witnesses)
    finally:
        store.close()
