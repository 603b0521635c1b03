"""What tests of withdrawals have in common: runs that stop after a round, requests, leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.plan import plan_from_text
from protocol.secagg.contexts import session_id
from protocol.transparency.leaves import Request
from protocol.transparency.submissions import encode_request, sign_request
from server.inbox import request_leaf
from server.log import open_log
from server.store import RunStore
from tests.unit.audit.runs import make_run


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
