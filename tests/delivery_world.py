"""A publisher, a log and a device in one folder, all real: what delivery tests start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from delivery import releases
from delivery.keys import ROLES, KeyRing, make_keys, read_keys
from delivery.releases import Bundle
from delivery.repository import Repository, create_repository
from edge_runtime import agent
from edge_runtime.base import EdgeBase, read_any_manifest
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.settings import Device, read_device
from edge_runtime.store import State, read_state
from protocol.delivery import Facts, Offer
from protocol.errors import DeliveryError
from protocol.manifests import graphs_digest
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from protocol.transparency.leaf_codec import sha256
from protocol.transparency.leaves import Evaluation, Release
from protocol.transparency.offline import OfflineProof
from protocol.transparency.policy import simple_policy
from server.log import RunLog

NAME = "home"
NAMES = list(dict.fromkeys(name for seats in ROLES.values() for name in seats.names))
WORDS = ["light", "music", "timer", "kitchen", "rain", "stop", "garden", "coffee", "red", "two"]


def now() -> datetime:
    return datetime.now(UTC)


def told_apart(base: Path, good: Path, bad: Path) -> list[dict[str, str]]:
    """Golden rows that ``good`` gets right and ``bad`` wrong."""
    answers = {}
    for name, folder in (("good", good), ("bad", bad)):
        runtime = EdgeRuntime(EdgeBase.open(base, threads=1))
        runtime.activate(folder)
        texts = [f"{one} {other}" for one in WORDS for other in WORDS]
        answers[name] = [
            (text, p.label) for text, p in zip(texts, runtime.infer(texts), strict=True)
        ]
    rows = [
        {"text": text, "label": label}
        for (text, label), (_, other) in zip(answers["good"], answers["bad"], strict=True)
        if label != other
    ]
    assert len(rows) >= 4
    return rows[:4]


@dataclass
class World:
    """``adapters`` are released folders by name; ``good`` passes the probe, ``bad`` does not."""

    folder: Path
    base: Path
    adapters: dict[str, Path]
    keys: KeyRing
    repository: Repository
    log: RunLog
    made: int = 0
    devices: dict[str, Device] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        folder: Path,
        base: Path,
        adapters: dict[str, Path],
        rows: Sequence[Mapping[str, Any]],
        **probe: Any,
    ) -> World:
        folder.mkdir(parents=True, exist_ok=True)
        make_keys(folder / "keys", NAMES)
        keys = read_keys([folder / "keys"])
        repository = create_repository(folder / "repo", keys, now())
        log = new_log(folder / "run", "fedge/tests/1")
        probe |= {"rows": rows, "least_correct": len(rows), "most_latency_ms": 5000}
        (folder / "probe.json").write_text(json.dumps(probe | {"most_memory_mb": 500}))
        (folder / "policy").write_text(simple_policy(log.verifier, [], 0).render())
        return cls(folder, base, adapters, keys, repository, log)

    def device(self, name: str = "kiosk-1", **fields: Any) -> Device:
        lines = {
            "id": name,
            "name": NAME,
            "channel": "canary",
            "repository": "repo",
            "root": "repo/root.json",
            "trust": "policy",
            "base": str(self.base),
            "store": f"devices/{name}",
            "probe": "probe.json",
            "report": f"reports/{name}.json",
        } | fields
        path = self.folder / f"{name}.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
        return read_device(path)

    def bundle(
        self,
        which: str = "good",
        *,
        log: RunLog | None = None,
        change: Callable[[Path], None] = lambda folder: None,
        **facts: Any,
    ) -> Bundle:
        """A logged release of its own, though the adapter may be the same. ``change`` comes after."""
        self.made += 1
        log = log or self.log
        folder = self.folder / "made" / str(self.made)
        shutil.copytree(self.adapters[which], folder)
        note = json.loads((folder / RELEASE_FILE).read_text())
        note["metrics"] = {"made": float(self.made)}
        (folder / RELEASE_FILE).write_text(json.dumps(note))
        passport(log, folder, note["round"])
        change(folder)
        manifest = read_any_manifest(self.base)
        told = {
            "plan": "tests",
            "round": note["round"],
            "seq": releases.next_seq(self.repository, NAME),
            "log_origin": log.origin,
            "log_index": log.size - 1,
            "base": manifest.fingerprint,
            "graph": graphs_digest(manifest),
            "device_min": 1,
            "epsilon_milli": None,
            "metrics": {"accuracy": 900},
        } | facts
        return Bundle(
            name=NAME,
            facts=Facts.model_validate(told),
            files={
                "adapter": (folder / EDGE_FILE).read_bytes(),
                "release": (folder / RELEASE_FILE).read_bytes(),
                "passport": (folder / PASSPORT_FILE).read_bytes(),
            },
        )

    def publish(self, which: str = "good", *, rollout: int = 1000, **more: Any) -> Offer:
        bundle = self.bundle(which, **more)
        return releases.publish(self.repository, bundle, self.keys, now(), rollout_permille=rollout)

    def promote(self, seq: int, rollout: int = 1000) -> Offer:
        return releases.promote(
            self.repository, NAME, seq, self.keys, now(), rollout_permille=rollout
        )

    def revoke(self, seq: int) -> None:
        releases.revoke(self.repository, NAME, seq, "tests", self.keys, now())


def new_log(folder: Path, origin: str) -> RunLog:
    folder.mkdir(parents=True, exist_ok=True)
    return RunLog(folder, Ed25519PrivateKey.generate(), origin)


def passport(log: RunLog, folder: Path, number: int) -> None:
    """Log the files of ``folder`` as a release, and write its passport."""
    files = {
        f"rounds/{number:04d}/adapter/{name}": sha256((folder / name).read_bytes())
        for name in (RELEASE_FILE, EDGE_FILE)
    }
    measured = Evaluation(round=number, rows=10, metrics={"accuracy": 900})
    leaves = [log.write(measured, {"rows": "0" * 64})]
    leaf = Release(round=number, adapter=0, eval=log.size)
    index = log.append([*leaves, log.write(leaf, files)]) + 1
    proof = OfflineProof(
        index=index,
        path=tuple(log.tree.inclusion(index)),
        checkpoint=log.note,
        extra=log.entry(index),
    )
    (folder / PASSPORT_FILE).write_text(proof.encode())


def update(device: Device, at: datetime | None = None) -> State:
    return agent.update(device, at or now())


def in_use(device: Device) -> int | None:
    state = read_state(device.store)
    return state.installed[state.current].seq if state.current else None


def days(count: float) -> timedelta:
    return timedelta(days=count)


@contextmanager
def refused(*codes: str) -> Iterator[None]:
    with pytest.raises(DeliveryError) as caught:
        yield
    assert caught.value.code in codes, caught.value
