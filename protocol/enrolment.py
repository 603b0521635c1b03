"""Joining a consortium: what a site asks for, and the roster that the operator signs. (P-10)

A site has two keys that never leave it: its identity (Ed25519), which signs in secure aggregation, and
its node key (ECDSA over secp384r1), by which the coordinator's transport knows it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocol.encoding import canonical_json, parse_canonical
from protocol.errors import ProofError
from protocol.secagg.roster import parse_roster, render_roster
from protocol.transparency.dsse import Statement, parse_envelope, sign_statement, verify_envelope

REQUEST_TYPE, ROSTER_TYPE = "urn:fedge:enrolment:1", "urn:fedge:roster:1"
ROSTER_SUBJECT = "roster.json"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,47}")
NODE_KEY_BYTES = 49  # a compressed point of secp384r1
MAX_BYTES = 4 << 20  # of a request or a roster: some ten thousand sites
NAME_FORM = "up to 48 of a-z, 0-9, `.`, `_`, `-`, first a letter or a digit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A site by name: its Ed25519 identity (32 bytes) and its secp384r1 node key (49, compressed)."""

    name: str
    identity: bytes
    node_key: bytes

    @property
    def node_key_pem(self) -> bytes:
        """The node key as SubjectPublicKeyInfo in PEM: the form that Flower compares."""
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), self.node_key)
        return point.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedRoster:
    """Every site of a consortium; ``version`` grows with every change."""

    version: int
    sites: tuple[Site, ...]

    def render(self) -> str:
        """The roster of P-6.12, or an empty text where nobody is listed."""
        listed = {site.name: site.identity for site in self.sites}
        return render_roster(listed) if listed else ""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Listed(_Strict):
    name: str
    identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    node_key: str = Field(pattern=rf"^[0-9a-f]{{{2 * NODE_KEY_BYTES}}}$")

    def site(self) -> Site:
        return _site(self.name, bytes.fromhex(self.identity), bytes.fromhex(self.node_key))


class _Request(_Listed):
    node_signature: str = Field(pattern=r"^[0-9a-f]{2,208}$")


class _Roster(_Strict):
    version: int = Field(ge=1, lt=2**53)
    sites: list[_Listed]


def node_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """A node key as 49 bytes."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def make_request(
    name: str, identity: Ed25519PrivateKey, node_key: ec.EllipticCurvePrivateKey
) -> bytes:
    """What a site sends to the operator: its name and public keys, signed by both keys. (P-10.1)

    Raises ProofError for a name of another form.
    """
    public = identity.public_key().public_bytes_raw()
    site = _site(name, public, node_key_bytes(node_key.public_key()))
    proof = node_key.sign(_proven(site), ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    predicate = {**_listed(site), "node_signature": proof.hex()}
    return sign_statement(REQUEST_TYPE, predicate, {name: _digest(site)}, identity) + b"\n"


def verify_request(data: bytes, *, source: str) -> Site:
    """The site that a request is for. Raises ProofError when one of its signatures does not hold."""
    remedy = "ask the site to run `fedge client enrol` and send the file again"
    try:
        envelope, statement = parse_envelope(_parsed(data))
        request = _Request.model_validate(statement.predicate)
        site = request.site()
        verify_envelope(envelope, site.identity)
        _verify_subject(statement, REQUEST_TYPE, site.name, _digest(site))
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), site.node_key)
        proof = bytes.fromhex(request.node_signature)
        point.verify(proof, _proven(site), ec.ECDSA(hashes.SHA384()))
    except ProofError as error:
        raise ProofError(f"{source}: {error.cause}", remedy) from None
    except ValidationError:
        raise ProofError(f"{source}: not an enrolment request", remedy) from None
    except (InvalidSignature, ValueError):
        raise ProofError(f"{source}: not signed by its node key", remedy) from None
    return site


def sign_roster(version: int, sites: Iterable[Site], operator: Ed25519PrivateKey) -> bytes:
    """The roster as the operator's statement. (P-10.2) Raises ProofError or PlanError for a repeated key."""
    roster = SignedRoster(version=version, sites=tuple(sorted(sites, key=lambda site: site.name)))
    _verify_distinct(roster)
    predicate = {"version": version, "sites": [_listed(site) for site in roster.sites]}
    subjects = {ROSTER_SUBJECT: _sha256(roster.render().encode())}
    return sign_statement(ROSTER_TYPE, predicate, subjects, operator) + b"\n"


def verify_roster(data: bytes, operator: bytes, *, least: int, source: str) -> SignedRoster:
    """The roster that the raw Ed25519 key ``operator`` signed, of version ``least`` or later.

    Raises ProofError for anything else: another signer, an older version, a repeated name or key.
    """
    remedy = "ask the operator for the roster; a key that changed is told in person"
    try:
        envelope, statement = parse_envelope(_parsed(data))
        verify_envelope(envelope, operator)
        listed = _Roster.model_validate(statement.predicate)
        roster = SignedRoster(
            version=listed.version, sites=tuple(entry.site() for entry in listed.sites)
        )
        _verify_distinct(roster)
        _verify_subject(statement, ROSTER_TYPE, ROSTER_SUBJECT, _sha256(roster.render().encode()))
    except ProofError as error:
        raise ProofError(f"{source}: {error.cause}", remedy) from None
    except ValidationError:
        raise ProofError(f"{source}: not a signed roster", remedy) from None
    if roster.version < least:
        raise ProofError(f"{source}: version {roster.version} is older than {least}", remedy)
    return roster


def _parsed(data: bytes) -> object:
    try:
        if len(data) > MAX_BYTES:
            raise ValueError
        return parse_canonical(data.removesuffix(b"\n"))
    except ValueError:
        raise _bad("not canonical JSON") from None


def _verify_subject(statement: Statement, kind: str, name: str, digest: str) -> None:
    if statement.predicate_type != kind:
        raise _bad(f"a statement of another kind than {kind}")
    if [(one.name, one.digest) for one in statement.subject] != [(name, {"sha256": digest})]:
        raise _bad("its subject is not what it says")


def _verify_distinct(roster: SignedRoster) -> None:
    names = [site.name for site in roster.sites]
    if names != sorted(set(names)):
        raise _bad("a name is listed twice, or names are out of order")
    if len({site.node_key for site in roster.sites}) != len(names):
        raise _bad("two sites have one node key")
    if names and len(parse_roster(roster.render(), source=ROSTER_SUBJECT)) != len(names):
        raise _bad("a name is listed twice")


def _site(name: str, identity: bytes, node_key: bytes) -> Site:
    if not NAME.fullmatch(name):
        raise _bad(f"the name {name[:60]!r} is not {NAME_FORM}")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), node_key)
    except ValueError:
        raise _bad(f"the node key of {name} is no point of secp384r1") from None
    return Site(name=name, identity=identity, node_key=node_key)


def _listed(site: Site) -> dict[str, str]:
    return {
        "name": site.name,
        "identity": site.identity.hex(),
        "node_key": site.node_key.hex(),
    }


def _digest(site: Site) -> str:
    return _sha256(canonical_json(_listed(site)))


def _proven(site: Site) -> bytes:
    return b"fedge/enrolment/v1\x00" + canonical_json(_listed(site))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bad(fault: str) -> ProofError:
    return ProofError(fault, "ask the operator")
