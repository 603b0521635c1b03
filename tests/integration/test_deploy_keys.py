"""`fedge deploy` between two keys: what a device reports, keys that are new, missing or lie open."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from delivery.releases import read_current
from delivery.repository import Repository
from edge_runtime.settings import read_device
from protocol.errors import DeliveryError, FedgeError
from tests.delivery_world import refused, update
from tests.gate_world import Publisher, fedge


def test_what_failed_on_a_device_is_not_promoted(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish()
    probe = {
        "rows": [{"text": "x", "label": "no such label"}],
        "least_correct": 1,
        "most_latency_ms": 9999,
        "most_memory_mb": 999,
    }
    (tmp_path / "probe.json").write_text(json.dumps(probe))
    settings = {
        "id": "kiosk",
        "name": "tiny",
        "channel": "canary",
        "repository": "repo",
        "root": "repo/root.json",
        "trust": str(publisher.run / "log/policy"),
        "base": str(publisher.base),
        "store": "store",
        "probe": "probe.json",
        "report": "reports/kiosk.json",
    }
    file = tmp_path / "device.toml"
    file.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    with refused("probe.labels"):
        update(read_device(file))
    reports = ["--reports", tmp_path / "reports"]
    (tmp_path / "reports/cut.json").write_text("{")  # it might have been the one that says so
    promote = ["promote", "tiny-r0001", "--repo", publisher.repo, "--keys", publisher.keys]
    promote += ["--run", publisher.run]
    with pytest.raises(DeliveryError, match=r"gate\.devices: .*cut\.json"):
        fedge(*promote, *reports)
    with refused("reports.missing"):
        fedge(*promote, "--reports", tmp_path / "reprots")
    with refused("gate.devices"):
        fedge(*promote, *reports)
    shutil.rmtree(publisher.repo / "evidence")
    with refused("gate.canary"):
        fedge(*promote)


def test_a_gate_with_a_new_key_checks_again_what_it_has_published(
    publisher: Publisher, tmp_path: Path
) -> None:
    """Else no release of before could be promoted, and none published again."""
    publisher.publish()
    with refused("release.known"):
        publisher.publish()
    repo, keys, new = ["--repo", publisher.repo], ["--keys", publisher.keys], tmp_path / "new"
    fedge("rotate", "canary", "stable", *repo, *keys, "--new-keys", new)
    for name in ("gate", "stable-1", "stable-2"):
        (publisher.keys / f"{name}.key").unlink()
    both = [*keys, "--keys", new]
    with refused("gate.canary"):
        fedge("promote", "tiny-r0001", *repo, *both, "--run", publisher.run)
    publisher.publish("--keys", new)
    fedge("promote", "tiny-r0001", *repo, *both, "--run", publisher.run)
    offers = read_current(Repository(publisher.repo), "stable", "tiny").releases
    assert [offer.seq for offer in offers] == [1]


def test_keys_are_kept_apart(publisher: Publisher, tmp_path: Path) -> None:
    with refused("keys.folder"):
        fedge("init", tmp_path / "other", "--keys", tmp_path / "other/keys")
    with refused("keys.exist"):
        fedge("init", tmp_path / "other", "--keys", publisher.keys)
    assert {path.stat().st_mode & 0o777 for path in publisher.keys.iterdir()} == {0o600}
    publisher.publish()
    few = tmp_path / "few"
    few.mkdir()
    for name in ("gate", "snapshot", "timestamp"):
        shutil.copy(publisher.keys / f"{name}.key", few)
    promote = ["promote", "tiny-r0001", "--repo", publisher.repo, "--run", publisher.run]
    with refused("keys.missing"):
        fedge(*promote, "--keys", few)
    os.chmod(few / "gate.key", 0o640)
    with refused("keys.open"):
        fedge("refresh", publisher.repo, "--keys", few)
    (few / "gate.key").write_text("nonsense")
    os.chmod(few / "gate.key", 0o600)
    with pytest.raises(DeliveryError) as caught:
        fedge("refresh", publisher.repo, "--keys", few)
    assert "nonsense" not in str(caught.value)
    with pytest.raises(FedgeError):
        fedge("status", tmp_path / "nowhere")
