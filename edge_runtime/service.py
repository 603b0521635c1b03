"""Answers on a device while releases come and go: it follows the store, and leaves what fails. (P-9.7)

The store's state is the only thing that agent and service share. A swap replaces a reference: a request
that is running ends with the release it began with.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_runtime.adapter import ActiveAdapter
from edge_runtime.answer_options import LIKELIEST, AnswerOptions, verify_texts
from edge_runtime.base import check_file
from edge_runtime.mapped_graph import open_device_base
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.settings import Device
from edge_runtime.store import STATE, State, held, read_state
from edge_runtime.tasks import Prediction, task_named
from protocol.errors import ArtefactError, DeliveryError, FedgeError
from protocol.peft_format import RELEASE_FILE
from protocol.rows.read import Text

POLL_S = 0.1
RETRY_S = 5.0  # after a state that could not be followed: what hindered may have passed


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Predictions, and the release that made them: its id, None for a base alone, and its number, if any.

    ``personal``: no release made them but an adapter that this device has trained from number ``seq``.
    """

    release: str | None
    seq: int | None
    predictions: Sequence[Prediction]
    has_labels: bool = True
    personal: bool = False


@dataclass(frozen=True, kw_only=True)
class _Serving:
    """``release`` is an id; of a personal adapter ``origin`` is another one."""

    release: str
    origin: str
    seq: int
    adapter: ActiveAdapter

    @property
    def personal(self) -> bool:
        return self.release != self.origin


class Service:
    """One per process; safe to ask from many threads. ``clock`` gives seconds for the fault window."""

    def __init__(self, device: Device, *, clock: Callable[[], float]) -> None:
        """Open the base and the release in use. Raises ArtefactError for a base that cannot be opened."""
        self.device, self._clock = device, clock
        self.runtime = EdgeRuntime(open_device_base(device))
        self._serving: _Serving | None = None
        self._seen: tuple[int, int] | None = None
        self._retry = math.inf
        self._faults: deque[float] = deque()
        self._swapping = threading.Lock()
        self._stop = threading.Event()
        self.swaps, self.failures, self.trouble = 0, 0, ""
        self.follow()

    def classify(self, texts: Sequence[Text], options: AnswerOptions = LIKELIEST) -> Answer:
        """Raises DeliveryError `serve.empty` with no release, `serve.failed` when the release fails.

        DataError for texts and wishes that it was not trained for.
        """
        serving = self._serving
        if serving is None:
            raise DeliveryError(
                "serve.empty", "no release is in use", "`fedge edge update` on this device"
            )
        task = task_named(serving.adapter.note.task)
        task.verify_options(options)
        verify_texts(texts, pairs=serving.adapter.note.pairs)
        try:
            predictions = self.runtime.infer(texts, serving.adapter, options)
            if not all(answer.is_finite for answer in predictions):
                raise ArithmeticError("the answer is not finite")
        except Exception as error:  # whatever ORT raises counts against the release
            self._failed(serving, error)
            raise DeliveryError(
                "serve.failed",
                f"{'what was trained here from ' if serving.personal else ''}release {serving.seq} "
                f"failed: {type(error).__name__}",
                "ask again; a release that fails often is rolled back",
            ) from None
        return Answer(
            release=serving.release,
            seq=serving.seq,
            predictions=predictions,
            has_labels=task.HAS_LABELS,
            personal=serving.personal,
        )

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

    def _load(self, release: str, state: State) -> _Serving:
        folder, installed = held(self.device.store, state, release)
        for name, sha256 in installed.files.items():
            check_file(folder / name, sha256)
        if installed.files.get(RELEASE_FILE) != release:
            raise ArtefactError(f"{folder}: not the release of its name", "update again")
        adapter = self.runtime.activate(folder)
        personal = state.personal
        origin = release if personal is None or personal.id != release else personal.origin
        return _Serving(release=release, origin=origin, seq=installed.seq, adapter=adapter)

    def _failed(self, serving: _Serving, error: Exception) -> None:
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
