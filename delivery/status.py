"""What a repository offers, until when its signatures hold, and what devices say about it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from delivery.releases import names, read_current, read_facts, sent_bytes
from delivery.repository import EVIDENCE, Repository
from protocol.delivery import CHANNELS, DeviceReport, decode, release_name
from protocol.errors import DeliveryError
from storage.regular import read_regular

MOST_REPORT = 65_536  # bytes


def read_reports(folder: Path) -> tuple[list[DeviceReport], list[str]]:
    """The reports in ``folder``, the newest of each device, and the names of files that are none.

    Raises DeliveryError `reports.missing` where there is no such folder: no reports are not good ones.
    """
    if not folder.is_dir():
        raise DeliveryError(
            "reports.missing", f"{folder} is no folder", "name the one where reports are collected"
        )
    newest: dict[str, DeviceReport] = {}
    unreadable = []
    for path in sorted(folder.glob("*.json")):
        try:
            report = decode(DeviceReport, read_regular(path, most=MOST_REPORT), source=path.name)
        except (OSError, DeliveryError):
            unreadable.append(path.name)
            continue
        earlier = newest.get(report.device)
        if earlier is None or earlier.time <= report.time:
            newest[report.device] = report
    return [newest[device] for device in sorted(newest)], unreadable


def faults_of(reports: list[DeviceReport], release: str) -> dict[str, str]:
    """Why ``release`` failed, by device."""
    return {
        report.device: fault.reason
        for report in reports
        for fault in report.faults
        if fault.release == release
    }


def gather(repository: Repository, reports: list[DeviceReport], now: datetime) -> dict[str, Any]:
    """Plain values for people and programs."""
    return {
        "expires": {
            role: {
                "at": metadata.signed.expires.isoformat(),
                "version": metadata.signed.version,
                "expired": metadata.signed.is_expired(now),
            }
            for role, metadata in sorted(repository.roles.items())
        },
        "releases": [
            row for name in names(repository) for row in _releases(repository, name, reports)
        ],
        "devices": [report.model_dump(mode="json") for report in reports],
    }


def _releases(
    repository: Repository, name: str, reports: list[DeviceReport]
) -> list[dict[str, Any]]:
    rows = []
    for channel in CHANNELS:
        current = read_current(repository, channel, name)
        for offer in current.releases:
            facts = read_facts(repository, channel, offer)
            rows.append(
                {
                    **_row(name, channel, offer.seq, offer.id, reports),
                    "state": "offered",
                    "rollout_permille": offer.rollout_permille,
                    "round": facts.round,
                    "plan": facts.plan,
                    "log_index": facts.log_index,
                    "metrics": facts.metrics,
                    "epsilon_milli": facts.epsilon_milli,
                    "adapter_bytes": offer.files.adapter.length,
                    "sent_bytes": sent_bytes(repository, channel, name, offer),
                    "evidence": _evidence(repository.folder, name, offer.seq, channel),
                }
            )
        rows += [
            {
                **_row(name, channel, withdrawn.seq, withdrawn.release, reports),
                "state": "revoked",
                "reason": withdrawn.reason,
            }
            for withdrawn in current.revoked
        ]
    return rows


def _row(
    name: str, channel: str, seq: int, release: str, reports: list[DeviceReport]
) -> dict[str, Any]:
    of_channel = [r for r in reports if (r.name, r.channel) == (name, channel)]
    return {
        "release": release_name(name, seq),
        "id": release,
        "channel": channel,
        "running": sorted(
            r.device for r in of_channel if r.current and r.current.release == release
        ),
        "failed": faults_of(of_channel, release),
    }


def _evidence(folder: Path, name: str, seq: int, channel: str) -> str | None:
    file = evidence_name(name, seq, channel)
    return f"{EVIDENCE}/{file}" if (folder / EVIDENCE / file).is_file() else None


def evidence_name(name: str, seq: int, channel: str) -> str:
    """The file with what the gate found before it signed."""
    return f"{release_name(name, seq)}.{channel}.json"
