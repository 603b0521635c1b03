"""Requests and rosters: what two keys signed comes back, anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.enrolment import (
    MAX_BYTES,
    REQUEST_TYPE,
    ROSTER_TYPE,
    Site,
    make_request,
    node_key_bytes,
    sign_roster,
    verify_request,
    verify_roster,
)
from protocol.errors import PlanError, ProofError
from protocol.legality_of_secrecy import MOST_LOGGED
from protocol.secagg.roster import parse_roster
from protocol.transparency.dsse import parse_envelope, sign_statement

IDENTITY = Ed25519PrivateKey.from_private_bytes(b"i" * 32)
OPERATOR = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
NODE = ec.derive_private_key(1234567, ec.SECP384R1())
PUBLIC = OPERATOR.public_key().public_bytes_raw()
REQUEST = make_request("ward-3", IDENTITY, NODE)


def site(number: int) -> Site:
    identity = Ed25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32)
    node = ec.derive_private_key(number + 77, ec.SECP384R1())
    return Site(
        name=f"site-{number}",
        identity=identity.public_key().public_bytes_raw(),
        node_key=node_key_bytes(node.public_key()),
    )


def test_a_request_comes_back() -> None:
    made = verify_request(REQUEST, source="r")
    assert made.name == "ward-3"
    assert made.identity == IDENTITY.public_key().public_bytes_raw()
    assert made.node_key == node_key_bytes(NODE.public_key())
    assert make_request("ward-3", IDENTITY, NODE) == REQUEST  # no randomness of its own
    assert IDENTITY.private_bytes_raw().hex() not in REQUEST.decode()


@settings(max_examples=60)
@given(at=st.integers(0, len(REQUEST) - 2), bit=st.integers(0, 7))
def test_an_altered_request_is_refused(at: int, bit: int) -> None:
    altered = bytearray(REQUEST)
    altered[at] ^= 1 << bit
    with pytest.raises(ProofError):
        verify_request(bytes(altered), source="r")


@pytest.mark.parametrize(
    "name", ["", "Ward", "a b", "../x", "-x", "a" * 49, "ward\n", "é", ".hidden"]
)
def test_a_name_is_a_file_name(name: str) -> None:
    with pytest.raises(ProofError, match="the name"):
        make_request(name, IDENTITY, NODE)


def resigned(change: dict[str, object], *, kind: str = REQUEST_TYPE, subject: str = "") -> bytes:
    """The request with another predicate, signed by the identity once more."""
    _, statement = parse_envelope(json.loads(REQUEST))
    named = statement.subject[0]
    subjects = {subject or named.name: named.digest["sha256"]}
    return sign_statement(kind, statement.predicate | change, subjects, IDENTITY)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (resigned({"name": "ward-4"}), "subject"),
        (resigned({}, subject="ward-4"), "subject"),
        (resigned({}, kind=ROSTER_TYPE), "another kind"),
        (resigned({"node_signature": "00" * 102}), "node key"),
        (resigned({"node_key": "02" + "ff" * 48}), "no point"),
        (resigned({"identity": "11" * 32}), "not signed by"),
        (resigned({"extra": 1}), "not an enrolment request"),
        (resigned({"node_signature": ""}), "not an enrolment request"),
        (REQUEST + b" ", "canonical"),
        (b"{}", "not an in-toto statement"),
        (b"[" * 100_000, "canonical"),
        (b" " * (MAX_BYTES + 1), "canonical"),
        (b"\xff", "canonical"),
    ],
)
def test_what_is_no_request_says_why(data: bytes, cause: str) -> None:
    with pytest.raises(ProofError, match=cause):
        verify_request(data, source="r")


def test_a_roster_comes_back_in_the_form_of_plans() -> None:
    sites = (site(2), site(0), site(1))
    roster = verify_roster(sign_roster(7, sites, OPERATOR), PUBLIC, least=7, source="r")
    assert roster.version == 7
    assert roster.sites == tuple(sorted(sites, key=lambda one: one.name))
    listed = parse_roster(roster.render(), source="r")
    assert listed == {one.name: one.identity for one in sites}
    empty = verify_roster(sign_roster(1, (), OPERATOR), PUBLIC, least=1, source="r")
    assert (empty.sites, empty.render()) == ((), "")


def test_a_roster_holds_all_of_the_largest_sum() -> None:
    """10,000 sites with the longest names, from what one more of them takes."""
    long = [replace(site(number), name=f"{number}".rjust(48, "z")) for number in range(4)]
    one, four = (len(sign_roster(1, sites, OPERATOR)) for sites in (long[:1], long))
    assert one + (four - one) / 3 * MOST_LOGGED < MAX_BYTES


def test_a_roster_of_another_signer_or_age_is_refused() -> None:
    statement = sign_roster(3, [site(0)], OPERATOR)
    with pytest.raises(ProofError, match="older than 4"):
        verify_roster(statement, PUBLIC, least=4, source="r")
    with pytest.raises(ProofError, match="not signed by"):
        verify_roster(sign_roster(3, [site(0)], IDENTITY), PUBLIC, least=1, source="r")
    with pytest.raises(ProofError, match="canonical"):
        verify_roster(statement[:-20], PUBLIC, least=1, source="r")


@pytest.mark.parametrize(
    "sites",
    [
        [site(0), site(0)],
        [site(0), replace(site(1), node_key=site(0).node_key)],
        [site(0), replace(site(1), identity=site(0).identity)],
    ],
)
def test_no_name_and_no_key_is_listed_twice(sites: list[Site]) -> None:
    with pytest.raises((ProofError, PlanError)):
        sign_roster(1, sites, OPERATOR)


def test_a_roster_has_one_order_and_says_its_digest() -> None:
    _, statement = parse_envelope(json.loads(sign_roster(3, [site(0), site(1)], OPERATOR)))
    digest = statement.subject[0].digest["sha256"]
    swapped = statement.predicate | {"sites": statement.predicate["sites"][::-1]}
    for predicate, subjects in (
        (swapped, {"roster.json": digest}),
        (statement.predicate, {"roster.json": "0" * 64}),
        (statement.predicate, {"other.json": digest}),
        (statement.predicate | {"version": 0}, {"roster.json": digest}),
    ):
        forged = sign_statement(ROSTER_TYPE, predicate, subjects, OPERATOR)
        with pytest.raises(ProofError):
            verify_roster(forged, PUBLIC, least=1, source="r")
