"""A device with a pinned policy runs what is in the log, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.base import EdgeBase
from edge_runtime.passport import read_policy
from edge_runtime.runtime import EdgeRuntime
from protocol.errors import ArtefactError, ProofError
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from protocol.transparency.leaf_codec import encode_statement
from protocol.transparency.leaves import Release
from protocol.transparency.note import KeyType, VerifierKey
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.policy import simple_policy
from simulations.experiment import load_experiment
from simulations.progress import NoProgress
from simulations.run import simulate

SETTINGS = [
    "plan.rounds=2",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
    "plan.release.every=1",
]


@pytest.fixture(scope="module")
def run(experiment_file: Path) -> Path:
    out = experiment_file.parent / "passports"
    simulate(load_experiment(experiment_file, SETTINGS), out, resume=False, progress=NoProgress())
    return out


@pytest.fixture(scope="module")
def base(run: Path) -> EdgeBase:
    return EdgeBase.open(Path(json.loads((run / "summary.json").read_text())["base"]), threads=1)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run / "rounds/0002/adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_released_adapter_runs_offline_and_its_passport_is_small(
    run: Path, base: EdgeBase, copied: Path
) -> None:
    runtime = EdgeRuntime(base, read_policy(run / "log/policy"))
    runtime.activate(copied)
    assert runtime.infer(["a text"])
    assert (copied / PASSPORT_FILE).stat().st_size < 4096


def swapped(name: str) -> Callable[[Path, Path], None]:
    def change(folder: Path, run: Path) -> None:
        shutil.copy(run / "rounds/0001/adapter" / name, folder / name)

    return change


def flipped(name: str, at: int = -9) -> Callable[[Path, Path], None]:
    def change(folder: Path, _run: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return change


def another_index(folder: Path, _run: Path) -> None:
    text = (folder / PASSPORT_FILE).read_text()
    index = parse_offline_proof(text).index
    (folder / PASSPORT_FILE).write_text(text.replace(f"index {index}", f"index {index - 1}"))


def without_leaf(folder: Path, _run: Path) -> None:
    lines = (folder / PASSPORT_FILE).read_text().splitlines(keepends=True)
    (folder / PASSPORT_FILE).write_text("".join(x for x in lines if not x.startswith("extra ")))


def unlogged(folder: Path, _run: Path) -> None:
    """A release leaf that the log's owner never logged, in the place of the logged one."""
    text = (folder / PASSPORT_FILE).read_text()
    proof = parse_offline_proof(text)
    leaf = Release(round=2, adapter=1, eval=None)
    fake = encode_statement(leaf, {"x": "0" * 64}, Ed25519PrivateKey.generate())
    changed = type(proof)(
        index=proof.index, path=proof.path, checkpoint=proof.checkpoint, extra=fake
    )
    (folder / PASSPORT_FILE).write_text(changed.encode())


@pytest.mark.parametrize(
    "change",
    [
        swapped(PASSPORT_FILE),
        swapped(EDGE_FILE),
        swapped(RELEASE_FILE),
        flipped(PASSPORT_FILE),
        flipped(PASSPORT_FILE, 60),
        flipped(EDGE_FILE),
        flipped(RELEASE_FILE, 20),
        another_index,
        without_leaf,
        unlogged,
        lambda folder, _run: (folder / PASSPORT_FILE).unlink(),
        lambda folder, _run: (folder / PASSPORT_FILE).write_text(""),
        lambda folder, _run: (folder / PASSPORT_FILE).write_bytes(b"\xff" * 300_000),
    ],
)
def test_what_is_not_in_the_log_is_refused_and_the_one_in_use_stays(
    run: Path, base: EdgeBase, copied: Path, change: Callable[[Path, Path], None]
) -> None:
    runtime = EdgeRuntime(base, read_policy(run / "log/policy"))
    before = runtime.activate(run / "rounds/0001/adapter")
    change(copied, run)
    with pytest.raises((ProofError, ArtefactError)):
        runtime.activate(copied)
    assert runtime.active is before


def test_another_logs_policy_and_a_missing_quorum_are_refused(
    run: Path, base: EdgeBase, copied: Path
) -> None:
    log = read_policy(run / "log/policy").logs[0]
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    other = VerifierKey(name=log.name, type=KeyType.ED25519, public=public)
    witness = VerifierKey(name="w", type=KeyType.COSIGNATURE, public=public)
    for policy in (simple_policy(other, [], 0), simple_policy(log, [witness], 1)):
        with pytest.raises(ProofError):
            EdgeRuntime(base, policy).activate(copied)
