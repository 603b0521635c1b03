"""The one model of a device: the release in use, whichever that is when a text begins. (P-9.7)

The base alone is no model here: a device answers by releases that its own probe has let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from edge_runtime.backends.writing import WritingBackend
from edge_runtime.decoder.adapters import DecoderAdapter
from edge_runtime.decoder.http.forms import ApiError
from edge_runtime.decoder.http.service import Held, Texts
from edge_runtime.following import Follower, Serving
from edge_runtime.settings import Device
from protocol.errors import DeliveryError


class DeviceTexts(Texts):
    """It is called as the device's settings say (`name`), and there while a release is in use."""

    def __init__(
        self, device: Device, backend: WritingBackend, *, clock: Callable[[], float], queue: int
    ) -> None:
        """Load the release in use; ``clock`` gives seconds for the fault window."""
        self.follower: Follower[DecoderAdapter] = Follower(device, backend.load, clock=clock)
        self._name = device.name
        super().__init__(backend.writer, queue=queue)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of the release in use, as long as there is one."""
        return (self._name,) if self._serving() else ()

    def verify_model(self, model: str) -> None:
        """Raises ApiError for another name."""
        if model != self._name:
            super().verify_model(model)

    def held(self, model: str) -> Held:
        """The release in use."""
        serving = self._serving()
        if serving is None:
            raise ApiError(
                503,
                "no release is in use: `fedge edge update` on this device",
                kind="server_error",
                code="serve.empty",
            )
        watched = partial(self.follower.watched, serving)
        return Held(adapter=serving.adapter, watched=watched, facts=_facts(serving))

    def facts(self, model: str) -> Mapping[str, Any]:
        """Which release it is."""
        serving = self._serving()
        return _facts(serving) if serving else {}

    def health(self) -> dict[str, Any]:
        """Of texts and of releases."""
        return super().health() | self.follower.health()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the store within the context, and write texts."""
        thread = self.follower.run()
        try:
            yield
        finally:
            self.follower.stop()
            thread.join()
            self.end()

    def _serving(self) -> Serving[DecoderAdapter] | None:
        try:
            return self.follower.serving
        except DeliveryError:
            return None


def _facts(serving: Serving[DecoderAdapter]) -> dict[str, Any]:
    return {"release": serving.release, "seq": serving.seq}
