"""A publisher with a repository and keys of its own, who has a real audited run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from fedge.main import cli

SETTINGS = [
    "plan.secrecy.exchange=secagg",
    "plan.cohort.weighting=uniform",
    "plan.cohort.size=6",
    "plan.cohort.quorum=3",
    "plan.rounds=2",
    "plan.release.every=1",
    "yardsticks.pooled=false",
    "yardsticks.alone=0",
]
ROUND = Path("rounds/0002")


def fedge(*arguments: object) -> None:
    cli.main(args=["deploy", *map(str, arguments)], prog_name="fedge", standalone_mode=False)


class Publisher:
    def __init__(self, folder: Path, run: Path, base: Path) -> None:
        self.repo, self.keys, self.run, self.base = folder / "repo", folder / "keys", run, base
        fedge("init", self.repo, "--keys", self.keys)

    def publish(self, *more: object, run: Path | None = None, base: Path | None = None) -> None:
        where = ["--repo", self.repo, "--keys", self.keys, "--base", base or self.base]
        fedge("publish", run or self.run, *where, "--floor", 0.1, *more)

    def refused_evidence(self) -> list[dict[str, Any]]:
        predicates = []
        for path in sorted((self.repo / "evidence").glob("*.refused-*.json")):
            envelope = json.loads(path.read_text())
            predicates.append(json.loads(base64.b64decode(envelope["payload"]))["predicate"])
        return predicates
