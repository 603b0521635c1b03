"""Which of a site's runs a command speaks about: coordinators choose the names of their logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.commands import app
from protocol.errors import ArtefactError
from protocol.secagg.primitives import client_id
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Complaint
from protocol.transparency.receipts import Receipt, sign_receipt, unverified_receipt
from protocol.transparency.submissions import parse_request
from tests.unit.audit.withdrawing import invoked

SITE, LOG = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
MINE, LONGER, AROUND, SAME = (
    "fedge/triage",
    "fedge/triage-2",
    "evil/fedge/triage",
    "log.example/run",
)
RUNS = {  # sids by the number of the only attempt, and the log's name
    (1, MINE): "a1" * 32,
    (2, LONGER): "b2" * 32,
    (1, AROUND): "c3" * 32,
    (3, SAME): "d4" * 32,
    (4, SAME): "e5" * 32,
}


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """Receipts of five runs, two of them by one name."""
    lines = []
    for at, ((seq, origin), sid) in enumerate(RUNS.items()):
        receipt = Receipt(
            origin=origin,
            client=client_id(SITE.public_key().public_bytes_raw()).hex(),
            sid=sid,
            seq=seq,
            rid=f"{at:064x}",
            root="0" * 64,
            round=1,
            attempt=1,
        )
        text = sign_receipt(receipt, LOG)
        lines.append({"kind": "receipt", "sid": sid, "key": "k", "seq": seq, "receipt": text})
    path = tmp_path / "site.receipts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "site.key").write_text(SITE.private_bytes_raw().hex() + "\n")
    return path


def withdrawn_from(memory: Path, *more: str) -> tuple[str, str]:
    key = memory.parent / "site.key"
    text = invoked(app, "withdraw", memory, "--identity", key, *more).output
    request = parse_request(text.encode())
    return request.origin, request.sid


def complained_of(memory: Path, seq: int, *more: str) -> tuple[str, str]:
    key = memory.parent / "site.key"
    asked = [memory, "--identity", key, "--about", "left out", "--seq", seq, *more]
    leaf = decode_leaf(invoked(app, "complain", *asked).output.strip().encode()).leaf
    assert isinstance(leaf, Complaint)
    receipt = unverified_receipt(leaf.receipt)
    return receipt.origin, receipt.sid


@pytest.mark.parametrize(
    ("run", "seq", "origin"),
    [
        (MINE, 1, MINE),  # though two others have it as a part
        (LONGER, 2, LONGER),
        ("evil", 1, AROUND),
        ("b2" * 32, 2, LONGER),
        ("e5" * 32, 4, SAME),
    ],
)
def test_a_whole_name_wins_over_parts(run: str, seq: int, origin: str, memory: Path) -> None:
    expected = origin, RUNS[seq, origin]
    assert withdrawn_from(memory, "--run", run) == expected
    assert complained_of(memory, seq, "--run", run) == expected


@pytest.mark.parametrize(
    ("run", "listed"),
    [
        ("triage", [MINE, LONGER, AROUND]),
        ("fedge/triag", [MINE, LONGER, AROUND]),
        (SAME, [SAME, SAME]),
        ("b2" * 16, []),  # of a sid a part is none
    ],
)
def test_several_are_listed(run: str, listed: list[str], memory: Path) -> None:
    """Also where only one of them has the attempt: it may be another that is meant."""
    why = f"{len(listed)} runs fit" if listed else "no run fits"
    for ask in (
        lambda: withdrawn_from(memory, "--run", run),
        lambda: complained_of(memory, 2, "--run", run),
    ):
        with pytest.raises(ArtefactError, match=why) as error:
            ask()
        named = re.findall(r"(\S+) \(sid [0-9a-f]{64}\)", error.value.cause)
        assert named == (listed or [origin for _, origin in RUNS])


def test_without_a_name_there_has_to_be_one(memory: Path) -> None:
    with pytest.raises(ArtefactError, match="5 runs fit"):
        withdrawn_from(memory)
    with pytest.raises(ArtefactError, match="2 runs fit"):
        complained_of(memory, 1)
    assert complained_of(memory, 2) == (LONGER, "b2" * 32)
    with pytest.raises(ArtefactError, match=f"no receipt of attempt 2 of {MINE}"):
        complained_of(memory, 2, "--run", MINE)
