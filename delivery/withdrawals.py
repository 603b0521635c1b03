"""Whether a release holds updates of a site that withdrew: what the gate asks before each channel. (P-9.6)"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from audit.ancestry import not_named, touching
from audit.log_copy import LogCopy, Trust
from audit.published import Run
from audit.sources import Folder
from audit.verify import load_run
from delivery.evidence import REMEDY, Check
from delivery.releases import read_facts
from delivery.repository import Repository
from protocol.delivery import CANARY, Facts, Offer
from protocol.errors import ArtefactError, FedgeError
from protocol.peft_format import RELEASE_FILE
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Release
from protocol.transparency.note import parse_checkpoint, verify_note
from protocol.transparency.offline import parse_offline_proof


def load_line(run: Path, before: Sequence[Path], trust: Trust) -> tuple[Run, ...]:
    """A run, whose log ``trust`` is for, and those ``before`` it. Raises what loading raises."""
    return (
        load_run(Folder(run), trust),
        *(load_run(Folder(earlier), Trust()) for earlier in before),
    )


def check_withdrawals(line: Sequence[Run], number: int, *, despite: bool) -> str:
    """What is found of round ``number`` of the first run; the others are those before it, the latest first.

    Raises ArtefactError for updates of a site that withdrew, unless ``despite``, and for a run not named.
    """
    run, before = line[0], line[1:]
    touched = touching(run, number, before)
    if missing := not_named(run, before):
        raise _failed(
            f"nobody has looked for withdrawals in {missing} of the runs before: name each, the latest "
            "first, with --before RUN"
        )
    looked = ", ".join(
        f"{each.copy.checkpoint.size} leaves of {each.copy.checkpoint.origin}" for each in line
    )
    if not touched:
        return f"it holds no update of a site that withdrew, by {looked}"
    holds = f"it holds updates of {', '.join(map(str, touched))}, who withdrew"
    if not despite:
        raise _failed(f"{holds}; release an adapter from before, or say --despite-withdrawal")
    return f"{holds}, by {looked}: the publisher goes on in spite of it"


def promoted(
    repository: Repository,
    offer: Offer,
    run: Path | None,
    before: Sequence[Path],
    *,
    despite: bool,
) -> Check:
    """The same of what canaries have, by the logs as they are now: a site may have withdrawn since."""
    if run is None:
        return _unseen(before, despite=despite)
    try:
        facts = read_facts(repository, CANARY, offer)
        line = load_line(run, before, Trust())
        _verify_released(
            line[0].copy, facts, offer, repository.target(CANARY, offer.files.passport.name)
        )
        detail = check_withdrawals(line, facts.round, despite=despite)
        return Check(name="withdrawals", passed=True, detail=detail)
    except FedgeError as error:
        detail = without_folders(error.cause, [run, *before])
        return Check(name="withdrawals", passed=False, detail=detail)


def _unseen(before: Sequence[Path], *, despite: bool) -> Check:
    """Of a release whose run is not named."""
    if before:
        raise ArtefactError(
            "--before without --run: runs before which one?", "name the release's own run: --run"
        )
    detail = "nobody has looked whether a site withdrew"
    detail += (
        ": the publisher goes on in spite of it"
        if despite
        else " since the release was published: name its run with --run, or say --despite-withdrawal"
    )
    return Check(name="withdrawals", passed=despite, detail=detail)


def without_folders(text: str, folders: Sequence[Path]) -> str:
    """Without where things lie on this machine: evidence is published. A name alone says nothing of it."""
    for folder in sorted(folders, key=lambda each: -len(str(each))):
        if os.sep in str(folder):
            text = text.replace(str(folder), folder.name)
    return text


def _verify_released(copy: LogCopy, facts: Facts, offer: Offer, passport: bytes) -> None:
    """The run's log is the one that the passport is of. Raises ProofError, ArtefactError."""
    proof = parse_offline_proof(passport.decode(errors="replace"))
    known = parse_checkpoint(verify_note(proof.checkpoint, [copy.key]).text, origin=copy.key.name)
    if known.size > copy.checkpoint.size or copy.tree.root(known.size) != known.root:
        raise _failed("the run's log is not the one that the release's passport is of")
    read = decode_leaf(b"".join(copy.entries[facts.log_index : facts.log_index + 1]))
    subject = f"rounds/{facts.round:04d}/adapter/{RELEASE_FILE}"
    if not isinstance(read.leaf, Release) or read.subjects.get(subject) != offer.id:
        raise _failed(f"leaf {facts.log_index} of the run's log is not the release")


def _failed(detail: str) -> ArtefactError:
    return ArtefactError(detail, REMEDY)
