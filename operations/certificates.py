"""A consortium's own certificate authority, and certificates for machines: X.509, ECDSA over secp384r1."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS, SERVER_DAYS = 3650, 365
CLOCKS = timedelta(hours=25)  # a clock that is a day behind still accepts a new certificate
ALWAYS = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
Span = tuple[datetime, datetime]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def make_authority(name: str, *, now: datetime) -> Pair:
    """A root that may sign server certificates and nothing below them.

    It has no beginning: whoever trusts it was given it, and a clock that was ahead may be set right.
    """
    return _authority(name, (ALWAYS[0], _from(now, AUTHORITY_DAYS)[1]))


def issue(authority: Pair, hosts: list[str], *, now: datetime) -> Pair:
    """A server certificate for ``hosts``: names and addresses."""
    return _issue(authority, hosts, _from(now, SERVER_DAYS))


def make_local(name: str) -> tuple[bytes, Pair]:
    """An authority's certificate and a pair for loopback that it signed; its key is kept nowhere.

    They hold at all times: only the folder they lie in trusts them, and nobody there looks after them.
    """
    authority = _authority(name, ALWAYS)
    return authority.certificate, _issue(authority, ["127.0.0.1", "localhost"], ALWAYS)


def validity(certificate: bytes) -> Span:
    """From when until when a PEM certificate holds."""
    found = x509.load_pem_x509_certificate(certificate)
    return found.not_valid_before_utc, found.not_valid_after_utc


def _from(now: datetime, days: int) -> Span:
    return now.astimezone(UTC) - CLOCKS, now.astimezone(UTC) + timedelta(days=days)


def _authority(name: str, span: Span) -> Pair:
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        _builder(subject, subject, key.public_key(), span)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA384()), key)


def _issue(authority: Pair, hosts: list[str], span: Span) -> Pair:
    root = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    builder = (
        _builder(subject, root.subject, key.public_key(), span)
        .add_extension(
            x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return _pair(builder.sign(signer, hashes.SHA384()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, span: Span
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(span[0])
        .not_valid_after(span[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(certificate=certificate.public_bytes(serialization.Encoding.PEM), key=private)
