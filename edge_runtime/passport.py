"""The adapter's passport: a device runs what is in the log that it trusts, and nothing else. (P-8.15)"""

from __future__ import annotations

from pathlib import Path

from protocol.errors import ArtefactError, ProofError
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE
from protocol.transparency.leaf_codec import decode_leaf, verify_author
from protocol.transparency.leaves import Release
from protocol.transparency.offline import MOST_BYTES, OfflineProof, parse_offline_proof
from protocol.transparency.policy import Policy, parse_policy
from storage.regular import read_regular_text, read_settings_text, sha256_of

REMEDY = "do not run this adapter; get one that was released, with its passport"


def read_policy(path: Path) -> Policy:
    """The policy this device has pinned. Raises ArtefactError or ProofError."""
    try:
        return parse_policy(read_settings_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ArtefactError(
            f"{path}: cannot be read ({type(error).__name__})", "install the log's policy file"
        ) from None


def verify_passport(folder: Path, *, round_number: int, policy: Policy) -> OfflineProof:
    """The files of ``folder`` are a release in the log that ``policy`` trusts; the proof of it.

    Raises ProofError.
    """
    path = folder / PASSPORT_FILE
    try:
        text = read_regular_text(path, most=MOST_BYTES)
    except (OSError, UnicodeDecodeError):
        raise ProofError(f"{folder} has no passport: {PASSPORT_FILE} is missing", REMEDY) from None
    try:
        proof = parse_offline_proof(text)
        if proof.extra is None:
            raise ProofError("it comes without its leaf", REMEDY)
        proof.verify(proof.extra, policy)
        read = decode_leaf(proof.extra)
        verify_author(read, *(log.public for log in policy.logs))
    except ProofError as error:
        raise ProofError(f"{path}: {error.cause}", error.remedy) from None
    if not isinstance(read.leaf, Release) or read.leaf.round != round_number:
        raise ProofError(f"{path}: it is not of a release of round {round_number}", REMEDY)
    for name in (RELEASE_FILE, EDGE_FILE):
        logged = read.subjects.get(f"rounds/{round_number:04d}/adapter/{name}")
        try:
            digest = sha256_of(folder / name)
        except OSError:
            digest = ""
        if logged != digest:
            raise ProofError(f"{folder / name} is not the file that was released", REMEDY)
    return proof
