"""Audits of changed runs: whether they fail, and what they name as not covered."""

from __future__ import annotations

from pathlib import Path

from audit.log_copy import Trust
from audit.report import Uncovered
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import FedgeError


def audit_fails(run: Path) -> bool:
    try:
        return audit(Folder(run), Trust()).failed
    except FedgeError:
        return True


def named_in(run: Path) -> tuple[Uncovered, ...]:
    return audit(Folder(run), Trust()).not_covered
