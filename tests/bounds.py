"""Whether the suite holds at both ends of the ranges of versions that pyproject.toml has of Flower and ONNX Runtime.

    python tests/bounds.py [--envs .venv/bounds] [--only lowest]

Makes an environment for each end beside this one: it sees all that is installed here, and has its own flwr and
onnxruntime, with what these need in other versions. The tests that rely on either run there: Flower's own processes
under both exchanges, what is refused to strangers (docs/adr/0021), the grid, programs, the runtime of devices. The
highest version is the newest that the registry has in the range. Exit code 1 where a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flwr", "onnxruntime")
RANGE = re.compile(r"(?P<name>[a-z]+)>=(?P<least>[0-9.]+),<(?P<above>[0-9.]+)")
SLOW = ("tests/integration/test_flower.py",)
OTHERS = (
    "tests/integration/test_strangers.py",
    "tests/unit/server/test_link.py",
    "tests/unit/server/test_gateway.py",
    "tests/unit/client/test_node.py",
    "tests/unit/client/test_app.py",
    "tests/unit/client/test_programs.py",
    "tests/unit/simulations/test_grid.py",
    "tests/unit/base_model/programs",
    "tests/unit/edge_runtime",
)


def ranges(text: str) -> dict[str, str]:
    """By package what pyproject.toml asks for, the same wherever it is named. Raises SystemExit."""
    project = tomllib.loads(text)["project"]
    every = chain(project["dependencies"], *project["optional-dependencies"].values())
    found: dict[str, str] = {}
    for asked in every:
        match = RANGE.fullmatch(asked)
        name = match["name"] if match else ""
        if name in PACKAGES and found.setdefault(name, asked) != asked:
            raise SystemExit(f"{name}: {asked} and {found[name]}")
    if set(found) != set(PACKAGES):
        raise SystemExit(f"pyproject.toml names no range of {sorted({*PACKAGES} - {*found})}")
    return found


def wanted(end: str, asked: dict[str, str]) -> Iterator[str]:
    """What pip installs for one end."""
    for name, text in asked.items():
        match = RANGE.fullmatch(text)
        assert match
        yield f"{name}=={match['least']}" if end == "lowest" else text


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(command: list[object], **environment: str) -> int:
    say(f"+ {' '.join(map(str, command))}")
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment
    ).returncode


def made(folder: Path, requirements: list[str]) -> Path:
    """The python of a new environment with ``requirements`` before all that is installed here."""
    if code := run([sys.executable, "-m", "venv", "--clear", folder]):
        raise SystemExit(code)
    python = folder / "bin" / "python"
    installed = sysconfig.get_paths()["purelib"]
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "beside.pth").write_text(f"{installed}\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        [
            "--ignore-installed",
            "--no-deps",
            *requirements,
        ],  # with their programs, also where they are here
        requirements,  # what these need in another version than is here
        ["--no-deps", "-e", str(ROOT)],
    )
    if code := next(filter(None, (run([*pip, *step]) for step in steps)), 0):
        raise SystemExit(code)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", type=Path, default=ROOT / ".venv" / "bounds")
    parser.add_argument("--only", choices=["lowest", "highest"])
    arguments = parser.parse_args()
    asked = ranges((ROOT / "pyproject.toml").read_text("utf-8"))
    failed = []
    for end in [arguments.only] if arguments.only else ["lowest", "highest"]:
        python = made(arguments.envs.resolve() / end, list(wanted(end, asked)))
        names = ", ".join(repr(name) for name in (*PACKAGES, "certifi", "uv"))
        said = f"from importlib.metadata import version as v; print({{n: v(n) for n in [{names}]}})"
        run([python, "-c", said])
        suite = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        for tests in ([*suite, *OTHERS], [*suite, "-m", "slow", *SLOW]):
            if run(tests, OMP_NUM_THREADS="1"):
                failed.append(f"{end}: {' '.join(map(str, tests[5:]))}")
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))
    say(f"holds at the {arguments.only}" if arguments.only else "holds at both ends")


if __name__ == "__main__":
    main()
