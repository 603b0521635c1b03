"""What tests of withdrawals have in common: runs that stop after a round, requests, leaves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from audit.commands import app as auditing
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import audit
from client.commands import app as client_app
from protocol.encoding import canonical_json
from protocol.plan import Plan, plan_from_text
from protocol.secagg.contexts import session_id
from protocol.secagg.primitives import client_id, tagged
from protocol.transparency.leaves import Request
from protocol.transparency.submissions import encode_request, sign_request
from server.inbox import request_leaf
from server.log import open_log
from server.store import RunStore
from tests.unit.audit.runs import Sites, make_run

ORDER = 2**252 + 27742317777372353535851937790883648493  # of Ed25519's base point


class Stopped(Exception):
    """The coordinator ends here."""


def stopped_after(last: int, folder: Path, **sections: Any) -> Path:
    """A run whose coordinator stops when round ``last`` is published."""
    opened = RunStore.open_attempt

    def stops(store: RunStore, number: int, *of: Any) -> None:
        if number > last:
            raise Stopped
        opened(store, number, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "open_attempt", stops)
        with pytest.raises(Stopped):
            make_run(folder, **sections)
    return folder


def request_of(run: Path, key: Ed25519PrivateKey) -> Request:
    """The request of a site by its key, of the run in this folder."""
    plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
    store = RunStore(run)
    try:
        log = open_log(store, plan)
        sid = session_id(plan.digest, store.run_id).hex()
        return sign_request(origin=log.origin, sid=sid, key=key)
    finally:
        store.close()


def signed_anew(request: Request, key: Ed25519PrivateKey) -> Request:
    """The same by another signature of the same key: RFC 8032 derives the nonce, nothing checks that it was.

    The nonce is another key's secret scalar, so its point is that key's public one.
    """
    nonce = Ed25519PrivateKey.generate()
    body = request.model_dump(mode="json", exclude={"signature"})
    message = tagged("withdrawal", canonical_json(body))
    point, public = nonce.public_key().public_bytes_raw(), key.public_key().public_bytes_raw()
    challenge = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little")
    response = (_scalar(nonce) + challenge * _scalar(key)) % ORDER
    return request.model_copy(update={"signature": (point + response.to_bytes(32, "little")).hex()})


def _scalar(key: Ed25519PrivateKey) -> int:
    head = int.from_bytes(hashlib.sha512(key.private_bytes_raw()).digest()[:32], "little")
    return head & ~7 & (1 << 254) - 1 | 1 << 254


def withdraw(run: Path, key: Ed25519PrivateKey) -> int:
    """Log the withdrawal of a site; the leaf's index."""
    data = encode_request(request_of(run, key))
    store = RunStore(run)
    try:
        plan = plan_from_text((run / "plan.json").read_text(), source="plan.json")
        log = open_log(store, plan)
        return log.append([request_leaf(data, log, store)])
    finally:
        store.close()


NINE, COHORT = 9, {"size": 4, "quorum": 3, "deadline_s": 30.0}
SECTIONS: dict[str, Any] = {"cohort": COHORT, "rounds": 5}


@dataclass(frozen=True)
class World:
    """A run of nine sites, four of them in each round; 3 of 5 rounds are done, round 3 is released."""

    run: Path
    plan: Plan
    sites: Sites

    def used(self, number: int) -> list[str]:
        """Who is in a round, as the coordinator's own record says."""
        return list(record(self.run, number)["used"])

    def rounds_of(self, name: str) -> list[int]:
        last = len(list((self.run / "rounds").glob("[0-9]*"))) - 1
        return [number for number in range(1, last + 1) if name in self.used(number)]

    def id_of(self, site: int) -> str:
        return client_id(self.sites.roster[f"site-{site}"]).hex()

    def site_first_in(self, number: int) -> int:
        """A site whose first round is this one."""
        names = [name for name in self.used(number) if self.rounds_of(name)[0] == number]
        return int(names[0].removeprefix("site-"))

    def go_on(self) -> Path:
        return make_run(self.run, count=NINE, sites=self.sites, **SECTIONS)


def record(run: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((run / f"rounds/{number:04d}/record.json").read_text()))


def invoked(app: Any, *arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lineage(*arguments: object) -> list[dict[str, Any]]:
    return list(json.loads(invoked(auditing, "lineage", *arguments, "--json").output))


def audited(run: Path, *before: Path) -> list[str]:
    report = audit(Folder(run), Trust(), before=[Folder(each) for each in before])
    return [*report.faults, *(fault for one in report.rounds for fault in one.faults)]


def requested(world: World, site: int, folder: Path, *more: str) -> Path:
    """As the site does it, from its own memory of the run."""
    key, out = folder / "site.key", folder / "withdrawal.json"
    key.write_text(world.sites.keys[site].private_bytes_raw().hex() + "\n")
    memory = world.sites.folder / f"{site}.receipts.jsonl"
    invoked(client_app, "withdraw", memory, "--identity", key, "--out", out, *more)
    return out
