"""What answers on a device while releases come and go: the store is followed, and what fails is left. (P-9.7)

The store's state is the only thing that agent and service share. A swap replaces a reference: an answer
that is being made ends with the release it began with. Of adapters it knows what a backend loads, no more.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from edge_runtime.base import check_file
from edge_runtime.settings import Device
from edge_runtime.store import STATE, State, held, read_state
from protocol.errors import ArtefactError, DataError, DeliveryError, FedgeError, MachineError
from protocol.peft_format import RELEASE_FILE

POLL_S = 0.1
RETRY_S = 5.0  # after a state that could not be followed: what hindered may have passed
Adapter = TypeVar("Adapter")
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Serving(Generic[Adapter]):
    """What answers now. ``release`` is an id; of a personal adapter ``origin`` is another one."""

    release: str
    origin: str
    seq: int
    adapter: Adapter

    @property
    def personal(self) -> bool:
        """Whether no release answers but what this device has trained from one."""
        return self.release != self.origin


class Follower(Generic[Adapter]):
    """One per process; for many threads. ``clock`` gives seconds for the fault window."""

    def __init__(
        self, device: Device, load: Callable[[Path], Adapter], *, clock: Callable[[], float]
    ) -> None:
        """Take over the release in use; ``load`` is a backend's."""
        self.device, self._load_adapter, self._clock = device, load, clock
        self._serving: Serving[Adapter] | None = None
        self._seen: tuple[int, int] | None = None
        self._retry = math.inf
        self._faults: deque[float] = deque()
        self._swapping = threading.Lock()
        self._stop = threading.Event()
        self.swaps, self.failures, self.trouble = 0, 0, ""
        self.follow()

    @property
    def serving(self) -> Serving[Adapter]:
        """What is to answer. Raises DeliveryError `serve.empty` with no release."""
        serving = self._serving
        if serving is None:
            raise DeliveryError(
                "serve.empty", "no release is in use", "`fedge edge update` on this device"
            )
        return serving

    def watched(self, serving: Serving[Adapter], items: Iterator[Item]) -> Iterator[Item]:
        """The same items; an error among them counts against the release.

        Not one that is the question's, nor a lack of memory, of which a question may ask any amount.
        """
        try:
            yield from items
        except (DataError, MachineError):
            raise
        except Exception as error:  # whatever ORT raises
            self.failed(serving, error)
            raise

    def health(self) -> dict[str, Any]:
        """Plain values: what is served, and what went wrong."""
        serving = self._serving
        return {
            "status": "ok" if serving else "empty",
            "device": self.device.id,
            "name": self.device.name,
            "release": serving.release if serving else None,
            "seq": serving.seq if serving else None,
            "personal": serving.personal if serving else False,
            "swaps": self.swaps,
            "failures": self.failures,
            "trouble": self.trouble,
        }

    def follow(self) -> None:
        """Take over what the store says is in use. What cannot be loaded leaves the old one serving."""
        with self._swapping:
            seen = self._stamp()
            if seen == self._seen and self._clock() < self._retry:
                return
            self._seen, self._retry = seen, math.inf
            try:
                if seen is None and self._serving is not None:
                    raise DeliveryError("store.damaged", f"{STATE} is gone", "update again")
                self._take(read_state(self.device.store))
                self.trouble = ""
            except Exception as error:  # a lack of memory or files too: following must not end
                self._retry = self._clock() + RETRY_S
                self.trouble = error.cause if isinstance(error, FedgeError) else repr(error)[:200]

    def run(self) -> threading.Thread:
        """Follow the store in the background until :meth:`stop`."""

        def loop() -> None:
            while not self._stop.wait(POLL_S):
                self.follow()

        thread = threading.Thread(target=loop, name="follow-store", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End :meth:`run`."""
        self._stop.set()

    def _take(self, state: State) -> None:
        serving, adapted = self._serving, state.adapted(self.device.personal)
        release = adapted.id if adapted else state.current
        if release == (serving.release if serving else None):
            return
        try:
            self._serving = None if release is None else self._load(release, state)
        except Exception:
            if serving is not None and serving.origin in state.withdrawn:
                self._serving = None  # no device may go on running it
            instead = state.current if adapted else state.previous
            if instead is not None and (adapted or self._serving is None):
                self._serving = self._load(instead, state)  # until the next update mends it
            raise
        self._faults.clear()
        self.swaps += 1

    def _load(self, release: str, state: State) -> Serving[Adapter]:
        folder, installed = held(self.device.store, state, release)
        for name, sha256 in installed.files.items():
            check_file(folder / name, sha256)
        if installed.files.get(RELEASE_FILE) != release:
            raise ArtefactError(f"{folder}: not the release of its name", "update again")
        adapter = self._load_adapter(folder)
        personal = state.personal
        origin = release if personal is None or personal.id != release else personal.origin
        return Serving(release=release, origin=origin, seq=installed.seq, adapter=adapter)

    def failed(self, serving: Serving[Adapter], error: Exception) -> None:
        """Count; with too many in the window, go back to the release before and say so in the store."""
        with self._swapping:
            self.failures += 1
            if serving is not self._serving:
                return
            now = self._clock()
            self._faults.append(now)
            while self._faults and self._faults[0] <= now - self.device.window_s:
                self._faults.popleft()
            if len(self._faults) < self.device.faults:
                return
            from edge_runtime.agent import roll_back  # rarely needed: a service starts without it

            reason = f"{len(self._faults)} failed answers within {self.device.window_s:g} s: "
            reason += type(error).__name__
            with suppress(Exception):  # the release stays, and fails on
                state = read_state(self.device.store)
                if state.answering(self.device.personal) == serving.release:
                    try:
                        state = roll_back(self.device, reason, datetime.now(UTC), wait_s=1.0)
                    except FedgeError as hindered:
                        # An agent at work, or a full disk: it is left here at least.
                        self.trouble = hindered.cause
                        gone = (
                            {"personal": None} if serving.personal else {"current": state.previous}
                        )
                        state = state.model_copy(update=gone)
                self._take(state)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = Path(self.device.store / STATE).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino


Followed = TypeVar("Followed", bound="Follower[Any]")


@contextmanager
def followed(service: Followed) -> Iterator[Followed]:
    """``service``, which follows its store meanwhile."""
    thread = service.run()
    try:
        yield service
    finally:
        service.stop()
        thread.join()
