"""What each role loads when it starts, and that our package names are ours."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = (
    "protocol",
    "storage",
    "base_model",
    "client",
    "server",
    "edge_runtime",
    "audit",
    "delivery",
    "simulations",
    "operations",
    "fedge",
)
HEAVY = {"torch", "transformers", "peft", "datasets"}
WALK = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    importlib.import_module(module.name)
print(" ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("protocol", HEAVY | {"flwr", "onnxruntime"}),
        ("storage", HEAVY | {"flwr", "onnxruntime", "numpy", "cryptography"}),
        ("server", HEAVY | {"onnxruntime", "client", "base_model"}),
        ("edge_runtime", HEAVY | {"flwr", "onnx", "client", "server", "base_model"}),
        ("audit", HEAVY | {"flwr", "onnxruntime", "server", "client"}),
        ("delivery", HEAVY | {"flwr", "simulations", "operations", "fedge"}),
    ],
)
def test_a_role_loads_nothing_it_must_not(package: str, forbidden: set[str]) -> None:
    loaded = loaded_by("-c", WALK, package)
    assert package in loaded
    assert loaded & forbidden == set()


def test_help_loads_no_library_of_any_role() -> None:
    code = (
        "import sys\nfrom fedge.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('LOADED', *sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "simulate" in done.stdout
    loaded = set(done.stdout.partition("LOADED")[2].split())
    assert loaded & (HEAVY | {"flwr", "numpy", "onnxruntime", "pydantic"}) == set()


def test_no_other_distribution_provides_our_names() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in OURS:
        assert set(owners.get(name, ["fedge"])) == {"fedge"}
