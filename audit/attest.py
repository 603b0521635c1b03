"""An auditor's signed verdict, as a leaf for the log. (P-8.7)"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.files import write_whole
from audit.report import Report
from protocol.errors import ArtefactError
from protocol.transparency.leaf_codec import encode_statement, sha256
from protocol.transparency.leaves import Audit

INBOX = Path("log") / "inbox"  # where a coordinator looks for leaves that others have signed


def attestation(report: Report, key: Ed25519PrivateKey, *, tool: str) -> bytes:
    """The leaf's bytes: what ``report`` says of the log's first leaves, signed by the auditor.

    Raises ArtefactError for more rounds than one leaf can name.
    """
    leaf = Audit(
        size=report.size,
        verdict=report.verdict,
        rounds={str(one.round): one.verdict for one in report.rounds},
        tool=tool,
        auditor=key.public_key().public_bytes_raw().hex(),
    )
    try:
        return encode_statement(leaf, {"log": report.root}, key)
    except ValueError:
        raise ArtefactError(
            f"a verdict on {len(report.rounds)} rounds does not fit into a leaf", "report it to us"
        ) from None


def write_attestation(data: bytes, out: Path) -> Path:
    """Into ``out``, or under its digest when that is a folder's inbox; the file. Raises ArtefactError."""
    path = out if out.suffix == ".json" else out / f"{sha256(data)}.json"
    write_whole(path, data)
    return path


def read_identity(path: Path) -> Ed25519PrivateKey:
    """An auditor's key, as `fedge client identity` writes it. Raises ArtefactError, without its bytes."""
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"{path}: no key that can be read ({type(error).__name__})",
            "`fedge client identity NAME --out FILE` makes one",
        ) from None
