"""A device's service on a port of its own, and clients that ask it without a pause."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from edge_runtime.http_server import App
from edge_runtime.service import Service

ASKERS, PATIENCE = 3, 60.0  # seconds for an answer


@contextmanager
def listening(service: Service) -> Iterator[int]:
    """Its port."""
    config = uvicorn.Config(App(service), port=0, log_level="error", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@dataclass
class Load:
    """What clients were answered: bodies of 200; and of anything else, or why one had no answer."""

    answers: list[Any] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)

    def wait_for(self, more: int) -> None:
        """Until so many more answers are there, or a fault."""
        seen, end = len(self.answers), time.monotonic() + PATIENCE
        while len(self.answers) < seen + more and not self.faults:
            assert time.monotonic() < end, "no client is answered any more"
            time.sleep(0.001)


@contextmanager
def asked(port: int, texts: Sequence[str]) -> Iterator[Load]:
    """Three connections that classify the same texts, one request behind the other, until the end."""
    load, stop = Load(), threading.Event()
    body, headers = json.dumps({"texts": texts}), {"Content-Type": "application/json"}

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            while not stop.is_set():
                connection.request("POST", "/v1/classify", body, headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
                (load.answers if answer.status == 200 else load.faults).append(said)
        except (OSError, http.client.HTTPException, ValueError) as error:
            load.faults.append(repr(error))
        finally:
            connection.close()

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(ASKERS)]
    for asker in askers:
        asker.start()
    try:
        yield load
    finally:
        stop.set()
        for asker in askers:
            asker.join()
