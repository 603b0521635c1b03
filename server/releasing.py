"""A release goes into the log, and gets its passport: the proof that it is there. (P-8.15)"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ArtefactError, FedgeError, ProofError
from protocol.peft_format import EDGE_FILE, PASSPORT_FILE, RELEASE_FILE, ParityError
from protocol.plan import Plan
from protocol.rows.measured import MeasuredRows
from protocol.transparency.leaf_codec import decode_leaf
from protocol.transparency.leaves import Adapter, Evaluation, Release
from protocol.transparency.offline import OfflineProof
from protocol.transparency.policy import policy_of
from server.log import RunLog, open_log
from server.store import ADAPTER, RunStore
from server.witnessing import Witness, cosigned_by
from storage.regular import sha256_of
from storage.whole import write_whole

REFUSED = "refused.json"  # of a run: why its last attempt at a release came to nothing


def note_refusal(run: Path, number: int, error: FedgeError) -> None:
    """Leave why round ``number`` was not released, and the parity that was measured, for reports."""
    parity = error.parity if isinstance(error, ParityError) else None
    body = {
        "round": number,
        "kind": type(error).__name__,
        "cause": error.cause,
        "remedy": error.remedy,
        "parity": None if parity is None else parity.model_dump(mode="json"),
    }
    write_whole(run / REFUSED, (json.dumps(body, indent=1) + "\n").encode())


def log_release(
    store: RunStore,
    plan: Plan,
    number: int,
    *,
    rows: MeasuredRows,
    metrics: Mapping[str, float],
    log_key: Ed25519PrivateKey | None = None,
    witnesses: Sequence[Witness] = (),
) -> Path:
    """Log round ``number``'s released files and how good they are; the path of the passport.

    ``store`` is held since before the files were written: no coordinator is at the run, and no auditor is
    shown files for long that the log does not know. ``rows`` are those that they were measured on,
    ``metrics`` are shares, ``log_key`` is the log's where the run has none of its own. Raises ArtefactError
    for a round that is not published or not released, ProofError without the plan's quorum of witnesses.
    """
    log = open_log(store, plan, log_key)
    folder = store.folder / "rounds" / f"{number:04d}" / ADAPTER
    index = _release_leaf(log, folder, number, rows, metrics)
    if plan.witnessed:
        note, faults = cosigned_by(witnesses, log, policy_of(plan.audit))
        try:
            policy_of(plan.audit).verify_checkpoint(note)
        except ProofError as error:
            raise ProofError(f"{error.cause} ({'; '.join(faults)})", error.remedy) from None
        log.cosigned(note)
    passport = OfflineProof(
        index=index,
        path=tuple(log.tree.inclusion(index)),
        checkpoint=log.note,
        extra=log.entry(index),
    )
    write_whole(folder / PASSPORT_FILE, passport.encode().encode())
    (store.folder / REFUSED).unlink(missing_ok=True)
    return folder / PASSPORT_FILE


def _release_leaf(
    log: RunLog, folder: Path, number: int, rows: MeasuredRows, metrics: Mapping[str, float]
) -> int:
    """The index of the leaf about these very files; written when there is none, or none with metrics."""
    adapters = log.find(Adapter, round=number)
    try:
        files = {
            f"rounds/{number:04d}/{ADAPTER}/{name}": sha256_of(folder / name)
            for name in (RELEASE_FILE, EDGE_FILE)
        }
    except OSError:
        raise ArtefactError(f"{folder} was not released", "`fedge release RUN` does it") from None
    if not adapters:
        raise ArtefactError(f"round {number} is not in the log", "resume the run first")
    for index in log.find(Release, round=number)[-1:]:  # what counts is the last one
        read = decode_leaf(log.entry(index))
        measured = isinstance(read.leaf, Release) and read.leaf.eval is not None
        if read.subjects == files and (measured or not metrics):
            return index
    leaves, evaluation = [], next(reversed(log.find(Evaluation, round=number)), None)
    if metrics:
        thousandths = {name: round(1000 * value) for name, value in sorted(metrics.items())}
        leaf = Evaluation(round=number, rows=rows.count, metrics=thousandths)
        said = log.write(leaf, {"rows": rows.digest})
        if evaluation is None or log.entry(evaluation) != said:  # the same is not told twice
            leaves, evaluation = [said], log.size
    release = Release(round=number, adapter=adapters[-1], eval=evaluation)
    return log.append([*leaves, log.write(release, files)]) + len(leaves)
