"""Get a base by its fingerprint from mirrors into a cache: verified as it comes, resumed after a cut.

The cache is a folder of bases by fingerprint. What is on its way lies in ``.partial`` by content digest, so
a fetch goes on where the last one stopped, whatever mirror that was. A file that another base of the
cache holds is linked, not copied. A base appears under its name whole and verified, or not at all. (P-1.6)
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from base_model.files import folder_that_appears
from base_model.mirrors import Mirror, mirror_at
from base_model.partial import ListedFile, WrongError, complete
from base_model.verify import (
    read_manifest,
    verify_tensors,
)
from base_model.weights_file import WEIGHTS
from protocol.chunks import CHUNK_BYTES, CHUNKS, MAX_CHUNKS_BYTES, Chunks, parse_chunks
from protocol.errors import ArtefactError, MachineError
from protocol.manifest import MANIFEST_NAME, FileEntry
from protocol.manifests import AnyManifest, parse_any_manifest
from storage.downloads import CutError, Reader
from storage.locks import locked
from storage.regular import sha256_of

log = logging.getLogger("fedge.fetch")

MAX_MANIFEST = 2**24  # bytes
SPARE_BYTES, OTHERS = 2**28, 10  # the graph has the weights again, expanded up to eight times
PARTIAL = ".partial"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``seconds`` for the whole fetch, ``total`` bytes that a manifest may list."""

    seconds: float = 3600.0
    total: int = 2**36


def fetch_base(
    fingerprint: str,
    *,
    mirrors: Sequence[str],
    cache: Path,
    manifest_sha256: str = "",
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Path:
    """The base's folder in ``cache``; fetched from ``mirrors``, tried in turn, when it is not there.

    Args:
        fingerprint: the base's identity, 64 hex digits.
        mirrors: folders or URLs.
        cache: a folder on one file system, made if need be.
        manifest_sha256: of the manifest's bytes; the fingerprint alone does not cover the edge graph.
        limits: time and size.
        progress: called with a file's name, bytes done and bytes in all.

    Raises:
        ArtefactError: what mirrors gave is not the base; names mirror and file.
        MachineError: no mirror can be read, no room, or the time is over. What was verified is kept.
    """
    limits = limits or Limits()
    fetch = _Fetch(fingerprint, cache, manifest_sha256, limits, progress or _silent)
    places = [mirror_at(place) for place in mirrors]
    with _local(cache):
        (cache / PARTIAL).mkdir(parents=True, exist_ok=True)
        own = (cache / PARTIAL).lstat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid():
        # Its owner could put links there, to files of this user.
        raise MachineError(f"{cache / PARTIAL} is not this user's own", "name a cache of your own")
    with locked(cache / f"{PARTIAL}.lock", seconds=limits.seconds) as locked_here:
        if not fetch.found():
            if not locked_here:
                raise MachineError(f"{cache}: another fetch is at work", "wait for it")
            _from_any(fetch, places)
    return fetch.target


def _from_any(fetch: _Fetch, mirrors: list[Mirror]) -> None:
    faults: list[str] = []
    wrong = False
    for mirror in mirrors:
        gave = True
        while gave:
            before = fetch.arrived
            try:
                fetch.from_mirror(mirror)
            except CutError as error:
                fault = f"{mirror.name}: {error}"
                fetch.verify_time(fault)
                gave = fetch.arrived > before  # one that gave some may give the rest
            except WrongError as error:
                fault, wrong, gave = f"{mirror.name}: {error}", True, False
            else:
                return
        faults.append(fault)
        log.warning("mirror %s", fault)
    if wrong:
        raise ArtefactError("; ".join(faults), "use another mirror, and tell this one's operator")
    raise MachineError(
        "; ".join(faults) or "no mirror is named",
        "check mirrors and connection, and fetch again: it goes on where it stopped",
    )


class _Fetch:
    """One fetch under way. ``arrived`` counts the bytes that came and were verified."""

    def __init__(
        self, fingerprint: str, cache: Path, pin: str, limits: Limits, progress: Progress
    ) -> None:
        self.fingerprint, self.cache, self._pin = fingerprint, cache, pin
        self.target = cache / fingerprint
        self._limits, self._progress = limits, progress
        self._deadline = time.monotonic() + limits.seconds
        self._whole: set[str] = set()  # content digests that are there
        self.arrived = 0

    def found(self) -> bool:
        """Whether the cache has the base. Raises ArtefactError for another one in its place."""
        if not (self.target / MANIFEST_NAME).is_file():
            return False
        fingerprint = read_manifest(self.target).fingerprint
        digest = sha256_of(self.target / MANIFEST_NAME)
        if fingerprint != self.fingerprint or self._pin not in ("", digest):
            raise ArtefactError(
                f"{self.target} holds another base, or another manifest",
                "remove it and fetch again",
            )
        return True

    def verify_time(self, fault: str) -> None:
        """Raises MachineError when the time is over."""
        if time.monotonic() >= self._deadline:
            raise MachineError(
                f"base {self.fingerprint[:12]}…: not here after {self._limits.seconds:g} s ({fault})",
                "fetch again: it goes on where it stopped",
            )

    def from_mirror(self, mirror: Mirror) -> None:
        """Everything that is missing. Raises CutError, WrongError, or MachineError for this machine."""
        folder, data = self._manifest_bytes(mirror)
        manifest = self._manifest(data)
        with _local(self.cache):
            self._link_what_is_here(manifest)
            self._verify_room(manifest)
        chunks = self._chunks(mirror, folder, manifest)
        total = sum(entry.bytes for entry in manifest.files.values())
        done = 0
        for name, entry in manifest.files.items():
            self._file(mirror, folder, name, entry, chunks, (done, total))
            done += entry.bytes
        self._publish(manifest, data)
        self._progress("done", total, total)

    def _manifest_bytes(self, mirror: Mirror) -> tuple[str, bytes]:
        """(folder within the mirror, the manifest): under the fingerprint, or the mirror itself."""
        for folder in (f"{self.fingerprint}/", ""):
            try:
                with mirror.opened(
                    folder + MANIFEST_NAME, offset=0, deadline=self._deadline
                ) as reader:
                    return folder, reader.rest(MAX_MANIFEST)
            except CutError as error:
                fault = error
        raise CutError(f"{MANIFEST_NAME}: {fault}")

    def _manifest(self, data: bytes) -> AnyManifest:
        if self._pin and hashlib.sha256(data).hexdigest() != self._pin:
            raise WrongError(f"{MANIFEST_NAME} is not the pinned one")
        try:
            manifest = parse_any_manifest(data.decode(), source=MANIFEST_NAME)
        except (ArtefactError, UnicodeDecodeError) as error:
            fault = error.cause if isinstance(error, ArtefactError) else "it is no text"
            raise WrongError(fault) from None
        if manifest.fingerprint != self.fingerprint:
            raise WrongError(f"{MANIFEST_NAME} is that of base {manifest.fingerprint[:12]}…")
        if WEIGHTS not in manifest.files or MANIFEST_NAME in manifest.files:
            raise WrongError(f"{MANIFEST_NAME} does not list the files of a base")
        total = sum(entry.bytes for entry in manifest.files.values())
        if total > (most := min(self._limits.total, _most_bytes(manifest))):
            raise WrongError(f"{MANIFEST_NAME} lists {total} bytes, {most} are allowed")
        return manifest

    def _chunks(self, mirror: Mirror, folder: str, manifest: AnyManifest) -> Chunks | None:
        """The list of pieces; None for a base that was built without one."""
        entry = manifest.files.get(CHUNKS)
        if entry is None:
            return None
        if entry.bytes > MAX_CHUNKS_BYTES:
            raise WrongError(f"{CHUNKS} is too long")
        self._file(mirror, folder, CHUNKS, entry, None, (0, 0))
        with _local(self.cache):
            data = self._path(entry).read_bytes()
        try:
            return parse_chunks(data, manifest.files, source=CHUNKS)
        except ArtefactError as error:
            raise WrongError(error.cause) from None

    def _file(
        self,
        mirror: Mirror,
        folder: str,
        name: str,
        entry: FileEntry,
        chunks: Chunks | None,
        done: tuple[int, int],
    ) -> None:
        """Bring one file into ``.partial`` unless it is there; ``done`` bytes of how many before it."""
        if entry.sha256 in self._whole:
            return
        listed = ListedFile(
            name=name,
            entry=entry,
            piece=chunks.chunk_bytes if chunks else CHUNK_BYTES,
            digests=chunks.files.get(name) if chunks else None,
        )

        def tell(offset: int, new: int) -> None:
            self.arrived += new
            self._progress(name, done[0] + offset, done[1])

        def opened(offset: int) -> AbstractContextManager[Reader]:
            return mirror.opened(folder + name, offset=offset, deadline=self._deadline)

        with _local(self._path(entry)):
            complete(self._path(entry), listed, opened, tell)
        self._whole.add(entry.sha256)

    # -- what is on this machine ----------------------------------------------------------------

    def _path(self, entry: FileEntry) -> Path:
        return self.cache / PARTIAL / entry.sha256

    def _link_what_is_here(self, manifest: AnyManifest) -> None:
        """Files that other bases of the cache hold, if they still are what their manifests say."""
        here: dict[tuple[str, int], Path] = {}
        for path in self.cache.glob(f"*/{MANIFEST_NAME}"):
            with suppress(ArtefactError):
                for name, entry in read_manifest(path.parent).files.items():
                    here[entry.sha256, entry.bytes] = path.parent / name
        for name, entry in manifest.files.items():
            shared, path = here.get((entry.sha256, entry.bytes)), self._path(entry)
            if shared is None or entry.sha256 in self._whole or not shared.is_file():
                continue
            if sha256_of(shared) == entry.sha256:
                path.unlink(missing_ok=True)
                _link(shared, path)
                self._whole.add(entry.sha256)
                log.info("%s is shared with another base", name)

    def _verify_room(self, manifest: AnyManifest) -> None:
        entries = {entry.sha256: entry for entry in manifest.files.values()}.values()
        missing = sum(max(entry.bytes - _size(self._path(entry)), 0) for entry in entries)
        if missing > (free := shutil.disk_usage(self.cache).free):
            raise MachineError(
                f"{self.cache}: {missing} bytes are missing, {free} are free", "free some space"
            )

    def _publish(self, manifest: AnyManifest, data: bytes) -> None:
        weights = self._path(manifest.files[WEIGHTS])
        try:
            verify_tensors(weights, manifest)
        except ArtefactError as error:
            weights.unlink()
            self._whole.discard(weights.name)
            raise WrongError(error.cause.replace(str(weights), WEIGHTS)) from None
        with _local(self.target), folder_that_appears(self.target) as folder:
            for name, entry in manifest.files.items():
                self._path(entry).chmod(0o444)  # other bases may share it
                _link(self._path(entry), folder / name)
            (folder / MANIFEST_NAME).write_bytes(data)
            for entry in manifest.files.values():
                self._path(entry).unlink(missing_ok=True)


def _most_bytes(manifest: AnyManifest) -> int:
    """Of a base's files, by its tensors: the fingerprint covers those, and not how long files are.

    Raises WrongError for tensors that are none.
    """
    try:
        tensors = sum(
            math.prod(entry.shape) * np.dtype(entry.dtype).itemsize
            for entry in manifest.tensors.values()
        )
    except TypeError:
        raise WrongError(f"{MANIFEST_NAME}: a tensor of no known type") from None
    return SPARE_BYTES + OTHERS * tensors


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """An error of this machine's files as a MachineError; errors of mirrors have their own types."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{path} cannot be written: {error.strerror}",
            "mend that, and fetch again: it goes on where it stopped",
        ) from None


def _link(shared: Path, path: Path) -> None:
    try:
        os.link(shared, path)
    except OSError:  # a file system without links
        shutil.copyfile(shared, path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _silent(_name: str, _done: int, _total: int) -> None:
    """Nobody watches."""
