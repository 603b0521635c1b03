"""What a device promises of a base, whichever kind it is: one contract for all of them. (docs/adr/0061)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.adapter import read_note, read_tensors
from edge_runtime.backends import OPENERS, Backend, open_backend, writes_text
from edge_runtime.base import read_any_manifest
from edge_runtime.passport import read_policy
from edge_runtime.probe import TRIES, Probe, check_health
from protocol.errors import (
    ArtefactError,
    DataError,
    DeliveryError,
    ProofError,
)
from protocol.manifests import graphs_digest
from protocol.peft_format import EDGE_FILE
from tests.delivery_world import World, passport
from tests.device_kinds import (
    BY_DEFAULT,
    KINDS,
    SORTS,
    DeviceKind,
    changed_note,
    overwritten,
)

Kinds = dict[str, DeviceKind]


@pytest.mark.slow
def test_every_kind_of_base_has_a_backend(kinds: Kinds) -> None:
    assert {type(read_any_manifest(kinds[name].base)) for name in KINDS} == set(OPENERS)


def test_a_base_opens_as_what_its_manifest_says(kind: DeviceKind, backend: Backend[Any]) -> None:
    assert writes_text(kind.base) == (kind.name not in SORTS)
    assert SORTS.get(kind.name, "token") == backend.ITEM


def test_facts_name_every_graph(kind: DeviceKind) -> None:
    manifest = read_any_manifest(kind.base)
    digests = {graphs_digest(manifest)}
    for graph in manifest.graphs():
        entry = manifest.files[graph.file].model_copy(update={"sha256": "0" * 64})
        files = manifest.files | {graph.file: entry}
        digests.add(graphs_digest(manifest.model_copy(update={"files": files})))
    assert len(digests) == 1 + len(manifest.graphs())
    if len(manifest.graphs()) == 1:
        assert graphs_digest(manifest) == manifest.files[manifest.graph.file].sha256


def test_rows_tell_releases_apart_and_the_same_each_time(
    kind: DeviceKind, backend: Backend[Any]
) -> None:
    probe = kind.probe()
    for _ in range(2):
        health = check_health(kind.adapters["good"], backend, probe)
        assert (health.correct, health.rows) == (len(kind.rows), len(kind.rows))
        assert health.latency_ms > 0
        with pytest.raises(DeliveryError, match=rf"probe\.labels: 0 of {len(kind.rows)}") as caught:
            check_health(kind.adapters["bad"], backend, probe)
    for row in kind.rows:  # a report goes out: none of the device's own texts is in it
        if "contains" in row:
            assert row["contains"] not in caught.value.cause
    assert check_health(kind.adapters["good"], backend, kind.probe(least_correct=1)).correct


def test_a_busy_moment_fails_no_release(kind: DeviceKind, backend: Backend[Any]) -> None:
    class Ticking:
        """By which the first ``slow`` answers take an hour each, the others no time."""

        def __init__(self, slow: int) -> None:
            self.slow, self.asked, self.now = slow, 0, 0.0

        def __call__(self) -> float:
            if self.asked % 2 and self.asked // 2 < self.slow:
                self.now += 3600
            self.asked += 1
            return self.now

    rows = len(kind.rows)
    check_health(kind.adapters["good"], backend, kind.probe(), Ticking(rows * (TRIES - 1)))
    with pytest.raises(DeliveryError, match=rf"probe\.latency: .* ms a {backend.ITEM},"):
        check_health(kind.adapters["good"], backend, kind.probe(), Ticking(rows * TRIES))


def test_rows_of_another_kind_are_refused(kind: DeviceKind, backend: Backend[Any]) -> None:
    sorts = kind.name in SORTS
    other = {"contains": "x"} if sorts else {"label": "x"}
    limits = {"least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 500}
    probe = Probe.model_validate({"rows": [{"text": "rain", **other}], **limits})
    reason = "the base writes no text" if sorts else "labels, and the base writes text"
    with pytest.raises(DataError, match=reason):
        check_health(kind.adapters["good"], backend, probe)
    if kind.name == "encoder":
        values = [{"text": "rain", "value": 1.0}]
        probe = Probe.model_validate({"rows": values, "within": 1.0, **limits})
        with pytest.raises(DeliveryError, match=r"probe\.labels: the release answers with"):
            check_health(kind.adapters["good"], backend, probe)


def test_a_row_that_a_base_cannot_read_is_named_by_its_number(
    kind: DeviceKind, backend: Backend[Any]
) -> None:
    if kind.name in SORTS:
        pytest.skip("what is too long is cut")
    limits = {"least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 500}
    rows = [kind.rows[0], {"text": "secret " * 60, "contains": "x"}]
    probe = Probe.model_validate({"rows": rows, **limits})
    with pytest.raises(DataError, match=r"probe: row 2: the text has \d+ tokens") as caught:
        check_health(kind.adapters["good"], backend, probe)
    assert "secret" not in caught.value.cause


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("images", "is no PNG or JPEG"),
        pytest.param("sounds", "is not read: it is no WAV file", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_cannot_be_read_is_named_by_its_number(
    kinds: Kinds, tmp_path: Path, name: str, odd: str
) -> None:
    """Nothing of it is told; nor does a text become a path."""
    kind, noun = kinds[name], SORTS[name]
    (key,) = kind.rows[0].keys() - {"label"}
    broken = tmp_path / "secret.png"
    broken.write_bytes(b"secret")
    backend = open_backend(kind.base, threads=1)
    limits = {"least_correct": 1, "most_latency_ms": 5000, "most_memory_mb": 500}
    other = {"image": "audio", "audio": "image"}[key]
    for row, reason in (
        ({other: str(kind.rows[0][key])}, f"have `{other}`, and the base answers {name}"),
        ({key: str(broken)}, f"{noun} 2: its {noun} {odd}"),
        ({key: str(tmp_path / "secret-gone.png")}, f"{noun} 2: its {noun} cannot be read"),
        ({"text": str(kind.rows[0][key])}, f"answers {name}, and texts were given"),
    ):
        first = kind.rows[:1] if key in row else []
        rows = [*first, {**row, "label": "light"}]
        probe = Probe.model_validate({"rows": rows, **limits})
        with pytest.raises(DataError, match=reason) as caught:
            check_health(kind.adapters["good"], backend, probe)
        assert "secret" not in str(caught.value)


def test_what_does_not_fit_is_not_loaded(
    kind: DeviceKind, backend: Backend[Any], kinds: Kinds, copied: Path
) -> None:
    assert backend.load(copied) is not None
    for other in set(BY_DEFAULT) - {kind.name}:
        with pytest.raises(ArtefactError):
            backend.load(kinds[other].adapters["good"])
    changed_note(copied, base_fingerprint="0" * 64)
    with pytest.raises(ArtefactError, match="belongs to base"):
        backend.load(copied)


def test_who_trusts_a_log_loads_what_is_in_it(
    backend: Backend[Any], world: World, copied: Path
) -> None:
    policy = read_policy(world.folder / "policy")
    with pytest.raises(ProofError):
        backend.load(copied, policy)
    passport(world.log, copied, read_note(copied).round)
    assert backend.load(copied, policy) is not None


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "empty"])
def test_damaged_files_are_not_loaded(backend: Backend[Any], copied: Path, damage: str) -> None:
    path = copied / EDGE_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"changed": bytes(data), "cut": data[:-9], "empty": b""}[damage])
    with pytest.raises(ArtefactError):
        backend.load(copied)


def test_answers_that_are_not_finite_are_none(
    kind: DeviceKind, backend: Backend[Any], copied: Path
) -> None:
    """Finite weights whose product is not: only running them shows."""
    tensors = read_tensors(copied / EDGE_FILE)
    overwritten(copied, {name: np.full_like(value, 3e38) for name, value in tensors.items()})
    with pytest.raises(DeliveryError, match=r"probe\.load"):
        check_health(copied, backend, kind.probe())
