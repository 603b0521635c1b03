"""What secure aggregation asks of a plan: sizes of cohorts, losses, room in the log, keys."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from base_model.verify import read_manifest
from protocol.encoding import canonical_json
from protocol.legality import Finding, check, verify_legal, warnings_of
from protocol.legality_of_secrecy import TAIL_BYTES, most_lost
from protocol.manifest import Manifest
from protocol.secagg.agreement import Keys
from protocol.secagg.messages import advert_bytes
from protocol.transparency.leaf_codec import MOST_BYTES, encode_message, encode_statement
from protocol.transparency.leaves import Abort, Advert, AskedSum, Shares, Vector
from tests.unit.audit.runs import small_plan
from tests.unit.protocol.test_legality import plan_of
from tests.witnesses import witnessed_by


def test_large_cohorts_are_summed_in_groups(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)
    cohort = {"size": 7000, "quorum": 6000}
    refused = next(f for f in check(plan_of(manifest, cohort=cohort)) if f.severity == "error")
    assert "secrecy.groups = 4" in refused.remedy
    verify_legal(plan_of(manifest, cohort=cohort, secrecy={"groups": 4}), manifest)
    verify_legal(plan_of(manifest, cohort={"size": 2000, "quorum": 1600}), manifest)
    for quorum, warned in ((1720, False), (1600, True)):
        large = plan_of(manifest, cohort={"size": 2000, "quorum": quorum})
        assert any("holders" in finding.cause for finding in warnings_of(large, manifest)) == warned


HYBRID = {"keys": "x25519+ml-kem-768"}


@pytest.mark.parametrize(
    ("witnessed", "secrecy", "most", "helps"),
    [
        (False, {}, 2000, "audit.witnesses"),
        (True, {}, 10_000, "secrecy.groups = 3"),
        (True, HYBRID, 2000, 'secrecy.keys = "x25519"'),
        (False, HYBRID, 2000, "audit.witnesses"),
        (False, {"groups": 3}, 2000, "audit.witnesses"),
        (True, {"groups": 3}, 10_000, "secrecy.groups = 4"),
    ],
)
def test_who_says_who_is_in_a_sum_bounds_it(
    tiny_base: Path, witnessed: bool, secrecy: dict[str, Any], most: int, helps: str
) -> None:
    """A witnessed log up to 10,000; the signatures of its clients, which all of them check, up to 2,000."""
    manifest = read_manifest(tiny_base)
    audit = {"audit": witnessed_by("w.example")} if witnessed else {}
    size = most * secrecy.get("groups", 1)

    def errors(clients: int) -> list[Finding]:
        cohort = {"size": clients, "quorum": clients * 9 // 10}
        found = check(plan_of(manifest, cohort=cohort, secrecy=secrecy, **audit), manifest)
        return [finding for finding in found if finding.severity == "error"]

    assert errors(size) == []
    (refused,) = errors(size + 1)
    assert refused.field == "cohort.size"
    assert f"more than {most} clients" in refused.cause
    assert helps in refused.remedy


def test_how_often_a_large_witnessed_round_may_fail_is_warned_of(tiny_base: Path) -> None:
    """All leaves of an attempt that fails behind its alive sets come before every client of the next."""
    manifest = read_manifest(tiny_base)

    def warned(clients: int, attempts: int, **sections: Any) -> bool:
        cohort = {"size": clients, "quorum": clients * 9 // 10, "attempts": attempts}
        plan = plan_of(manifest, cohort=cohort, **sections)
        return any(finding.field == "cohort.attempts" for finding in warnings_of(plan, manifest))

    audit = {"audit": witnessed_by("w.example")}
    assert not warned(10_000, 5, **audit)
    assert warned(10_000, 6, **audit)
    assert warned(2000, 7, secrecy=HYBRID, **audit)
    assert not warned(2000, 6, secrecy=HYBRID, **audit)
    assert not warned(2000, 1000)


@pytest.mark.parametrize("keys", list(Keys))
def test_what_a_failed_attempt_adds_for_a_client_is_not_more(keys: Keys) -> None:
    """The leaves of P-8.8 up to its vector, at their longest, as texts within a text."""
    digest, signature = "f" * 64, "f" * 128
    leaves = (
        Advert(group=1023, advert="f" * (2 * advert_bytes(keys))),
        Shares(client="f" * 32, xid=digest, root=digest, signature=signature, choice=digest),
        Vector(client="f" * 32, rid=digest, root=digest, length=2**31, signature=signature),
    )
    text = canonical_json([encode_message(leaf).decode() for leaf in leaves])
    assert 0.7 * TAIL_BYTES[keys] < len(text) < TAIL_BYTES[keys]


@pytest.mark.parametrize("groups", [11, 40, 150])
def test_all_clients_of_a_failed_attempt_fit_into_a_leaf(tiny_base: Path, groups: int) -> None:
    """As many as a plan may ask: what an aborted attempt had asked for is one leaf of the log. (P-8.7)"""
    manifest = read_manifest(tiny_base)
    assert isinstance(manifest, Manifest)

    def refused(size: int) -> bool:
        cohort = {"size": size, "quorum": size}
        plan = plan_of(manifest, cohort=cohort, secrecy={"groups": groups})
        return any("one leaf" in finding.cause for finding in check(plan, manifest))

    size = bisect_left(range(128 * groups + 1), True, lo=3 * groups, key=refused) - 1
    each = -(-size // groups)
    revealed = [
        AskedSum(group=number, rid="f" * 64, clients=["f" * 32] * each) for number in range(groups)
    ]
    revealed[-1] = revealed[-1].model_copy(
        update={"clients": ["f" * 32] * (each - groups * each + size)}
    )
    leaf = Abort(seq=2**50, group=None, round=2**50, attempt=2**50, revealed=revealed)
    key = Ed25519PrivateKey.generate()
    assert 60_000 < len(encode_statement(leaf, {"plan": "f" * 64}, key)) < MOST_BYTES


def test_large_groups_whose_losses_make_them_small_fit_too(tiny_base: Path) -> None:
    """Of a sum of more than 128 that has lost some, a leaf names all: only the quorum keeps it above."""
    manifest = read_manifest(tiny_base)

    def refused(size: int, quorum: int, groups: int) -> bool:
        cohort = {"size": size, "quorum": quorum}
        plan = plan_of(manifest, cohort=cohort, secrecy={"groups": groups})
        return any("one leaf" in finding.cause for finding in check(plan, manifest))

    assert refused(20 * 140, 20 * 128, 20)
    assert not refused(20 * 140, 20 * 129, 20)
    assert refused(12 * 128 + 1, 12 * 100, 12)
    assert not refused(10 * 200, 10 * 100, 10)


@pytest.mark.parametrize(
    ("size", "most"), [(5, 1), (128, 42), (129, 29), (2000, 283), (10_000, 1277)]
)
def test_a_quorum_below_which_sums_do_not_open_is_warned_of(
    tiny_base: Path, size: int, most: int
) -> None:
    manifest = read_manifest(tiny_base)
    assert most_lost(size) == most

    def warned(quorum: int) -> bool:
        audit = {"audit": witnessed_by("w.example")} if size > 2000 else {}
        plan = plan_of(manifest, cohort={"size": size, "quorum": quorum}, **audit)
        return any(
            finding.severity == "warning" and "lost" in finding.cause for finding in check(plan)
        )

    assert not warned(size - most)
    assert warned(size - most - 1)


@pytest.mark.parametrize(("keys", "noted"), [("x25519", True), ("x25519+ml-kem-768", False)])
def test_keys_that_fall_later_are_noted(tiny_base: Path, keys: str, noted: bool) -> None:
    plan = plan_of(read_manifest(tiny_base), secrecy={"keys": keys})
    found = [finding for finding in check(plan) if finding.field == "secrecy.keys"]
    assert [finding.severity for finding in found] == ["note"] * noted


@pytest.mark.parametrize("size", [3, 6, 9, 20, 100, 400])
def test_a_plan_may_spare_as_many_as_a_sum_opens_without(tiny_base: Path, size: int) -> None:
    """And what is proposed in the place of more is the most that may be spared."""
    manifest = read_manifest(tiny_base)

    def said(spare: int) -> dict[str, str]:
        plan = plan_of(manifest, cohort={"size": size, "quorum": size, "spare": spare})
        found = [f for f in check(plan, manifest) if f.field == "cohort.spare"]
        return {finding.severity: finding.remedy for finding in found}

    most = max(spare for spare in range(size) if spare <= most_lost(size + spare))
    assert "error" not in said(most)
    assert ("warning" in said(most)) == (0 < most == most_lost(size + most))
    assert said(size)["error"] == (
        f"spare = {most} at most" if most else "leave it out, or ask more clients"
    )


def test_the_groups_of_a_plan_spare_their_parts(tiny_base: Path) -> None:
    manifest = read_manifest(tiny_base)

    def refused(spare: int) -> bool:
        cohort = {"size": 30, "quorum": 24, "spare": spare}
        plan = plan_of(manifest, cohort=cohort, secrecy={"groups": 3})
        return any(
            (f.severity, f.field) == ("error", "cohort.spare") for f in check(plan, manifest)
        )

    assert [refused(spare) for spare in (3, 9, 15, 30)] == [False, False, True, True]


def test_what_clients_to_spare_cost_in_the_accounts_is_said() -> None:
    """Epsilon and noise stay those of the quorum; the ring alone may become wider."""

    def said(spare: int) -> tuple[list[str], list[str]]:
        plan, manifest = small_plan(
            cohort={"size": 80, "quorum": 80, "spare": spare},
            privacy={"mechanism": "distributed", "noise_multiplier": 4.0, "epsilon": 40.0},
            rule={"name": "first"},
        )
        found = check(plan, manifest)
        spent = [f.cause.rpartition(";")[2] for f in found if f.field == "privacy.noise_multiplier"]
        return spent, [f.cause for f in found if "is not waited for" in f.cause]

    assert said(0)[0] == said(20)[0]
    assert said(0)[1] == []
    (cost,) = said(20)[1]
    assert "spends nothing of its budget" in cost
    assert "the ring has" in cost
