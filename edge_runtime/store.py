"""What a device has: releases in folders, and one small file that says which one is in use. (P-9.7)

    state.json            current, previous, candidate; what failed, what is withdrawn; replaced whole
    releases/<id>/        adapter.onnx_adapter, release.json, passport.tlog-proof; appears whole
    staging/<id>/         a download that may go on later
    metadata/             TUF's
    personal/<id>/        an adapter trained here: adapter.onnx_adapter, release.json; this user's alone
    graph/                the base's graph in the form the device maps into memory
    lock                  held by whoever changes something

Power may go at any step: a release is in use by the rename of ``state.json``, and what that names was on
disk before. What nothing names is removed by the next one who holds the lock.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.delivery import Count, Sha256, Text, Time
from protocol.documents import OddError, json_as
from protocol.errors import DeliveryError
from storage.locks import take
from storage.regular import read_regular
from storage.whole import move_whole, remove, sync_all, write_whole

STATE, RELEASES, PERSONAL, STAGING, METADATA, GRAPH, LOCK = (
    "state.json",
    "releases",
    "personal",
    "staging",
    "metadata",
    "graph",
    "lock",
)
MAKING = "making"
MOST_FAULTS = 32
MOST_TRIES = 3


Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Installed(_Form):
    """A release on this device: SHA-256 of its files by their names in its folder."""

    seq: Count
    files: dict[str, Sha256]


class Failed(_Form):
    """A release that this device does not run again by itself."""

    seq: Count
    reason: Text


class Personal(_Form):
    """An adapter that this device trained itself, which nobody has signed: from the release ``origin``.

    ``id`` is the SHA-256 of its release.json, ``adapter.seq`` its origin's. It was trained on ``rows``; on
    ``held_out`` others the task's ``quality`` was ``before`` with the origin, and is ``after`` with it.
    """

    id: Sha256
    origin: Sha256
    adapter: Installed
    rows: Count
    held_out: Count
    quality: Text
    before: Measure | None
    after: Measure | None
    time: Time


class State(_Form):
    """``state.json``. Releases go by their id; times are Unix seconds.

    ``clock`` is the latest time that the repository has confirmed: a clock behind it is wrong. ``tries``
    counts probes that have begun and not ended, of ``tried``. ``personal`` answers in the place of its origin
    while that is the current release, and is kept as long as its origin is.
    """

    format: Literal[1] = 1
    current: Sha256 | None = None
    previous: Sha256 | None = None
    candidate: Sha256 | None = None
    installed: dict[Sha256, Installed] = Field(default_factory=dict)
    failed: dict[Sha256, Failed] = Field(default_factory=dict)
    withdrawn: list[Sha256] = Field(default_factory=list)
    refreshed: Time | None = None
    clock: Time = 0
    tried: Sha256 | None = None
    tries: Count = 0
    outcome: Text = ""
    personal: Personal | None = None

    def adapted(self, allowed: bool) -> Personal | None:
        """The personal adapter that answers, where the device's settings have ``allowed`` any."""
        personal = self.personal
        if not allowed or personal is None or personal.origin != self.current:
            return None
        return personal

    def answering(self, allowed: bool) -> str | None:
        """The id of what answers."""
        adapted = self.adapted(allowed)
        return adapted.id if adapted else self.current


def read_state(store: Path) -> State:
    """The state; a new device's is empty. Needs no lock. Raises DeliveryError `store.damaged`."""
    try:
        return json_as(State, read_regular(store / STATE))
    except FileNotFoundError:
        return State()
    except (OSError, OddError) as error:
        raise DeliveryError(
            "store.damaged",
            f"{store / STATE}: {type(error).__name__}",
            "remove the store; the next update fills it again",
        ) from None


def release_folder(store: Path, release: str) -> Path:
    """Where a release lies."""
    return store / RELEASES / release


def held(store: Path, state: State, adapter: str) -> tuple[Path, Installed]:
    """Where a release, or the personal adapter, lies, and what it is. Raises KeyError for another id."""
    personal = state.personal
    if personal is not None and personal.id == adapter:
        return store / PERSONAL / adapter, personal.adapter
    return release_folder(store, adapter), state.installed[adapter]


class Store:
    """The store with its lock held; ``state`` is what is on disk. Use it as a context manager."""

    def __init__(self, folder: Path, *, wait_s: float = 0.0) -> None:
        """Raises DeliveryError `store.busy` when another agent holds it longer than ``wait_s``."""
        self.folder = folder
        with _writing(folder):
            for name in (RELEASES, STAGING, METADATA):
                (folder / name).mkdir(parents=True, exist_ok=True)
            lock = take(folder / LOCK, seconds=wait_s)
        if lock is None:
            raise DeliveryError(
                "store.busy", f"{self.folder} is in use by another agent", "wait for it"
            )
        self._lock = lock
        try:
            self.state = read_state(folder)
            self._sweep()
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            remove(self.folder / PERSONAL / MAKING)  # what was not taken
        self._lock.release()

    # -- steps ------------------------------------------------------------------------------------

    def staging(self, release: str) -> Path:
        """The folder where a release's files are gathered; those of others are forgotten."""
        folder = self.folder / STAGING / release
        with _writing(self.folder):
            for path in (self.folder / STAGING).iterdir():
                if path.name != release:
                    remove(path)
            folder.mkdir(exist_ok=True)
        return folder

    def install(self, release: str, installed: Installed) -> None:
        """Move what was gathered and verified among the releases, as the candidate."""
        staged, target = self.folder / STAGING / release, release_folder(self.folder, release)
        with _writing(self.folder):
            if target.exists():
                shutil.rmtree(target)  # the same release, rotten
            move_whole(staged, target)
        state = self.state
        releases = state.installed | {release: installed}
        held = release in (state.current, state.previous)
        self._save(installed=releases, candidate=state.candidate if held else release)
        self._tidy()  # an earlier candidate that never came into use

    def begin(self, release: str) -> bool:
        """A probe begins; False where ``MOST_TRIES`` of them have ended the agent itself."""
        tries = self.state.tries if self.state.tried == release else 0
        if tries >= MOST_TRIES:
            return False
        self._save(tried=release, tries=tries + 1)
        return True

    def end_undecided(self) -> None:
        """The probe that began has ended without a word on the release: it counts as none."""
        self._save(tries=max(0, self.state.tries - 1))

    def activate(self, release: str) -> None:
        """Use an installed release; the one in use becomes the previous one."""
        state = self.state
        if release not in state.installed:
            raise KeyError(release)
        failed = {id_: why for id_, why in state.failed.items() if id_ != release}
        previous = state.previous if release == state.current else state.current
        self._save(
            current=release,
            previous=None if previous == release else previous,
            candidate=None if state.candidate == release else state.candidate,
            failed=failed,
            tried=None,
            tries=0,
        )
        self._tidy()

    def fail(self, release: str, reason: str) -> None:
        """Do not run ``release`` again by itself; leave it when it is in use."""
        state = self.state
        if release not in state.installed:
            raise KeyError(release)
        failed = {id_: why for id_, why in state.failed.items() if id_ != release}
        failed[release] = Failed(seq=state.installed[release].seq, reason=_shown(reason))
        kept = dict(list(failed.items())[-MOST_FAULTS:])
        self._leave({release}, failed=kept, tried=None, tries=0)

    def new_personal(self) -> Path:
        """An empty folder for a personal adapter, this user's alone; what is not taken is swept away."""
        folder = self.folder / PERSONAL / MAKING
        with _writing(self.folder):
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            if folder.exists():
                remove(folder)
            folder.mkdir(mode=0o700)
        return folder

    def adapt(self, personal: Personal) -> None:
        """Let what lies in :meth:`new_personal` answer in its origin's place; the one before goes."""
        if personal.origin != self.state.current:
            raise KeyError(personal.origin)
        staged, target = self.folder / PERSONAL / MAKING, self.folder / PERSONAL / personal.id
        with _writing(self.folder):
            if target.exists():  # the same rows give the same adapter, which may have rotted
                for name in personal.adapter.files:
                    move_whole(staged / name, target / name)
            else:
                move_whole(staged, target)
        self._save(personal=personal)
        self._sweep()

    def leave_personal(self) -> None:
        """Forget the personal adapter: its origin answers again."""
        self._save(personal=None)
        self._sweep()

    def forgive(self) -> None:
        """Forget what failed, so that it may be tried again."""
        self._save(failed={})

    def withdraw(self, releases: Iterable[str]) -> bool:
        """Take note of what is withdrawn, and leave it; whether the release in use was."""
        withdrawn = set(releases)
        was = self.state.current in withdrawn
        if was or withdrawn != set(self.state.withdrawn) or self.state.previous in withdrawn:
            self._leave(withdrawn, withdrawn=sorted(withdrawn))
        return was

    def refreshed(self, now: int) -> None:
        """The repository has confirmed that it is about ``now``."""
        self._save(refreshed=now, clock=max(now, self.state.clock))

    def keep_metadata(self) -> None:
        """Bring TUF's metadata to the disk, which tuf does not: what is forgotten could be replayed."""
        with _writing(self.folder):
            sync_all(self.folder / METADATA)

    def conclude(self, outcome: str) -> None:
        """What the last attempt came to, for reports."""
        self._save(outcome=_shown(outcome))

    def clear_staging(self) -> None:
        """Forget downloads."""
        with _writing(self.folder):
            for path in (self.folder / STAGING).iterdir():
                remove(path)

    # -- inside -----------------------------------------------------------------------------------

    def _leave(self, gone: set[str], **fields: object) -> None:
        """Go back to the previous release where the current one is among ``gone``."""
        state = self.state
        current, previous, candidate = (
            None if id_ in gone else id_ for id_ in (state.current, state.previous, state.candidate)
        )
        if current is None:
            current, previous = previous, None
        self._save(current=current, previous=previous, candidate=candidate, **fields)
        self._tidy()

    def _save(self, **fields: object) -> None:
        state = self.state.model_copy(update=fields)
        with _writing(self.folder):
            write_whole(self.folder / STATE, (state.model_dump_json(indent=1) + "\n").encode())
        self.state = state

    def _tidy(self) -> None:
        """Forget releases that nothing names, then remove them."""
        state = self.state
        kept = {state.current, state.previous, state.candidate}
        installed = {id_: what for id_, what in state.installed.items() if id_ in kept}
        if installed != state.installed:
            self._save(installed=installed)
        if state.personal is not None and state.personal.origin not in installed:
            self._save(personal=None)
        self._sweep()

    def _sweep(self) -> None:
        personal = self.state.personal
        if personal is not None and not (self.folder / PERSONAL / personal.id).is_dir():
            self._save(personal=None)  # its owner removed it
        kept = {self.state.personal.id} if self.state.personal else set()
        with _writing(self.folder):
            for folder, named in ((RELEASES, set(self.state.installed)), (PERSONAL, kept)):
                for path in (self.folder / folder).glob("*"):
                    if path.name not in named:
                        remove(path)
            # Ours, and what a killed tuf leaves of its own temporary files.
            for path in (*self.folder.glob(".*.tmp"), *(self.folder / METADATA).glob("tmp*")):
                remove(path)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A full or read-only disk: DeliveryError `store.unwritable`, and what is in use stays."""
    try:
        yield
    except OSError as error:
        raise DeliveryError(
            "store.unwritable",
            f"{folder}: {error.strerror or type(error).__name__}",
            "make room; what is in use stays in use",
        ) from None


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)[:300]
