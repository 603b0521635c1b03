"""What the log of a run tells its report: who is in the sums, and what privacy was spent. (P-8.16)

Records are their coordinator's account of its rounds; where the log has the same facts, the log's are drawn.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from audit.collected import Round
from audit.log_copy import Trust
from audit.published import Run
from audit.sources import Folder
from audit.verify import load_run
from protocol.errors import FedgeError, MachineError
from protocol.privacy.ledger import Tally
from protocol.privacy.record import privacy_record
from protocol.transparency.leaves import Alive

Json = dict[str, Any]


def read_log(run: Path) -> Run | None:
    """The run's log and documents; None when there is none that holds."""
    try:
        return load_run(Folder(run), Trust())
    except FedgeError:
        return None


def by_the_log(log: Run | None, records: list[Json]) -> list[Json]:
    """The records, with the log's facts in the place of what they say of them."""
    if log is None:
        return records
    rounds = {logged.number: logged for logged in log.log.rounds}
    privacy = _privacy(log)
    return [
        record
        | _facts(log, rounds[record["round"]], record)
        | {"privacy": privacy.get(record["round"])}
        for record in records
        if record["round"] in rounds
    ]


def _facts(log: Run, logged: Round, record: Json) -> Json:
    leaf = logged.adapter.leaf
    facts: Json = {
        "attempt": leaf.attempt,
        "void": leaf.void or None,
        "exchange": leaf.exchange,
        "secure": leaf.exchange == "secagg",
        "adapter_out": leaf.adapter_out,
        "adapter_published": leaf.published,
    }
    if leaf.exchange == "plain":
        return facts
    groups = _members(log, logged)
    used = sorted(name for names in groups.values() for name in names)
    dropped = [each for each in record["dropped"] if each["client"] not in used]
    facts |= {"used": used, "dropped": dropped}
    if log.plan.secrecy.groups > 1:
        facts["groups"] = [
            {"used": groups.get(group, [])} for group in range(log.plan.secrecy.groups)
        ]
    return facts


def _members(log: Run, logged: Round) -> dict[int, list[str]]:
    """Names of those in each group's sum, by its alive set."""
    names: dict[int, list[str]] = {}
    for each in logged.sums:
        for placed in each.of(Alive)[:1]:
            try:
                _, members = log.members(placed.index)
            except FedgeError:
                continue  # the audit says so
            ids = map(bytes.fromhex, placed.leaf.ids)
            names[each.group] = sorted(members.names.get(client, client.hex()) for client in ids)
    return names


def _privacy(log: Run) -> dict[int, Json]:
    """By round, as the lines of the ledger up to it give it; nothing without noise or its accountant."""
    if not log.plan.private:
        return {}
    lines, tally, privacy = deque(log.log.spent), Tally(), {}
    try:
        for logged in log.log.rounds:
            while lines and lines[0].index < logged.adapter.index:
                tally.add(lines.popleft().leaf.entry)
            privacy[logged.number] = privacy_record(log.plan, tally)
    except MachineError:
        return {}
    return privacy
