"""``fedge edge serve``: HTTP on loopback, for programs on the same device.

A plain ASGI application on uvicorn: two routes need no framework, and importing one would be a third of
the CPU time that a device spends to start (docs/adr/0024). uvicorn sets no limits by itself: connections are
counted, requests have to come within a time, and so has the end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Annotated, Any, Protocol, TypeVar

import h11
from pydantic import BaseModel, ConfigDict, Field, model_validator
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import Server

from edge_runtime.answer_options import LIKELIEST, AnswerOptions
from edge_runtime.service import Answer
from protocol.documents import OddError, json_as
from protocol.encoding import base64_bytes
from protocol.errors import DataError, DeliveryError, MachineError
from protocol.media import IMAGE, SOUND
from protocol.rows.pages import MOST_WORDS, page_of
from protocol.section import MOST_LABELS

HOST = "127.0.0.1"
MOST_BYTES = 1_048_576  # of a request
MOST_CONNECTIONS = 64  # and requests that are being answered, also when who asked has left
REQUEST_S = 10.0  # longer than uvicorn's 5 s for an idle connection
END_S = 5

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Reply = tuple[int, dict[str, Any]]  # status, JSON
Route = Callable[[Mapping[bytes, str], Receive], Awaitable[Reply]]
Q = TypeVar("Q", bound=BaseModel)


Words = Annotated[str, Field(max_length=20_000)]
Files = Annotated[list[str], Field(min_length=1, max_length=256)] | None  # base64

# However short a sound is, its features take a megabyte, its samples four at most.
Sounds = Annotated[list[str], Field(min_length=1, max_length=64)] | None


class SentPage(BaseModel):
    """Words, and where each stands: [x0, y0, x1, y1] in thousandths of the page. (P-1.17)"""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    words: Annotated[list[str], Field(min_length=1, max_length=MOST_WORDS)]
    boxes: Annotated[list[list[int]], Field(min_length=1, max_length=MOST_WORDS)]


class Question(BaseModel):
    """The body of ``POST /v1/classify`` and ``/v1/predict``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
    texts: Annotated[list[Words], Field(min_length=1, max_length=256)] | None = None
    images: Files = None
    sounds: Sounds = None
    pages: Annotated[list[SentPage], Field(min_length=1, max_length=64)] | None = None
    text_pairs: Annotated[list[Words], Field(min_length=1, max_length=256)] | None = None
    top: Annotated[int, Field(ge=1, le=MOST_LABELS)] | None = None
    reject_below: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Question:
        if [self.texts, self.images, self.sounds, self.pages].count(None) != 3:
            raise ValueError("a question has either texts, or images, or sounds, or pages")
        if self.text_pairs is not None and len(self.text_pairs) != len(self.texts or ()):
            raise ValueError("text_pairs: as many as there are texts")
        for name in ("images", "sounds"):
            for number, file in enumerate(getattr(self, name) or (), 1):
                try:
                    base64_bytes(file)
                except ValueError:
                    raise ValueError(f"{name}: {number} is no base64") from None
        return self

    @property
    def items(self) -> list[Any]:
        """The texts, the pairs, the pages, or what would be in files. Raises DataError for no page."""
        if self.pages is not None:
            return [
                page_of(page.words, page.boxes, place=f"page {number}")
                for number, page in enumerate(self.pages, 1)
            ]
        from protocol.rows.media import SentFile  # of what may be none

        if self.texts is None:
            medium = IMAGE if self.images else SOUND
            files = self.images or self.sounds or ()
            return [SentFile(base64_bytes(file), medium) for file in files]
        return list(
            zip(self.texts, self.text_pairs, strict=True) if self.text_pairs else self.texts
        )


class Answering(Protocol):
    """What answers behind the server, from many threads."""

    def classify(self, texts: Sequence[Any], options: AnswerOptions = LIKELIEST) -> Answer:
        """Raises DeliveryError, DataError, MachineError."""
        ...

    def health(self) -> dict[str, Any]:
        """Plain values; ``status`` is ``ok`` where it can answer."""
        ...


class ClientGoneError(Exception):
    """The client left before its request was whole."""


class Connection(H11Protocol):
    """uvicorn's, which ends where its client keeps it waiting; uvicorn itself would wait for ever."""

    _look: asyncio.TimerHandle | None = None
    _before: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse what is too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._before = self  # no request yet
            self._look = self.loop.call_later(REQUEST_S, self._look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to look at."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        """Two looks in a row that find the same request not sent, or its answer not taken, are the end."""
        waiting = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self.flow.write_paused
        if waiting and self.cycle is self._before:
            self.transport.abort()
            return
        self._before = self.cycle if waiting else self
        self._look = self.loop.call_later(REQUEST_S, self._look_again)


class QuietServer(Server):
    """uvicorn's, which ends by SIGTERM and Ctrl-C as it ends by itself; uvicorn raises the signal again."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first lets requests end, a second Ctrl-C does not."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class Routes:
    """An application of a few paths, each with its method, that answers JSON. (ASGI 3)"""

    def __init__(self, routes: dict[str, tuple[str, Route | None]]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        try:
            status, document = await self._reply(scope, receive)
        except ClientGoneError:
            return
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _reply(self, scope: Scope, receive: Receive) -> Reply:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        # A web page that resolves its own name to this address is another host.
        if headers.get(b"host", "").partition(":")[0].lower() not in (HOST, "localhost"):
            return error_reply(400, "request.host", f"ask {HOST} or localhost")
        method, answer = self._routes.get(scope["path"], ("", None))
        if answer is None:
            *first, last = [f"{method} {path}" for path, (method, _) in self._routes.items()]
            return error_reply(404, "request.path", f"{', '.join(first)} or {last}")
        if scope["method"] != method:
            return error_reply(405, "request.method", f"{method} {scope['path']}")
        return await answer(headers, receive)


async def json_question(kind: type[Q], headers: Mapping[bytes, str], receive: Receive) -> Q | Reply:
    """A request's body as a ``kind``, or what to reply where it is none."""
    sent = headers.get(b"content-type", "").partition(";")[0].strip()
    if sent.lower() != "application/json":
        return error_reply(415, "request.type", "send application/json")
    body = await body_of(receive)
    if body is None:
        return error_reply(413, "request.size", f"at most {MOST_BYTES} bytes")
    try:
        return json_as(kind, body)
    except OddError as odd:
        return error_reply(422, "request.form", str(odd))


class App(Routes):
    """``POST /v1/classify {"texts": [...]}``, for numbers ``/v1/predict``, and ``GET /health``. (ASGI 3)

    A base of images is asked ``{"images": [...]}``, one of sounds ``{"sounds": [...]}``, each a file's bytes
    in base64, one of documents ``{"pages": [{"words": [...], "boxes": [...]}]}``. A question may have ``top``
    and ``reject_below``; else ``options`` has them.
    """

    def __init__(self, service: Answering, options: AnswerOptions = LIKELIEST) -> None:
        self._service, self._options = service, options
        super().__init__(
            {
                "/v1/classify": ("POST", partial(self._answer, labels=True)),
                "/v1/predict": ("POST", partial(self._answer, labels=False)),
                "/health": ("GET", self._health),
            }
        )

    async def _answer(
        self, headers: Mapping[bytes, str], receive: Receive, *, labels: bool
    ) -> Reply:
        question = await json_question(Question, headers, receive)
        if not isinstance(question, Question):
            return question
        top, least = question.top, question.reject_below
        options = AnswerOptions(
            top=self._options.top if top is None else top,
            reject_below=self._options.reject_below if least is None else least,
        )
        try:
            answer = await asyncio.to_thread(self._service.classify, question.items, options)
        except DeliveryError as error:
            return error_reply(503, error.code, error.cause)
        except DataError as error:
            return error_reply(422, "request.form", error.cause)
        except MachineError as error:
            return error_reply(503, "serve.machine", error.cause)
        if labels != answer.has_labels:
            right = "/v1/classify" if answer.has_labels else "/v1/predict"
            return error_reply(409, "request.task", f"what is in use answers POST {right}")
        answers = [prediction.form(options) for prediction in answer.predictions]
        document: dict[str, Any] = {
            "release": answer.release,
            "seq": answer.seq,
            "answers": answers,
        }
        return 200, document | ({"personal": True} if answer.personal else {})

    async def _health(self, headers: Mapping[bytes, str], receive: Receive) -> Reply:
        health = self._service.health()
        return 200 if health["status"] == "ok" else 503, health


def serve(
    service: Answering, port: int, *, options: AnswerOptions, listening_at: Callable[[str], None]
) -> None:
    """Answer until the process is told to stop. Raises MachineError for a port that is taken.

    ``listening_at`` is given the address as soon as connections are taken; port 0 is a free one.
    """
    run(settings(service, options), port, listening_at=listening_at)


def run(
    config: Config, port: int, *, host: str = HOST, listening_at: Callable[[str], None]
) -> None:
    """The same of any application. Raises MachineError also for an address that is not this machine's."""
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise MachineError(
            f"port {port} on {host} cannot be had: {error.strerror}",
            "choose another --port" if host == HOST else "choose another --host or --port",
        ) from None
    listening_at(f"http://{host}:{listening.getsockname()[1]}")
    QuietServer(config).run(sockets=[listening])


def settings(service: Answering, options: AnswerOptions = LIKELIEST) -> Config:
    """How uvicorn runs :class:`App`."""
    return settings_of(App(service, options))


def settings_of(app: Any) -> Config:
    """How uvicorn runs an application (ASGI 3), within this module's bounds."""
    return Config(
        app,
        log_level="warning",
        access_log=False,
        http=Connection,
        ws="none",
        loop="asyncio",
        interface="asgi3",
        lifespan="off",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS + 1,
        timeout_graceful_shutdown=END_S,
    )


async def body_of(receive: Receive) -> bytes | None:
    """The request's body; None when it is larger than allowed."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            return None
    return body


def error_reply(status: int, code: str, cause: str) -> Reply:
    """What is said of a request that is not answered."""
    return status, {"error": {"code": code, "cause": cause}}
