"""What audits of changed runs have in common."""

from __future__ import annotations

from pathlib import Path

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from protocol.errors import FedgeError


def faults_of(run: Path, only: int | None = None) -> list[str]:
    """What the auditor says, with the round in front."""
    try:
        report: Report = audit(Folder(run), Trust(), only=only)
    except FedgeError as error:
        return [error.cause]
    found = [f"round {one.round}: {fault}" for one in report.rounds for fault in one.faults]
    return [*report.faults, *found]
