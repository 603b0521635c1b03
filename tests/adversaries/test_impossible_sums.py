"""One client's words beyond what is honest: its sum is refused before the step, and auditors agree. (P-6.17)

On the code before they were the next adapter, and the record published what it counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.log_copy import Trust, read_log
from audit.sources import Folder
from audit.verify import audit
from client.secret import Member
from protocol.exchange import Contribution
from protocol.secagg.primitives import Word
from protocol.secagg.task import Encoding, Exact
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Abort
from protocol.transparency.note import KeyType, VerifierKey
from protocol.wire import Instruction
from tests.unit.audit.runs import Sites, make_run, small_plan
from tests.unit.audit.test_order import Local

CHEAT = "site-2"
Change = Callable[[Encoding, Word], Word]
NOISY = {"privacy": {"mechanism": "distributed", "noise_multiplier": 0.5, "epsilon": 1e6}}
CLIP = {"secrecy": {"clip": 1.0}}


def cheating(change: Change, rounds: frozenset[int] = frozenset({1, 2})) -> type[Member]:
    """Members of which ``CHEAT`` changes its words before they are masked."""

    @dataclass(frozen=True, kw_only=True)
    class Cheat(Member):
        def _words(
            self,
            encoding: Encoding,
            instruction: Instruction,
            contribute: Callable[[], Contribution],
        ) -> Word:
            words = super()._words(encoding, instruction, contribute)
            if self.name == CHEAT and instruction.round in rounds:
                words = change(encoding, words).astype(words.dtype)
                if encoding.bits not in (16, 32):
                    words &= words.dtype.type(2**encoding.bits - 1)
            return words

    return Cheat


def run(
    folder: Path,
    change: Change,
    *,
    rounds: frozenset[int] = frozenset({1}),
    seen: dict[str, Any] | None = None,
    **plan: Any,
) -> Any:
    made, manifest = small_plan(**plan)
    sites = Sites(made, manifest, folder / "sites", int(plan.get("cohort", {}).get("size", 6)))
    sites.member = cheating(change, rounds)
    out = make_run(folder / "run", count=len(sites.keys), sites=sites, **(seen or {}), **plan)
    return out, [record(out, number) for number in range(3)]


def record(out: Path, number: int) -> dict[str, Any]:
    return dict(json.loads((out / f"rounds/{number:04d}/record.json").read_text()))


def beyond_the_clip(encoding: Encoding, words: Word) -> Word:
    """The same direction in every coordinate, as far as the sum does not wrap."""
    padded = encoding.ring.padded if isinstance(encoding, Exact) else len(words)
    words[:padded] += words.dtype.type(2 ** (encoding.bits - 2))
    return words


def anywhere(encoding: Encoding, words: Word) -> Word:
    """Words all over the ring."""
    padded = encoding.ring.padded if isinstance(encoding, Exact) else len(words)
    words[:padded] = np.random.default_rng(0).integers(0, 2**encoding.bits, padded)
    return words


def counting(name: str) -> Change:
    """A counter far above what anybody has."""

    def change(encoding: Encoding, words: Word) -> Word:
        assert isinstance(encoding, Exact)
        ring = encoding.ring
        at = ring.padded + encoding.terms()["counters"].index(name) * ring.digits
        words[at : at + ring.digits] = 2**ring.digit_bits - 1
        return words

    return change


CHANGES = {
    "beyond the clip": beyond_the_clip,
    "anywhere in the ring": anywhere,
    **{
        name: counting(name)
        for name in ("examples", "loss_sum", "eval_examples", "eval_correct", "train_seconds")
    },
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("bits", [16, 20, 32])
def test_what_honest_clients_cannot_send_moves_nothing(
    change: str, bits: int, tmp_path: Path
) -> None:
    """The round is void, the model as it was, and the next round goes on."""
    secrecy = {"secrecy": {"clip": 1.0, "bits": bits}}
    out, (start, first, second) = run(tmp_path, CHANGES[change], **secrecy)
    assert first["void"]
    assert first["adapter_out"] == start["adapter_out"] != second["adapter_out"]
    assert first["metrics"] == {}
    assert (second["void"], len(second["used"])) == (None, 6)
    (refused,) = first["refused"]
    assert refused["group"] == 0
    assert all(refused["why"] in each["detail"] for each in first["dropped"])
    report = audit(Folder(out), Trust())
    assert not report.failed, report.faults
    assert [one.verdict for one in report.rounds] == ["ok", "void", "ok"]


@pytest.mark.parametrize("change", [beyond_the_clip, anywhere])
def test_also_under_noise(change: Change, tmp_path: Path) -> None:
    """As far as noise lets anybody see."""
    _, (start, first, second) = run(tmp_path, change, **NOISY)
    assert first["void"]
    assert first["adapter_out"] == start["adapter_out"] != second["adapter_out"]
    assert len(first["refused"]) == 1


def test_of_groups_only_that_one_is_refused(tmp_path: Path) -> None:
    plan = {
        "cohort": {"size": 15, "quorum": 9, "deadline_s": 30.0},
        "secrecy": {"clip": 1.0, "groups": 3},
    }
    out, (_, first, _) = run(tmp_path, beyond_the_clip, **plan)
    assert first["void"] is None
    assert (len(first["used"]), len(first["dropped"])) == (10, 5)
    (refused,) = first["refused"]
    group = first["groups"][refused["group"]]
    assert CHEAT in group["clients"]
    assert (group["used"], group["kept"], group["failure"]) == ([], False, refused["why"])
    assert first["update_norm"] <= 1.01
    assert not audit(Folder(out), Trust()).failed


@pytest.mark.parametrize("groups", [1, 3])
def test_under_witnesses_the_log_tells_of_it(groups: int, tmp_path: Path) -> None:
    """There the vectors are logged before the sum is open; that it was refused comes after."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    log = VerifierKey(name="log.example/run", type=KeyType.ED25519, public=public)
    witness = Local(tmp_path / "witness", log)
    plan = {
        "cohort": {"size": 15, "quorum": 9, "deadline_s": 30.0},
        "secrecy": {"clip": 1.0, "groups": groups},
        "audit": {"log": log.encode(), "witnesses": [witness.key.encode()], "witness_quorum": 1},
    }
    seen = {"log_key": key, "witnesses": [witness]}
    out, (_, first, second) = run(tmp_path, beyond_the_clip, seen=seen, **plan)
    assert (len(first["refused"]), first["void"] is None) == (1, groups > 1)
    assert second["void"] is None
    report = audit(Folder(out), Trust())
    assert not report.failed, (report.faults, [one.faults for one in report.rounds])
    aborts = [leaf for leaf in leaves(out) if isinstance(leaf, Abort)]
    assert [len(leaf.revealed) for leaf in aborts] == [1]


def leaves(out: Path) -> list[Any]:
    return [decode_leaf(entry).leaf for entry in read_log(Folder(out), Trust()).entries]


def test_a_coordinator_that_takes_such_a_sum_all_the_same_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dishonest coordinator is ours without its check; the auditor's is in place again."""
    from protocol.secagg.ring import Ring

    with monkeypatch.context() as patched:
        patched.setattr(Ring, "verify_sum", lambda *_: None, raising=False)
        out, (_, first, _) = run(tmp_path, beyond_the_clip, **CLIP)
    assert first["void"] is None
    assert first["update_norm"] > 1.1
    report = audit(Folder(out), Trust())
    assert report.failed
    verdict = report.rounds[1]
    assert any("honest" in fault or "norm" in fault for fault in verdict.faults), verdict.faults
    assert report.rounds[2].verdict == "ok"


def test_when_all_sums_are_impossible_the_run_says_why(tmp_path: Path) -> None:
    """A client that does it in every round stops the run's progress, not its honesty."""
    _, (start, first, second) = run(tmp_path, beyond_the_clip, rounds=frozenset({1, 2}), **CLIP)
    assert start["adapter_out"] == first["adapter_out"] == second["adapter_out"]
    assert first["void"] == second["void"]
    assert first["void"] == "its sum is impossible"
