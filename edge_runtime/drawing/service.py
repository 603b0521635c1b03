"""Drawing on a device: by one adapter while the process lives, or while releases come and go. (P-9.7)"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edge_runtime.backends.drawing import open_drawing
from edge_runtime.drawing.adapters import DrawingAdapter
from edge_runtime.drawing.base import DrawingBase
from edge_runtime.drawing.sampling import Bytes, OnStep, Wish, drawn, verify_drawable
from edge_runtime.following import Follower
from edge_runtime.settings import Device
from protocol.errors import DataError, DeliveryError
from protocol.peft_format import RELEASE_FILE
from storage.regular import read_regular

if TYPE_CHECKING:
    from protocol.transparency.policy import Policy

WAITING = (
    4  # wishes beside the one that is drawn: an image takes seconds, and nobody waits for ever
)
LOOK_S = 0.1  # after which one that waits looks whether it is wanted still
T = TypeVar("T")


class AbandonedError(Exception):
    """Nobody waits any more for what is drawn."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """``images`` (images, channels, height, width) uint8, and the release that drew them, as of answers."""

    release: str | None
    seq: int | None
    images: Bytes


class Drawing(Protocol):
    """What draws, asked from many threads. ``base``: with what."""

    base: DrawingBase

    def draw(self, wish: Wish, on_step: OnStep | None = None) -> Drawn:
        """``on_step`` is called while it waits and before every step; AbandonedError of it ends both.

        Raises DeliveryError, DataError.
        """
        ...

    def health(self) -> dict[str, Any]:
        """Plain values; ``status`` is ``ok`` where it can draw."""
        ...


class Turns:
    """One wish is drawn at a time; no more than :data:`WAITING` wait."""

    def __init__(self) -> None:
        self._room = threading.BoundedSemaphore(WAITING + 1)
        self._turn = threading.Lock()

    def take(self, draw: Callable[[], T], on_wait: OnStep | None = None) -> T:
        """``on_wait`` is called while it waits, and what it raises ends that.

        Raises DeliveryError `serve.busy` where too many wait.
        """
        if not self._room.acquire(blocking=False):
            raise DeliveryError("serve.busy", f"{WAITING} wishes wait already", "ask again later")
        try:
            while not self._turn.acquire(timeout=LOOK_S):
                if on_wait is not None:
                    on_wait()
            try:
                return draw()
            finally:
                self._turn.release()
        finally:
            self._room.release()


class SingleDrawing:
    """By ``adapter``, or by the base alone. ``warning``: what whoever runs it is told."""

    def __init__(
        self,
        base: Path,
        adapter: Path | None,
        policy: Policy | None = None,
        *,
        threads: int = 0,
    ) -> None:
        """Open and check both. Raises as ``load_drawing_adapter``."""
        backend = open_drawing(base, threads=threads)
        self.base, self._turns = backend.base, Turns()
        self._adapter = backend.load(adapter, policy) if adapter else None
        self._release: str | None = None
        self.warning = self._adapter.caution if self._adapter else ""
        if adapter is not None and (adapter / RELEASE_FILE).is_file():
            self._release = hashlib.sha256(read_regular(adapter / RELEASE_FILE)).hexdigest()

    def draw(self, wish: Wish, on_step: OnStep | None = None) -> Drawn:
        """See :class:`Drawing`. Raises DeliveryError `serve.failed`, `serve.busy`."""
        verify_drawable(self.base, self._adapter, wish)  # before it waits
        try:
            images = self._turns.take(
                lambda: drawn(self.base, self._adapter, wish, on_step), on_step
            )
        except (AbandonedError, DataError, DeliveryError):
            raise
        except Exception as error:  # ONNX Runtime raises types of its own
            raise DeliveryError(
                "serve.failed", f"the adapter failed: {type(error).__name__}", "ask again"
            ) from None
        return Drawn(release=self._release, seq=None, images=images)

    def health(self) -> dict[str, Any]:
        """See :class:`Drawing`."""
        fingerprint = self.base.manifest.fingerprint
        return {"status": "ok", "release": self._release, "seq": None, "base": fingerprint}


class FollowingDrawing(Follower[DrawingAdapter]):
    """By the release in use on a device. ``clock`` gives seconds for the fault window."""

    def __init__(self, device: Device, *, clock: Callable[[], float]) -> None:
        """Raises ArtefactError for a base that cannot be opened."""
        backend = open_drawing(device.base, threads=device.threads)
        self.base, self._turns = backend.base, Turns()
        super().__init__(device, backend.load, clock=clock)

    def draw(self, wish: Wish, on_step: OnStep | None = None) -> Drawn:
        """See :class:`Drawing`. Raises DeliveryError `serve.empty`, `serve.failed`, `serve.busy`.

        What draws is what is in use when its turn has come: a release may be withdrawn while it waits.
        """
        verify_drawable(self.base, self.serving.adapter, wish)
        return self._turns.take(lambda: self._drawn(wish, on_step), on_step)

    def _drawn(self, wish: Wish, on_step: OnStep | None) -> Drawn:
        serving = self.serving
        try:
            images = drawn(self.base, serving.adapter, wish, on_step)
        except (AbandonedError, DataError):
            raise
        except Exception as error:  # whatever ORT raises counts against the release
            self.failed(serving, error)
            raise DeliveryError(
                "serve.failed",
                f"release {serving.seq} failed: {type(error).__name__}",
                "ask again; a release that fails often is rolled back",
            ) from None
        return Drawn(release=serving.release, seq=serving.seq, images=images)
