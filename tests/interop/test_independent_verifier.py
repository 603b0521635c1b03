"""What docs/protocol.md says is enough to verify a run: somebody else's auditor does it."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature

from tests.interop import independent_verifier
from tests.unit.audit.conftest import EIGHT, some_are_lost
from tests.unit.audit.runs import make_run

FAULTS = (AssertionError, InvalidSignature, KeyError, ValueError)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("independent") / "run"
    return make_run(
        folder, count=8, rounds=3, cohort=EIGHT, lost=some_are_lost, rule={"name": "alternating"}
    )


def test_a_run_with_losses_is_verified(run: Path) -> None:
    assert independent_verifier.verify_run(run) == [1, 2, 3]


@pytest.mark.parametrize(
    "name",
    ["log/checkpoint", "rounds/0001/sums/0.sum", "rounds/0002/checkpoint.safetensors", "vector"],
)
def test_and_a_changed_one_is_not(run: Path, name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "copy"))
    path = folder / name
    if name == "vector":
        path = sorted((folder / "rounds/0003/vectors/0").glob("?" * 32))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FAULTS):
        independent_verifier.verify_run(folder)


def test_it_uses_nothing_of_ours() -> None:
    tree = ast.parse(Path(independent_verifier.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {
        name.partition(".")[0]
        for node in imports
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    ours = {"protocol", "audit", "server", "client", "simulations", "fedge", "tests"}
    assert modules & ours == set()
