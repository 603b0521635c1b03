"""Files made to break whoever reads them: an auditor, a client or a device ends with one plain error.

The log's key signs all of them, so nothing is stopped by a signature.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit.log_copy import Trust
from audit.report import Report
from audit.sources import Folder
from audit.verify import audit
from protocol.encoding import MOST_LEVELS, canonical_json, parse_canonical
from protocol.errors import FedgeError, PlanError, ProofError
from protocol.plan import parse_plan, plan_from_text
from protocol.secagg.roster import parse_roster
from protocol.transparency.dsse import PAYLOAD_TYPE, key_id, pae
from protocol.transparency.leaves import decode_leaf, sha256
from tests.adversaries.forger import Forger
from tests.unit.audit.runs import make_run

DEEP = b"[" * 20_000 + b"]" * 20_000


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture
def forge(tmp_path: Path, honest: Path) -> Callable[[], Forger]:
    def make() -> Forger:
        folder = tmp_path / "forged"
        shutil.rmtree(folder, ignore_errors=True)
        return Forger(Path(shutil.copytree(honest, folder)))

    return make


def audited(run: Path) -> Report:
    return audit(Folder(run), Trust())


# -- nesting --------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_canonical_json_has_few_levels() -> None:
    assert parse_canonical(canonical_json(nested(MOST_LEVELS))) == nested(MOST_LEVELS)
    for data in (canonical_json(nested(MOST_LEVELS + 1)), DEEP, b'{"a":' + DEEP + b"}"):
        with pytest.raises(ValueError, match="too deeply"):
            parse_canonical(data)


def signed_payload(forger: Forger, payload: bytes) -> bytes:
    public = forger.key.public_key().public_bytes_raw()
    signature = forger.key.sign(pae(PAYLOAD_TYPE, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": key_id(public), "sig": base64.b64encode(signature).decode()}],
        }
    )


def test_a_leaf_that_is_nested_too_deeply(forge: Callable[[], Forger]) -> None:
    forger = forge()
    for entry in (b'{"payload":' + DEEP + b"}", signed_payload(forger, DEEP)):
        with pytest.raises(ProofError):
            decode_leaf(entry)
        forger.entries.append(entry)
    assert len(audited(forger.sign()).faults) == 2


def test_documents_that_are_nested_too_deeply(forge: Callable[[], Forger]) -> None:
    text = DEEP.decode()
    for parse in (
        lambda: parse_plan(f"a = {text}", source="x.toml"),
        lambda: plan_from_text(text, source="x.json"),
        lambda: parse_roster(text, source="x"),
    ):
        with pytest.raises(PlanError):
            parse()
    forger = forge()
    (forger.run / "plan.json").write_bytes(DEEP)
    forger.resubject(0, {"plan.json": sha256(DEEP)})
    with pytest.raises(FedgeError):
        audited(forger.sign())


def test_a_roster_has_names_that_can_be_shown() -> None:
    for name in ("a\x1f00\nb", "\x1b[2J", "", "a" * 201):
        with pytest.raises(PlanError, match="no name"):
            parse_roster(json.dumps({"clients": {name: "0" * 64}}), source="x")
