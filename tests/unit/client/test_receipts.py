"""A client insists on receipts and on the log, and remembers both. (P-8.9, P-8.10)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.receipts import Receipts
from protocol.errors import MachineError, SecrecyError
from protocol.exchange import Phase
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort, Pad
from protocol.transparency.offline import parse_offline_proof
from protocol.transparency.receipts import sign_receipt
from protocol.transparency.shown import Given, Shown, nodes_of, nodes_text
from tests.unit.client.cohort_log import CohortLog
from tests.unit.client.secret_cohort import Coordinator


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return Coordinator(tmp_path)


def masked(coordinator: Coordinator) -> tuple[bytes, bytes]:
    """One of the clients whose vectors have arrived, and what is asked next."""
    for one, box in coordinator.share().items():
        coordinator.core.receive_masked(one, coordinator.ask(one, Phase.MASK, box))
    return coordinator.ids[0], coordinator.core.close_masked()


def next_attempt(coordinator: Coordinator, number: int = 2) -> tuple[bytes, bytes, Shown]:
    """Somebody, the cohort of attempt ``number``, and what an honest coordinator shows with it."""
    coordinator.at_round(number)
    coordinator.begin(number)
    cohort, one = coordinator.advertise(), coordinator.ids[0]
    text = coordinator.log_text(one, Phase.SHARE)
    assert text is not None
    return one, cohort, Shown.model_validate_json(text)


def refused(coordinator: Coordinator, one: bytes, cohort: bytes, shown: Shown, code: str) -> None:
    kept = coordinator.members[one].receipts.told(coordinator.sid)
    with pytest.raises(SecrecyError) as caught:
        coordinator.ask(one, Phase.SHARE, cohort, text=shown.encode())
    assert caught.value.code == code
    assert coordinator.members[one].receipts.told(coordinator.sid) == kept
    coordinator.ask(one, Phase.SHARE, cohort)  # the truth is still welcome


# -- receipts ---------------------------------------------------------------------------------------


def test_a_receipt_is_kept_before_the_answer_and_told(coordinator: Coordinator) -> None:
    one, alive = masked(coordinator)
    receipts = coordinator.members[one].receipts
    assert receipts.held() == []
    coordinator.ask(one, Phase.AGREE, alive)
    (held,) = receipts.held()
    assert held.receipt == coordinator.receipt(one)
    assert held.proof is None
    assert receipts.told(coordinator.sid).open == [1]


FORGERIES: dict[str, tuple[str, Callable[[Coordinator, bytes], str | None]]] = {
    "none": ("receipt.missing", lambda c, o: None),
    "no text": ("receipt.malformed", lambda c, o: "x"),
    "another key": (
        "receipt.signature",
        lambda c, o: CohortLog(c.log.origin).given(c.receipt(o)).encode(),
    ),
    "signed by somebody else": (
        "receipt.signature",
        lambda c, o: Given(
            key=c.log.verifier,
            receipt=sign_receipt(c.receipt(o), Ed25519PrivateKey.generate()),
        ).encode(),
    ),
    "no receipt": (
        "receipt.signature",
        lambda c, o: Given(key=c.log.verifier, receipt=c.log.statement(Pad()).decode()).encode(),
    ),
}
OTHERS = {
    "origin": "fedge/other/00",
    "client": "0" * 32,
    "sid": "0" * 64,
    "seq": 2,
    "rid": "0" * 64,
    "root": "0" * 64,
    "round": 2,
    "attempt": 2,
}


@pytest.mark.parametrize("case", FORGERIES)
def test_without_a_true_receipt_nothing_is_signed(coordinator: Coordinator, case: str) -> None:
    one, alive = masked(coordinator)
    code, text = FORGERIES[case]
    with pytest.raises(SecrecyError) as caught:
        coordinator.ask(one, Phase.AGREE, alive, text=text(coordinator, one))
    assert caught.value.code == code
    assert coordinator.members[one].receipts.held() == []
    coordinator.ask(one, Phase.AGREE, alive)


@pytest.mark.parametrize("field", OTHERS)
def test_a_receipt_about_anything_else_is_refused(coordinator: Coordinator, field: str) -> None:
    one, alive = masked(coordinator)
    other = coordinator.receipt(one).model_copy(update={field: OTHERS[field]})
    with pytest.raises(SecrecyError, match=rf"^receipt\.other: its `{field}`"):
        coordinator.ask(one, Phase.AGREE, alive, text=coordinator.log.given(other).encode())


# -- the log ----------------------------------------------------------------------------------------


def test_what_became_of_a_vector_is_proven_and_the_proof_kept(coordinator: Coordinator) -> None:
    coordinator.whole()
    one, cohort, _ = next_attempt(coordinator)
    coordinator.ask(one, Phase.SHARE, cohort)
    receipts = coordinator.members[one].receipts
    (held,) = receipts.held()
    assert held.proof is not None
    proof = parse_offline_proof(held.proof)
    assert proof.extra is not None
    assert held.receipt.accounted_by(decode_leaf(proof.extra).leaf)
    assert receipts.told(coordinator.sid).open == []
    assert receipts.told(coordinator.sid).size == len(coordinator.log.entries)


@pytest.mark.parametrize("group", [None, 0])
def test_an_abort_accounts_for_an_attempt(coordinator: Coordinator, group: int | None) -> None:
    one, alive = masked(coordinator)
    coordinator.ask(one, Phase.AGREE, alive)
    coordinator.given.clear()
    for seq in (9, 1):
        leaf = Abort(seq=seq, group=group, round=1, attempt=1, revealed=[])
        coordinator.log.add(coordinator.log.statement(leaf))
    one, cohort, shown = next_attempt(coordinator)
    only_another = shown.model_copy(update={"proven": shown.proven[:1]})
    refused(coordinator, one, cohort, only_another, "log.missing")


def test_a_vector_that_is_not_in_the_log_is_missed(coordinator: Coordinator) -> None:
    coordinator.whole()
    mine = coordinator.receipt(coordinator.ids[0])
    coordinator.given.remove(mine)
    coordinator.log.add_vector(mine.model_copy(update={"root": "0" * 64}))
    one, cohort, shown = next_attempt(coordinator)
    with pytest.raises(SecrecyError, match=r"^log\.missing: attempt 1 \(round 1\)"):
        coordinator.ask(one, Phase.SHARE, cohort, text=shown.encode())
    coordinator.ask(coordinator.ids[1], Phase.SHARE, cohort)  # the others notice nothing


def test_a_proof_that_proves_nothing_is_refused(coordinator: Coordinator) -> None:
    coordinator.whole()
    one, cohort, shown = next_attempt(coordinator)
    proven = shown.proven[0]
    for change in (
        {"index": proven.index - 1},
        {"index": 10**6},
        {"path": nodes_text(nodes_of(proven.path)[:-1])},
        {"leaf": "{}"},
        {"leaf": proven.leaf.replace("00", "11", 1)},
    ):
        changed = [proven.model_copy(update=change), *shown.proven[1:]]
        made = shown.model_copy(update={"proven": changed})
        refused_text(coordinator, one, cohort, made.encode(), "log.missing")
    refused(coordinator, one, cohort, shown.model_copy(update={"proven": []}), "log.missing")


def refused_text(
    coordinator: Coordinator, one: bytes, cohort: bytes, text: str | None, code: str
) -> None:
    with pytest.raises(SecrecyError) as caught:
        coordinator.ask(one, Phase.SHARE, cohort, text=text)
    assert caught.value.code == code


def test_a_log_of_another_past_is_a_fork(coordinator: Coordinator) -> None:
    coordinator.whole()
    one, cohort, shown = next_attempt(coordinator)
    told = coordinator.members[one].receipts.told(coordinator.sid)
    entries = list(coordinator.log.entries)
    entries[0] = coordinator.log.statement(
        Abort(seq=0, group=None, round=0, attempt=0, revealed=[])
    )
    forked = coordinator.log.copied(entries)
    refused_text(coordinator, one, cohort, forked.shown(one, told).encode(), "log.forked")
    refused(coordinator, one, cohort, shown.model_copy(update={"consistency": ""}), "log.forked")


def test_a_log_of_the_same_size_and_another_root_is_a_fork(coordinator: Coordinator) -> None:
    one, cohort, _ = next_attempt(coordinator, 1)
    coordinator.ask(one, Phase.SHARE, cohort)
    before = list(coordinator.log.entries)
    one, cohort, _ = next_attempt(coordinator)
    told = coordinator.members[one].receipts.told(coordinator.sid)
    assert told.size == len(before)
    forked = coordinator.log.copied([*before[:2], before[3], before[3]])
    refused(coordinator, one, cohort, forked.shown(one, told), "log.forked")


def test_a_log_that_shrank_is_refused(coordinator: Coordinator) -> None:
    coordinator.whole()
    one, cohort, _ = next_attempt(coordinator)
    coordinator.ask(one, Phase.SHARE, cohort)
    one, cohort, _ = next_attempt(coordinator, 3)
    told = coordinator.members[one].receipts.told(coordinator.sid)
    short = coordinator.log.copied(coordinator.log.entries[: told.size - 1])
    refused(coordinator, one, cohort, short.shown(one, told), "log.shrunk")


def test_a_checkpoint_has_to_be_the_logs(coordinator: Coordinator) -> None:
    one, cohort, shown = next_attempt(coordinator, 1)
    name = coordinator.log.origin.rpartition("/")[0] + "/" + "0" * 32
    other, unnamed = CohortLog(name), CohortLog(coordinator.log.origin)
    told = coordinator.members[one].receipts.told(coordinator.sid)
    for text in (
        other.shown(one, told).encode(),  # another run's
        shown.model_copy(update={"checkpoint": unnamed.note}).encode(),  # by another key
        shown.model_copy(
            update={"checkpoint": shown.checkpoint.replace("\n4\n", "\n5\n")}
        ).encode(),
        shown.model_copy(update={"key": "x"}).encode(),
    ):
        refused_text(coordinator, one, cohort, text, "log.signature")
    coordinator.ask(one, Phase.SHARE, cohort)  # now the key is remembered
    one, cohort, _ = next_attempt(coordinator)
    told = coordinator.members[one].receipts.told(coordinator.sid)
    refused(coordinator, one, cohort, unnamed.shown(one, told), "log.signature")


def test_a_share_request_without_the_log_is_refused(coordinator: Coordinator) -> None:
    one, cohort, shown = next_attempt(coordinator, 1)
    refused_text(coordinator, one, cohort, None, "log.missing")
    given = Given(key=coordinator.log.verifier, receipt="")
    for text in ("", "[]", given.encode(), json.dumps(shown.model_dump()), "[" * 9999):
        refused_text(coordinator, one, cohort, text, "log.malformed")


# -- the file ---------------------------------------------------------------------------------------


def test_a_damaged_memory_stops_the_client(coordinator: Coordinator, tmp_path: Path) -> None:
    one, cohort, _ = next_attempt(coordinator, 1)
    path = tmp_path / f"{coordinator.members[one].name}.receipts.jsonl"
    path.write_text("{}\n")
    with pytest.raises(MachineError, match="memory of receipts"):
        coordinator.ask(one, Phase.SHARE, cohort)
    path.unlink()
    coordinator.ask(one, Phase.SHARE, cohort)
    assert path.stat().st_mode & 0o777 == 0o600


def test_runs_are_kept_apart(tmp_path: Path) -> None:
    runs = [Coordinator(tmp_path, run=bytes([number] * 16), rounds=8 + number) for number in (0, 1)]
    for run in runs:
        run.whole()
    receipts = Receipts(tmp_path / "site-0.receipts.jsonl")
    assert len(receipts.held()) == 2
    for run in runs:
        assert receipts.told(run.sid).open == [1]
