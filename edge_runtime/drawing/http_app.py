"""``fedge edge serve`` of a base that draws: ``POST /v1/draw``, in the bounds of the other server."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from edge_runtime.drawing.png import png
from edge_runtime.drawing.sampling import (
    MOST_GUIDANCE,
    MOST_IMAGES,
    MOST_SEED,
    MOST_STEPS,
    Wish,
    verify_wish,
)
from edge_runtime.drawing.service import WAITING, AbandonedError, Drawing, Drawn
from edge_runtime.http_server import (
    ClientGoneError,
    Receive,
    Reply,
    Routes,
    error_reply,
    json_question,
)
from protocol.errors import DataError, DeliveryError


class DrawQuestion(BaseModel):
    """The body of ``POST /v1/draw``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    label: Annotated[str, Field(min_length=1, max_length=1000)]
    images: Annotated[int, Field(ge=1, le=MOST_IMAGES)] = 1
    steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0
    guidance: Annotated[float, Field(ge=1, le=MOST_GUIDANCE)] = 1.0


class DrawApp(Routes):
    """``POST /v1/draw {"label": "3", "seed": 7}`` and ``GET /health``.

    An answer has the release's identity as other answers have it, what was wished, also what nobody said, and
    ``images``: PNG files in base64.
    """

    def __init__(self, service: Drawing) -> None:
        self._service = service
        # One for each wish that is let in, and one to say that no more are, whatever cores there are.
        self._threads = ThreadPoolExecutor(WAITING + 2, "draw")
        super().__init__({"/v1/draw": ("POST", self._draw), "/health": ("GET", self._health)})

    async def _draw(self, headers: Mapping[bytes, str], receive: Receive) -> Reply:
        question = await json_question(DrawQuestion, headers, receive)
        if not isinstance(question, DrawQuestion):
            return question
        wish = Wish(**question.model_dump())
        try:
            drawn, images = await self._drawn(wish, receive)
        except AbandonedError:
            raise ClientGoneError from None
        except DeliveryError as error:
            return error_reply(503, error.code, error.cause)
        except DataError as error:
            return error_reply(422, "request.form", error.cause)
        document: dict[str, Any] = {"release": drawn.release, "seq": drawn.seq}
        steps = verify_wish(wish, self._service.base.manifest.schedule.steps)
        return 200, document | question.model_dump() | {"steps": steps, "images": images}

    async def _drawn(self, wish: Wish, receive: Receive) -> tuple[Drawn, list[str]]:
        """What is drawn, and its files, for as long as the client is there and the process is to live."""
        gone = threading.Event()

        def look() -> None:
            if gone.is_set():
                raise AbandonedError

        def draw() -> tuple[Drawn, list[str]]:
            drawn = self._service.draw(wish, look)
            return drawn, [base64.b64encode(png(image)).decode() for image in drawn.images]

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        watching = asyncio.create_task(watch())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, draw)
        finally:
            gone.set()
            watching.cancel()

    async def _health(self, headers: Mapping[bytes, str], receive: Receive) -> Reply:
        health = self._service.health()
        return 200 if health["status"] == "ok" else 503, health
