"""What a round's folder says of itself, and the artefact for devices that was made of it. (P-5.3, P-8.16)"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from audit.collected import Placed
from audit.published import REMEDY, Run, adapter_path, read_subject
from audit.report import Findings
from audit.sources import MissingError
from protocol.errors import MachineError, ProofError
from protocol.layout import Tensors
from protocol.methods import method_of
from protocol.peft_format import (
    EDGE_FILE,
    PASSPORT_FILE,
    RELEASE_FILE,
    Published,
    ReleaseNote,
    parse_release,
    render_release,
    to_edge,
)
from protocol.transparency.leaves import Adapter, Release
from protocol.transparency.offline import parse_offline_proof

UNREAD = "that devices run the adapter that was trained"


def check_release(
    run: Run,
    placed: Placed[Adapter],
    released: Sequence[Placed[Release]],
    *,
    tensors: Tensors,
    metrics: Mapping[str, float] | None,
    findings: Findings,
) -> None:
    """``release.json`` and, where there is one, the ``.onnx_adapter``.

    ``tensors`` are the published adapter's, ``metrics`` the recomputed sums if there are any. Raises
    ProofError, ArtefactError.
    """
    leaf = placed.leaf
    name = adapter_path(leaf.round, RELEASE_FILE)
    for each in released:
        _check_leaf(run, placed, each)
        if each.subjects != released[-1].subjects:
            findings.leave_open(
                f"leaf {each.index} `release` was replaced by leaf {released[-1].index}, with its files",
                "that devices which took it run the adapter that was trained",
            )
    data = read_subject(run.source, released[-1] if released else placed, name)
    try:
        note = parse_release(data.decode(), source=name)
    except UnicodeDecodeError:
        raise _bad(f"{name} is no text") from None
    run.coverage.spelled(name, data, render_release(note))
    _check_note(run, leaf, note, metrics)
    _check_parity(run, name, note, released=bool(released))
    if metrics is None:
        run.coverage.leave(name, "updates went in clear: the coordinator's word", "metrics")
    files = {adapter_path(leaf.round, file): digest for file, digest in note.files.items()}
    edge = adapter_path(leaf.round, EDGE_FILE)
    covered = {file: digest for file, digest in placed.subjects.items() if "/adapter/" in file}
    covered.pop(name, None)
    if released:
        covered[edge] = released[-1].subjects[edge]
    if files != covered:
        raise _bad(f"{name} does not list the files that the log covers")
    if released:
        data = read_subject(run.source, released[-1], edge)
        _check_slots(run, data, tensors, edge, findings)
        _check_passport(run, released[-1], findings)


def _check_leaf(run: Run, placed: Placed[Adapter], given: Placed[Release]) -> None:
    """It points to this round's adapter, and to an evaluation of it if to any."""
    number = placed.leaf.round
    wanted = {adapter_path(number, RELEASE_FILE), adapter_path(number, EDGE_FILE)}
    if set(given.subjects) != wanted:
        raise _bad(f"leaf {given.index} `release` is not about the round's release")
    if given.leaf.adapter != placed.index:
        raise _bad(f"leaf {given.index} `release` points to leaf {given.leaf.adapter}")
    rounds = {each.index: each.leaf.round for each in run.log.evaluations}
    if given.leaf.eval is not None and rounds.get(given.leaf.eval) != number:
        raise _bad(f"leaf {given.index} `release` points to no evaluation of its round")
    before = [at for at, of in rounds.items() if of == number and at < given.index]
    if given.leaf.eval != (before[-1] if before else None):
        raise _bad(f"leaf {given.index} `release` does not point to the last evaluation before it")


def _check_note(
    run: Run, leaf: Adapter, note: ReleaseNote, metrics: Mapping[str, float] | None
) -> None:
    plan = run.plan
    for field, meant in {
        "plan_name": plan.name,
        "plan_digest": run.plan_digest,
        "base_fingerprint": run.manifest.fingerprint,
        "program": plan.base.program,
        "round": leaf.round,
        "adapter_digest": leaf.published,
        **plan.task.note(),
        "exchange": leaf.exchange,
        "nested": method_of(plan.adapter).nested,
        **({} if metrics is None else {"metrics": dict(metrics)}),
    }.items():
        if getattr(note, field) != meant:
            raise _bad(f"`{field}` of {RELEASE_FILE} is not that of the round")


def _check_parity(run: Run, name: str, note: ReleaseNote, *, released: bool) -> None:
    """(P-5.3) It is within the plan's bound, as far as whoever measured it says so."""
    if (note.parity is not None) != released:
        raise _bad(f"`parity` of {name} is there without a release, or missing with one")
    if note.calibration is not None:
        if not released:
            raise _bad(f"`calibration` of {name} is there without a release")
        why = "the word of who released it: it rests on rows that are not published"
        run.coverage.leave(name, why, "calibration")
    if note.parity is None:
        return
    if not note.parity.meets(run.plan):
        bound = run.plan.release.parity_max_relative
        raise _bad(f"`parity` of {name} is not within the plan's bound {bound:g}")
    run.coverage.leave(name, "but for the plan's bounds, the word of who released it", "parity")


def _check_passport(run: Run, given: Placed[Release], findings: Findings) -> None:
    """(P-8.15) The proof that devices ask for is of this leaf, in this very log."""
    name = adapter_path(given.leaf.round, PASSPORT_FILE)
    leaf, tree = run.copy.entries[given.index], run.copy.tree
    try:
        proof = parse_offline_proof(run.source.read(name).decode())
        proof.verify(leaf, run.policy)
        seen = run.policy.verify_checkpoint(proof.checkpoint)
    except MissingError:
        findings.leave_open(
            f"{name} is not there", "devices with a policy will not run the release"
        )
        return
    except UnicodeDecodeError:
        raise _bad(f"{name} is no text") from None
    except ProofError as error:
        raise _bad(f"{name}: {error.cause}") from None
    run.coverage.signed_by_others(name, proof.checkpoint, run.signers)
    if (proof.index, proof.extra) != (given.index, leaf):
        raise _bad(f"{name} is not of leaf {given.index} `release`")
    if seen.size > tree.size or tree.root(seen.size) != seen.root:
        raise _bad(f"{name}: its checkpoint is of another tree than this log")


def _check_slots(run: Run, data: bytes, tensors: Tensors, name: str, findings: Findings) -> None:
    """(P-5.2) What devices fill slots with is what the published tensors give."""
    published = Published.by(run.plan.adapter)
    if published.method.reads_base and run.linears is None:
        cause = f"what `{published.method.name}` does hangs on weights of the base"
        findings.leave_open(f"{name}: {cause}: name one with --base", UNREAD)
        return
    try:
        wanted = to_edge(tensors, published=published, linears=run.linears)
    except MachineError as error:  # the auditor's own base, which says nothing of the run
        findings.leave_open(f"{name}: {error.cause}", UNREAD)
        return
    _check_edge(data, wanted, name, findings)


def _check_edge(data: bytes, wanted: Tensors, name: str, findings: Findings) -> None:
    """The graph's inputs are the published tensors."""
    try:
        found = read_edge_adapter(data, name)
    except MachineError as error:
        findings.leave_open(f"{name}: {error.cause}", UNREAD)
        return
    same = found.keys() == wanted.keys() and all(
        found[key].dtype == np.float32
        and found[key].shape == wanted[key].shape
        and found[key].tobytes() == wanted[key].tobytes()
        for key in found
    )
    if not same:
        raise _bad(f"{name} holds another adapter than the one published")


def read_edge_adapter(data: bytes, name: str) -> Tensors:
    """The tensors of an ``.onnx_adapter``. Raises ProofError; MachineError without ONNX Runtime."""
    try:
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise MachineError("onnxruntime is not installed", "pip install '.[edge]'") from None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / EDGE_FILE
        path.write_bytes(data)
        try:
            form = runtime.AdapterFormat.read_adapter(str(path))  # lives while its values are read
            return {key: np.array(value.numpy()) for key, value in form.get_parameters().items()}
        except Exception as error:  # it raises types of its own, without a common public base
            raise _bad(f"{name} cannot be read ({type(error).__name__})") from None


def _bad(fault: str) -> ProofError:
    return ProofError(fault, REMEDY)
