"""Flower's node as a site runs it: ``python -m client.node supernode|apps``.

The only file that knows the inside of Flower's node. It differs from Flower's own programs so:

- an idle SuperNode asks again after half a second instead of three;
- what a coordinator answers is bounded, is not unpacked, and leads nowhere else;
- the app that answers is this installation's :mod:`client.app`, whatever code or reference a run
  brings along, and nothing of it is unpacked;
- the process for a message is a fork of one that has everything loaded, and its token is on nobody's
  command line; when it dies the coordinator is told at once instead of after a minute.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import httpx

IDLE_S, POLL_S = 0.5, 0.25
ANSWER_BYTES, MESSAGE_BYTES = 2**26, 2**30
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
DIED = "the process of this app died"
INSTANCE, INSTANCE_HEADER = (
    "FEDGE_INSTANCE",
    "fedge-instance",
)  # of server.gateway: this start of the site

log = logging.getLogger("flwr.fedge")  # Flower's handler writes it, as it does its own lines


def supernode() -> None:
    """Flower's ``flower-supernode``, with its command line."""
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    def sleep(seconds: float) -> None:
        time.sleep(min(seconds, IDLE_S))

    start_client_internal.time = SimpleNamespace(sleep=sleep)
    bound_answers()
    _answer_for_the_dead()
    flower_supernode()


def bound_answers() -> None:
    """A coordinator can neither fill this machine's memory nor send its requests to a third."""
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.supernode import start_client_internal

    begin, pull = ProtobufClient.__init__, start_client_internal.pull_objects

    def begin_bounded(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self._client.follow_redirects = False
        self._client.headers[INSTANCE_HEADER] = os.environ.get(INSTANCE, "")
        self._client.event_hooks = {"response": [verify_answer]}

    def pull_bounded(names: Any, pull_object_fn: Any, **options: Any) -> Any:
        pulled = 0

        def pull_object(name: str) -> bytes:
            nonlocal pulled
            content: bytes = pull_object_fn(name)
            pulled += len(content)
            if pulled > MESSAGE_BYTES:
                raise ValueError("the message is too long")
            return content

        return pull(names, pull_object, **options)

    ProtobufClient.__init__ = begin_bounded
    start_client_internal.pull_objects = pull_bounded


def verify_answer(response: httpx.Response) -> None:
    """Before its body is read. Raises RemoteProtocolError when it is packed, too long, or says no length."""
    length = response.headers.get("content-length", "")
    if "content-encoding" in response.headers or not length.isdigit() or len(length) > 12:
        raise httpx.RemoteProtocolError("an answer without a length", request=response.request)
    if int(length) > ANSWER_BYTES:
        raise httpx.RemoteProtocolError("an answer that is too long", request=response.request)


def _answer_for_the_dead() -> None:
    """A task that is said to have died leaves an error as its reply."""
    from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR
    from flwr.supernode.servicer.runtime import runtime_handlers

    push = runtime_handlers.push_task_output

    def push_and_reply(request: Any, state: Any, task: Any) -> Any:
        answer = push(request, state, task)
        if request.details == DIED:
            state._store_error_replies({task.run_id}, CLIENT_APP_CRASHED_ERROR)
        return answer

    runtime_handlers.push_task_output = push_and_reply


def apps() -> None:
    """Asks the SuperNode for work and forks a process for every message; for client apps only."""
    parser = argparse.ArgumentParser()
    for name in ("--runtime-api-address", "--root-certificates", "--superexec-auth-secret-file"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    Apps(
        given.runtime_api_address,
        Path(given.root_certificates),
        Path(given.superexec_auth_secret_file).read_bytes(),
    ).run()


class Apps:
    """Takes the place of Flower's ``flower-superexec`` at a site."""

    def __init__(self, address: str, authority: Path, secret: bytes) -> None:
        from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor

        self._address, self._authority = address, authority
        sign = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
        self._client = self._connect(sign)
        self._children: dict[int, str] = {}  # processes with their tokens
        _load_app()

    def _connect(self, interceptor: Any) -> Any:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.retry import make_simple_http_retry_invoker
        from flwr.supercore.runtime import RuntimeHttpClient

        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=False,
            root_certificates=self._authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), interceptor],
            retry_invoker=make_simple_http_retry_invoker(),
        )

    def run(self) -> NoReturn:
        """For ever."""
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        while True:
            answer = self._client.AcquireTask(wanted)
            if answer.HasField("task") and answer.token:
                self._fork(answer.token)
            self._reap()
            time.sleep(POLL_S)

    def _fork(self, token: str) -> None:
        parent = os.getpid()
        if child := os.fork():
            self._children[child] = token
            return
        code = 1
        try:
            _answer_message(self._address, token, self._authority, parent)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # the parent's connections are not this process's to close

    def _reap(self) -> None:
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            token = self._children.pop(child, "")
            if os.WIFSIGNALED(status):
                log.error("a client app died by signal %d", os.WTERMSIG(status))
                self._say_died(token)

    def _say_died(self, token: str) -> None:
        from flwr.common.constant import SubStatus
        from flwr.proto.runtime_pb2 import PushTaskOutputRequest
        from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor

        client = self._connect(RuntimeTokenHttpInterceptor(token))
        try:
            client.PushTaskOutput(
                PushTaskOutputRequest(context=None, sub_status=SubStatus.FAILED, details=DIED)
            )
        except Exception as error:  # then the SuperNode finds out by itself, after a minute
            log.error("a death could not be told: %s", type(error).__name__)
        finally:
            client.close()


def _load_app() -> None:
    """Everything that messages need but torch and ONNX Runtime, which start threads. (docs/adr/0051)"""
    for name in (
        "app",
        "data",
        "engine.onnx_engine",
        "ledger",
        "openings",
        "receipts",
        "secret",
        "worker",
    ):
        import_module(f"client.{name}")
    import_module("base_model.programs.folder")
    import_module("flwr.supernode.runtime.run_clientapp")


def _answer_message(address: str, token: str, authority: Path, parent: int) -> None:
    """One message from its arrival to its reply, as ``flwr-clientapp`` does it. Exits."""
    from client.app import app

    process: Any = import_module("flwr.supernode.runtime.run_clientapp")
    process.install_from_fab = lambda *_, **__: None
    process.get_project_dir = lambda *_, **__: Path()
    process.get_load_client_app_fn = lambda **_: lambda *__: app
    process.run_clientapp(
        runtime_api_address=address,
        token=token,
        insecure=False,
        certificates=authority.read_bytes(),
        parent_pid=parent,
        runtime_dependency_install=False,
    )


if __name__ == "__main__":
    {"supernode": supernode, "apps": apps}[sys.argv.pop(1)]()
