"""What the gate found, as a signed statement beside the release; also when it refused. (P-9.6)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from delivery.keys import KeyRing
from delivery.releases import read_current
from delivery.repository import EVIDENCE, Repository
from delivery.status import evidence_name
from protocol.delivery import CANARY, GATE, Offer, release_name
from protocol.encoding import parse_canonical
from protocol.errors import ArtefactError, DeliveryError, FedgeError, ProofError
from protocol.peft_format import RELEASE_FILE
from protocol.transparency.dsse import Envelope, parse_envelope, sign_statement, verify_envelope
from protocol.transparency.leaf_codec import sha256
from storage.regular import read_regular
from storage.whole import write_whole

REMEDY = "release another round, or mend what the check names; nothing was published"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question; ``detail`` says what was found, or what could not be."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class About:
    """Which release on its way to which channel."""

    name: str
    seq: int
    channel: str


def decide(
    repository: Repository,
    keys: KeyRing,
    about: About,
    subjects: Mapping[str, str],
    checks: Sequence[Check],
    now: datetime,
) -> dict[str, bytes]:
    """The evidence to publish, by its file's name.

    Raises DeliveryError ``gate.<check>`` for the first check that failed; then the evidence is in the
    repository already, as refused. `keys.missing` without the gate's key.
    """
    file = evidence_name(about.name, about.seq, about.channel)
    predicate = {
        "release": release_name(about.name, about.seq),
        "channel": about.channel,
        "time": int(now.timestamp()),
        "passed": all(check.passed for check in checks),
        "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail[:500]} for c in checks],
    }
    role = repository.delegation(CANARY)
    statement = sign_statement(GATE, predicate, subjects, keys.secret(role.keyids))
    for check in checks:
        if not check.passed:
            refused = file.replace(".json", f".refused-{int(now.timestamp())}.json")
            write_evidence(repository, {refused: statement})
            raise DeliveryError(f"gate.{check.name}", check.detail, REMEDY)
    return {file: statement}


def write_evidence(repository: Repository, evidence: Mapping[str, bytes]) -> None:
    """Keep statements by their files' names."""
    folder = repository.folder / EVIDENCE
    folder.mkdir(exist_ok=True)
    for name, statement in evidence.items():
        write_whole(folder / name, statement)


def signed_before(repository: Repository, name: str, run: Path, number: int) -> Offer | None:
    """Round ``number`` as canaries have it, when the gate's key of today has not signed for it."""
    path = run / "rounds" / f"{number:04d}" / "adapter" / RELEASE_FILE
    try:
        release = sha256(path.read_bytes())
    except OSError:
        return None  # the gate says so
    for offer in read_current(repository, CANARY, name).releases:
        if offer.id == release and not passed_before(repository, name, offer).passed:
            return offer
    return None


def passed_before(repository: Repository, name: str, offer: Offer) -> Check:
    """The gate's own statement that an offer's bytes passed on their way to the canaries."""
    path = repository.folder / EVIDENCE / evidence_name(name, offer.seq, CANARY)
    files = {file["sha256"] for file in offer.files.model_dump().values()}
    try:
        verify_evidence(read_regular(path), files, repository.public_keys(CANARY))
    except OSError:
        return Check(name="canary", passed=False, detail=f"{path.name} is missing")
    except ArtefactError as error:
        return Check(name="canary", passed=False, detail=f"{path.name}: {error.cause}")
    return Check(name="canary", passed=True, detail=f"{path.name}: passed, signed by the gate")


def verify_evidence(data: bytes, files: set[str], keys: Sequence[bytes]) -> None:
    """One of ``keys`` signed that the files with these SHA-256 passed. Raises ArtefactError."""
    try:
        envelope, statement = parse_envelope(parse_canonical(data))
    except (ValueError, FedgeError):
        raise ArtefactError("not a statement", REMEDY) from None
    if not any(_signed_by(envelope, key) for key in keys):
        raise ArtefactError("not signed by the gate", REMEDY)
    about = {subject.digest["sha256"] for subject in statement.subject}
    if statement.predicate_type != GATE or about != files:
        raise ArtefactError("about other files", REMEDY)
    if statement.predicate.get("passed") is not True:
        raise ArtefactError("the checks had not passed", REMEDY)


def _signed_by(envelope: Envelope, key: bytes) -> bool:
    try:
        verify_envelope(envelope, key)
    except ProofError:
        return False
    return True
