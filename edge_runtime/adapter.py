"""An adapter on a device: every check of P-5.4 before it may answer, then one loaded object."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_runtime.base import EdgeBase
from edge_runtime.blends.note import AnyNote, BlendNote, is_blend, read_blend, unvouched
from edge_runtime.tasks import task_named
from protocol.errors import ArtefactError
from protocol.forms import BOTTLENECK, DOWN, SCALE, SOFT_PROMPT, UP
from protocol.manifest import BaseManifest, HeadManifest, Linear, Slot
from protocol.peft_format import EDGE_FILE, RELEASE_FILE, ReleaseNote, parse_release
from storage.regular import open_regular, read_regular, read_regular_text

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

Tensors = dict[str, npt.NDArray[Any]]
REFETCH = "fetch the adapter again"
BOTTLENECKS = "install the base as it is built now: older ones have none of a bottleneck"
SCALES = "install the base as it was built with `--scales`: its fingerprint is the same"
MOST_BYTES = 2**30  # of an adapter


@dataclass(frozen=True, kw_only=True)
class ActiveAdapter:
    """A checked adapter with the run options that apply it.

    ONNX Runtime's options do not keep their adapter alive; this object holds both, and is what a
    running inference must hold. ``caution``: what whoever runs it is told, if anything.
    """

    note: AnyNote
    folder: Path
    run_options: Any
    keep: Any
    caution: str = ""


def load_adapter(
    folder: Path, base: EdgeBase, policy: Policy | None = None, *, rank: int | None = None
) -> ActiveAdapter:
    """Check ``folder`` against ``base`` and load it. (P-5.4)

    With a ``policy`` it has to be a release in a log that this trusts, and no blend. With a ``rank`` it
    answers by the first ranks of its factors. Raises ArtefactError or ProofError at the first fault,
    DataError for a rank that it has not.
    """
    note = read_any_note(folder)
    task_named(note.task)
    path = folder / EDGE_FILE
    data = adapter_file(folder, note, fingerprint=base.manifest.fingerprint, policy=policy)
    with private_copy(data) as own:
        tensors = read_tensors(own, source=str(path))
        loaded = ort.LoraAdapter()
        loaded.Load(str(own))
    check_tensors(tensors, base, labels=note.outputs, source=str(path))
    caution = ""
    if rank is not None:
        from edge_runtime.lower_rank import cut_release  # a service starts without it

        tensors, note, caution = cut_release(tensors, note, rank, source=str(folder))
        loaded = _loaded(tensors)
    prompt = len(tensors[SOFT_PROMPT]) if SOFT_PROMPT in tensors else 0
    if note.max_length + prompt > base.manifest.max_positions:
        raise ArtefactError(
            f"{folder}: max_length {note.max_length} and a prompt of {prompt} are above the base's "
            f"{base.manifest.max_positions} positions",
            REFETCH,
        )
    options = ort.RunOptions()
    options.add_active_adapter(loaded)
    return ActiveAdapter(
        note=note, folder=folder, run_options=options, keep=loaded, caution=caution
    )


def _loaded(tensors: Tensors) -> Any:
    """ONNX Runtime's adapter of tensors."""
    from edge_runtime.edge_adapter import write_edge_adapter

    loaded = ort.LoraAdapter()
    with private_copy(b"") as own:
        write_edge_adapter(tensors, own)
        loaded.Load(str(own))
    return loaded


def adapter_file(folder: Path, note: AnyNote, *, fingerprint: str, policy: Policy | None) -> bytes:
    """The ``.onnx_adapter`` of a release, or of a blend, for a base. Raises ArtefactError, ProofError."""
    if policy is not None:
        if isinstance(note, BlendNote):
            raise unvouched(folder)
        from edge_runtime.passport import verify_passport  # a service starts without it

        verify_passport(folder, round_number=note.round, policy=policy)
    if EDGE_FILE not in note.files:
        raise ArtefactError(
            f"{folder / RELEASE_FILE} names no {EDGE_FILE}: the adapter was not released",
            "release it first: `fedge release RUN`",
        )
    data = _verified(folder / EDGE_FILE, note.files[EDGE_FILE])
    if note.base_fingerprint != fingerprint:
        raise ArtefactError(
            f"{folder} belongs to base {note.base_fingerprint[:12]}…, installed is {fingerprint[:12]}…",
            "install the base the adapter was trained on",
        )
    return data


def _verified(path: Path, sha256: str) -> bytes:
    """The adapter's bytes, read once. Raises ArtefactError unless they have this sha256."""
    try:
        data = read_regular(path, most=MOST_BYTES)
    except OSError:
        raise ArtefactError(f"{path} is missing or cannot be read", REFETCH) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ArtefactError(f"{path} is damaged: its sha256 is not the one named", REFETCH)
    return data


@contextmanager
def private_copy(data: bytes) -> Iterator[Path]:
    """A file of this process alone, with ``data``.

    ONNX Runtime maps the file that it loads: written to in place, it would change what is running, or end
    the process where it is cut.
    """
    memory = os.memfd_create("adapter") if sys.platform == "linux" else -1
    if memory >= 0 and (own := Path(f"/proc/self/fd/{memory}")).exists():
        with os.fdopen(memory, "wb") as file:
            file.write(data)
            file.flush()
            yield own
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def read_any_note(folder: Path) -> AnyNote:
    """What an adapter's folder says of it: a release's, or a blend's. Raises ArtefactError."""
    return read_blend(folder) if is_blend(folder) else read_note(folder)


def read_note(folder: Path) -> ReleaseNote:
    """``release.json`` of an adapter folder. Raises ArtefactError."""
    if is_blend(folder):
        raise ArtefactError(
            f"{folder} is a blend, and a release is needed here", "name one of those it is made of"
        )
    path = folder / RELEASE_FILE
    try:
        return parse_release(read_regular_text(path), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(
            f"{folder} is not an adapter: {RELEASE_FILE} cannot be read",
            "name a folder `rounds/NNNN/adapter` of a run",
        ) from None


def read_tensors(path: Path, *, source: str = "") -> Tensors:
    """The tensors of an ``.onnx_adapter``, copied: a view dies with the file. Raises ArtefactError.

    ``source`` is what an error calls it, when not by its path.
    """
    try:
        with open_regular(path, most=MOST_BYTES):
            pass
        form = ort.AdapterFormat.read_adapter(str(path))  # lives as long as its values are read
        return {name: value.numpy().copy() for name, value in form.get_parameters().items()}
    except Exception as error:  # ORT raises types of its own, without a common public base
        raise ArtefactError(
            f"{source or path}: not a readable .onnx_adapter: {str(error).splitlines()[0][:160]}",
            REFETCH,
        ) from None


def check_tensors(tensors: Tensors, base: EdgeBase, *, labels: int, source: str) -> None:
    """Every tensor fills a slot of this graph, in pairs, finite. Raises ArtefactError."""
    check_answering(tensors, base.manifest, labels=labels, source=source)


def check_answering(tensors: Tensors, manifest: HeadManifest, *, labels: int, source: str) -> None:
    """The same by the base's manifest."""
    head = manifest.head.path
    pairs = [(f"{head}.weight", f"{head}.bias")]
    sizes = check_slots(tensors, manifest, source=source, pairs=pairs)
    if sizes.get("labels", labels) != labels:
        raise ArtefactError(
            f"{source}: the head has {sizes['labels']} labels, {RELEASE_FILE} lists {labels}",
            REFETCH,
        )


def check_slots(
    tensors: Tensors,
    manifest: BaseManifest,
    *,
    source: str,
    pairs: Sequence[tuple[str, str]] = (),
    beside: Sequence[Slot] = (),
) -> dict[str, int]:
    """Every tensor fills a slot of the manifest, finite; linears and ``pairs`` have both of theirs.

    ``beside``: slots that are no inputs of the graph.

    Returns the sizes that the tensors give to free dimensions. Raises ArtefactError.
    """
    slots = {slot.name: slot for slot in (*manifest.slots(), *beside)}
    sizes: dict[str, int] = {}
    for name, value in sorted(tensors.items()):
        if name not in slots:
            remedy = SCALES if name.endswith(SCALE) else REFETCH
            remedy = BOTTLENECKS if name.endswith(BOTTLENECK) else remedy
            raise ArtefactError(f"{source}: the base has no slot {name}", remedy)
        if value.dtype != np.float32:
            raise ArtefactError(f"{source}: {name} is {value.dtype}, not float32", REFETCH)
        _check_shape(name, value.shape, slots[name].shape, sizes, source)
        if not np.isfinite(value).all():
            raise ArtefactError(f"{source}: {name} holds NaN or infinity", REFETCH)
    _check_pairs(tensors, manifest.linears, pairs, source)
    return sizes


def _check_shape(
    name: str,
    shape: tuple[int, ...],
    sizes_of_slot: list[int | str],
    sizes: dict[str, int],
    source: str,
) -> None:
    fits = len(shape) == len(sizes_of_slot) and all(
        got == (want if isinstance(want, int) else sizes.setdefault(want, got))
        for want, got in zip(sizes_of_slot, shape, strict=True)
    )
    if not fits:
        raise ArtefactError(
            f"{source}: {name} has shape {shape}, the slot is {tuple(sizes_of_slot)}", REFETCH
        )


def _check_pairs(
    tensors: Tensors, linears: Sequence[Linear], others: Sequence[tuple[str, str]], source: str
) -> None:
    pairs = [*others, *((linear.path + DOWN, linear.path + UP) for linear in linears)]
    for linear in linears:
        rank = tensors.get(linear.path + DOWN, np.zeros((0, 0))).shape[1]
        most = min(linear.in_features, linear.out_features)
        if rank > most:
            raise ArtefactError(f"{source}: {linear.path} has rank {rank}, above {most}", REFETCH)
    ends = (BOTTLENECK[:2], BOTTLENECK[1:])
    pairs += [(linear.path + a, linear.path + b) for linear in linears for a, b in ends]
    for first, second in pairs:
        if (first in tensors) != (second in tensors):
            missing = second if first in tensors else first
            raise ArtefactError(f"{source}: {missing} is missing; it comes in a pair", REFETCH)
