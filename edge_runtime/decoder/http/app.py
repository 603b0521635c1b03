"""Texts and chats over HTTP, as OpenAI's clients ask for them. (ASGI 3)

Without a key: whoever reaches the port may ask. (docs/adr/0024 says why there is no framework.)
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from edge_runtime.decoder.generation import Step
from edge_runtime.decoder.http.answers import Answer
from edge_runtime.decoder.http.forms import ApiError, Asked, ChatCompletion, Completion, parse_asked
from edge_runtime.decoder.http.service import Texts
from edge_runtime.decoder.http.turns import EndedError, FullError, Turn, Turns
from edge_runtime.http_server import (
    HOST,
    MOST_BYTES,
    ClientGoneError,
    Receive,
    Scope,
    Send,
    body_of,
)
from protocol.errors import FedgeError

LOCAL = (HOST, "localhost")
RETRY_S = 1
KINDS: Mapping[str, type[Completion] | type[ChatCompletion]] = {
    "/v1/completions": Completion,
    "/v1/chat/completions": ChatCompletion,
}
MODELS = "/v1/models"
LOG = logging.getLogger("uvicorn.error")
JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
Items = asyncio.Queue[Step | Exception]


class TextApp:
    """``POST /v1/completions`` and ``/v1/chat/completions``, ``GET /v1/models`` and ``/health``.

    ``local``: only who asks for this machine by its own name is heard.
    """

    def __init__(self, service: Texts, *, local: bool = True) -> None:
        self._service, self._local = service, local
        self._since = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Nothing of it, and no path, goes into a log."""
        reply = _Reply(send)
        try:
            await self._answer(scope, receive, reply)
        except ClientGoneError:
            return
        except asyncio.CancelledError:  # uvicorn ends, and has waited as long as it does
            await reply.fail(_failure(EndedError()))
        except ApiError as error:
            await reply.fail(error)
        except Exception as error:  # uvicorn would log a trace, with paths
            LOG.error("a request failed: %s", type(error).__name__)
            await reply.fail(_failure(error))

    async def _answer(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        # A web page that resolves its own name to this address is another host.
        if self._local and headers.get(b"host", "").partition(":")[0].lower() not in LOCAL:
            raise ApiError(400, f"ask {HOST} or localhost", code="invalid_host")
        path = scope["path"]
        method = "POST" if path in KINDS else "GET"
        if path not in KINDS and path != "/health" and not f"{path}/".startswith(f"{MODELS}/"):
            raise ApiError(
                404, f"POST {', '.join(KINDS)} or GET {MODELS}, /health", code="unknown_url"
            )
        if scope["method"] != method:
            raise ApiError(405, f"this path takes {method}", code="method_not_allowed")
        if path in KINDS:
            await self._write(KINDS[path], headers, receive, reply)
        else:
            await reply.document(*self._looked_up(path))

    def _looked_up(self, path: str) -> tuple[dict[str, Any], int]:
        """A document and its status."""
        if path == "/health":
            health = self._service.health()
            return health, 200 if health["status"] == "ok" else 503
        name = path.removeprefix(MODELS).removeprefix("/")
        if name:
            self._service.verify_model(name)
            return self._model(name), 200
        models = [self._model(name) for name in self._service.names]
        return {"object": "list", "data": models}, 200

    def _model(self, name: str) -> dict[str, Any]:
        model = {"id": name, "object": "model", "created": self._since, "owned_by": "fedge"}
        return {**model, **self._service.facts(name)}

    async def _write(
        self,
        kind: type[Completion] | type[ChatCompletion],
        headers: Mapping[bytes, str],
        receive: Receive,
        reply: _Reply,
    ) -> None:
        sent = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if sent != JSON.decode():  # what a web page may send anywhere without asking is another
            raise ApiError(415, "send the content type application/json", code="unsupported_type")
        body = await body_of(receive)
        if body is None:
            raise ApiError(413, f"the body has more than {MOST_BYTES} bytes", code="too_large")
        asked = parse_asked(kind, body)
        self._service.verify_model(asked.model)
        base = self._service.writer.base
        answer = Answer(asked, base.tokenizer, fingerprint=base.manifest.fingerprint)
        async with self._steps(asked, answer, receive) as steps:
            if asked.stream:
                await _stream(answer, steps, reply)
            else:
                whole = [step async for step in steps]
                await reply.document(await asyncio.to_thread(answer.whole, whole))

    @asynccontextmanager
    async def _steps(
        self, asked: Asked, answer: Answer, receive: Receive
    ) -> AsyncIterator[AsyncIterator[Step]]:
        """The text of a request, step by step, while its client is there. Raises ApiError."""
        turns, loop = self._service.turns, asyncio.get_running_loop()
        items: Items = asyncio.Queue()
        try:
            with turns.place() as turn:
                prepared = await asyncio.to_thread(self._service.prepare, asked)
                answer.prompt_tokens = prepared.prompt_tokens
                answer.note(prepared.facts)
                tell = partial(_pass_on, loop, items)
                turns.begin(turn, prepared.steps, tell, prepared.cache)
                watching = asyncio.create_task(_watch(receive, turns, turn, items))
                try:
                    yield _taken(items)
                finally:
                    watching.cancel()
        except FullError:
            raise ApiError(
                429,
                "as many texts are written and wait as may: ask again later",
                kind="rate_limit_error",
                code="queue_full",
            ) from None


class _Reply:
    """What goes back, and whether it has begun."""

    def __init__(self, send: Send) -> None:
        self._send, self._begun = send, False

    async def document(
        self, document: Mapping[str, Any], status: int = 200, *headers: tuple[bytes, bytes]
    ) -> None:
        """The whole answer."""
        body = _json(document)
        await self._begin(status, JSON, (b"content-length", b"%d" % len(body)), *headers)
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, data: bytes, *, more: bool = True) -> None:
        """An event of a stream."""
        if not self._begun:
            await self._begin(200, EVENTS, (b"cache-control", b"no-cache"))
        body = b"data: " + data + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def fail(self, error: ApiError) -> None:
        """An error instead of an answer; in a stream, which ends with it, as an event."""
        if self._begun:
            await self.event(_json(error.document), more=False)
            return
        again = [(b"retry-after", b"%d" % RETRY_S)] if error.status in (429, 503) else []
        await self.document(error.document, error.status, *again)

    async def _begin(self, status: int, kind: bytes, *headers: tuple[bytes, bytes]) -> None:
        self._begun = True
        listed = [(b"content-type", kind), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": listed})


async def _stream(answer: Answer, steps: AsyncIterator[Step], reply: _Reply) -> None:
    """Events of an answer. None is sent before there is a token: until then an error has its status."""
    begun = False
    async for step in steps:
        documents = [] if begun else [*answer.first()]
        documents += answer.event(step)
        if step.finish:
            documents += answer.last(step)
        for document in documents:
            await reply.event(_json(document))
        begun = True
        await asyncio.sleep(0)  # neither the queue nor uvicorn lets others go on by itself
    await reply.event(b"[DONE]", more=False)


async def _watch(receive: Receive, turns: Turns, turn: Turn, items: Items) -> None:
    """Until the client leaves: then its place becomes free, and what waits for it is dropped."""
    while (await receive())["type"] != "http.disconnect":
        pass
    turns.leave(turn)
    while not items.empty():
        items.get_nowait()
    items.put_nowait(ClientGoneError())


async def _taken(items: Items) -> AsyncIterator[Step]:
    """Steps up to the last. Raises what ended them before."""
    while True:
        item = await items.get()
        if isinstance(item, Exception):
            raise item
        yield item
        if item.finish:
            return


def _pass_on(loop: asyncio.AbstractEventLoop, items: Items, item: Step | Exception) -> None:
    """From the thread that writes; raises RuntimeError once the loop is closed."""
    loop.call_soon_threadsafe(items.put_nowait, item)


def _failure(error: Exception) -> ApiError:
    """What the client is answered; causes may name paths, so only the kind of error."""
    if isinstance(error, EndedError):
        return ApiError(503, "the server ends", kind="server_error", code="ending")
    what = "the base or its adapter" if isinstance(error, FedgeError) else "the server"
    return ApiError(
        500, f"{what} failed: {type(error).__name__}", kind="server_error", code="failed"
    )


def _json(document: Mapping[str, Any]) -> bytes:
    """In ASCII: there are clients that take more characters for the end of a line than events do."""
    return json.dumps(document, separators=(",", ":")).encode()
