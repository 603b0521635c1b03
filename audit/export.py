"""A bundle for an outside auditor: exactly what a run publishes, copied. (P-8.4)

Names come from the log, so that nothing else of a coordinator's folder ever is in a bundle. What is
there with the right digest is not copied again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from audit.log_copy import LogCopy, tile_names
from audit.published import POLICY, Run, adapter_path
from audit.sources import OWN, MissingError, Source, check_name
from protocol.errors import ArtefactError, ProofError
from protocol.peft_format import PASSPORT_FILE
from protocol.secagg.client import vector_root
from protocol.transparency.leaf_codec import decode_leaf, sha256
from protocol.transparency.lists import digests_in, list_path
from protocol.transparency.sum_leaves import boxes_path, sum_path, vector_path
from storage.whole import write_whole

CHECKPOINT = "log/checkpoint"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file's name, what its bytes must be, and whether it may be missing."""

    name: str
    fits: Callable[[bytes], bool] | None = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How many files a bundle has, how many were written now, and which are not there."""

    files: int
    written: int
    missing: tuple[str, ...]


def export(
    run: Run,
    out: Path,
    *,
    vectors: bool = True,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Exported:
    """Copy the published files into ``out``, the checkpoint last; ``vectors`` with masked vectors.

    Raises ProofError for a file that is not what the log says, MissingError for one that is missing and
    may not be, ArtefactError when ``out`` cannot be written.
    """
    files = list(published(run, vectors=vectors))
    written, missing = 0, []
    for done, file in enumerate(files):
        progress("files", done, len(files))
        try:
            written += _copy(run.source, file, out)
        except MissingError:
            if not file.optional:
                raise
            missing.append(file.name)
    progress("files", len(files), len(files))
    return Exported(files=len(files) - len(missing), written=written, missing=tuple(missing))


def published(run: Run, *, vectors: bool) -> Iterator[Published]:
    """The files of a run, by its log; not the coordinator's own, of which it has digests."""
    return (file for file in _named(run, vectors=vectors) if not OWN.fullmatch(file.name))


def _named(run: Run, *, vectors: bool) -> Iterator[Published]:
    log = run.log
    for subjects in (log.plan.subjects, *(roster.subjects for roster in log.rosters)):
        yield from (_with(name, digest) for name, digest in subjects.items())
    for round_ in log.rounds:
        number = round_.number
        released = [release for release in log.releases if release.leaf.round == number]
        subjects = round_.adapter.subjects | (released[-1].subjects if released else {})
        yield from (_with(name, digest) for name, digest in sorted(subjects.items()))
        if released:
            yield Published(name=adapter_path(number, PASSPORT_FILE), optional=True)
        for group_sum in round_.sums:
            if not group_sum.complete:
                continue
            leaves = group_sum.leaves()
            yield _with(sum_path(number, group_sum.group), leaves.aggregate.sum)
            if leaves.reveal.boxes:
                yield _with(boxes_path(number, group_sum.group), leaves.reveal.boxes)
            for leaf in leaves.vectors if vectors else ():
                name = vector_path(number, group_sum.group, leaf.client)
                yield Published(name=name, fits=_with_root(leaf.root), optional=True)
                yield Published(name=f"{name}.chunks", optional=True)
    yield from _lists(run.copy)
    yield from _log_files(run.copy)


def _lists(copy: LogCopy) -> Iterator[Published]:
    """What leaves have no room for."""
    for entry in copy.entries:
        with suppress(ProofError):  # no leaf: the audit says so
            for digest in digests_in(decode_leaf(entry).leaf):
                yield _with(list_path(digest), digest)


def _log_files(copy: LogCopy) -> Iterator[Published]:
    """Tiles before batches before the checkpoint: a bundle that was cut off has none too new."""
    yield Published(name="log/key")
    yield Published(name=POLICY, optional=True)
    yield from (Published(name=name) for name in tile_names(copy.entries[: copy.tiled]))
    yield from (Published(name=name) for name in copy.batches)
    yield Published(name=CHECKPOINT, optional=not copy.tiled)


def _with(name: str, digest: str) -> Published:
    return Published(name=name, fits=lambda data: sha256(data) == digest)


def _with_root(root: str) -> Callable[[bytes], bool]:
    return lambda data: vector_root(data).hex() == root


def _copy(source: Source, file: Published, out: Path) -> bool:
    """Whether it had to be written."""
    check_name(file.name)
    path = out / file.name
    try:
        copied = path.read_bytes() if path.is_file() else None
        if copied is not None and file.fits is not None and file.fits(copied):
            return False
        data = source.read(file.name)
        if file.fits is not None and not file.fits(data):
            raise ArtefactError(
                f"{file.name} is not the file of the log", "verify the run before it is exported"
            )
        if data == copied:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be written: {error.strerror}", "name another --out"
        ) from None
    return True
