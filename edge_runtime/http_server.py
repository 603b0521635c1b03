"""``fedge edge serve``: HTTP on loopback, for programs on the same device."""

from __future__ import annotations

import socket
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from edge_runtime.service import Service
from protocol.errors import DeliveryError, MachineError

HOST = "127.0.0.1"
MOST_BYTES = 1_048_576  # of a request


class Question(BaseModel):
    """The body of ``POST /v1/classify``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    texts: Annotated[
        list[Annotated[str, Field(max_length=20_000)]], Field(min_length=1, max_length=256)
    ]


def make_app(service: Service) -> FastAPI:
    """``POST /v1/classify {"texts": [...]}`` and ``GET /health``, and nothing else."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    # A web page that resolves its own name to this address is another host.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])

    @app.post("/v1/classify")
    async def classify(request: Request) -> JSONResponse:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _error(415, "request.type", "send application/json")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return _error(413, "request.size", f"at most {MOST_BYTES} bytes")
        try:
            question = Question.model_validate_json(body)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "the body"
            return _error(422, "request.form", f"{where}: {fault['msg']}")
        try:
            answer = await run_in_threadpool(service.classify, question.texts)
        except DeliveryError as error:
            return _error(503, error.code, error.cause)
        return JSONResponse(
            {
                "release": answer.release,
                "seq": answer.seq,
                "answers": [
                    {"label": one.label, "index": one.index, "score": one.score}
                    for one in answer.predictions
                ],
            }
        )

    @app.get("/health")
    async def health() -> JSONResponse:
        told: dict[str, Any] = service.health()
        return JSONResponse(told, status_code=200 if told["status"] == "ok" else 503)

    return app


def serve(service: Service, port: int) -> None:
    """Answer until the process is told to stop. Raises MachineError for a port that is taken."""
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise MachineError(
            f"port {port} on {HOST} cannot be had: {error.strerror}", "choose another --port"
        ) from None
    follower = service.run()
    config = uvicorn.Config(
        make_app(service),
        log_level="warning",
        access_log=False,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        server_header=False,
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        service.stop()
        follower.join()


def _error(status: int, code: str, cause: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "cause": cause}}, status_code=status)
