"""Asking a device's application without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from edge_runtime.http_server import Routes


def asked(
    app: Routes, document: Mapping[str, Any], *, path: str = "/v1/classify"
) -> tuple[int, dict[str, Any]]:
    """One request, by ASGI itself."""
    sent: list[Mapping[str, Any]] = []
    asked_already = False

    async def receive() -> Mapping[str, Any]:
        nonlocal asked_already
        if asked_already:
            await asyncio.Event().wait()  # the client stays
        asked_already = True
        return {"type": "http.request", "body": json.dumps(document).encode()}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "path": path, "method": "POST", "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])
