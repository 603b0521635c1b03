"""Every measurement of `make bench`, one after the other: ratios, side by side, in one machine's words.

    python benchmarks/run_all.py [--json]

Figures depend on the machine; the ratios are what the README quotes. The long accuracy tables
(`benchmarks/skew.py`) are commands of their own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = (
    "slots.py",
    "grid.py",
    "memory.py",
    "secrecy.py",
    "device.py",
    "audit.py",
    "message.py",
    "demo_round.py",
)


def main() -> None:
    failed = []
    for part in PARTS:
        print(f"== {part}", flush=True)
        if subprocess.run([sys.executable, str(HERE / part), *sys.argv[1:]]).returncode:
            failed.append(part)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
