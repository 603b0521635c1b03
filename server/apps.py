"""Starts the coordinator's app for a run: ``python -m server.apps ARGUMENTS OF flower-superexec``.

Flower hands an app its token on a command line, which every user of the machine can read, and who has it
speaks to the sites as the run. Here the app reads it from its standard input; and nothing but
ServerApps is started.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

SERVERAPP = "serverapp"  # the first argument of the process of a run


def superexec() -> None:
    """Flower's ``flower-superexec``, with its command line."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor import SubprocessExecutor

    SubprocessExecutor.launch = lambda _, spec: launch(spec)
    flower_superexec()


def launch(spec: ExecutionSpec) -> LaunchResult:
    """A process of its own for one run."""
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import LaunchResult

    if spec.task_type != TaskType.SERVER_APP or spec.root_certificates_path is None:
        return LaunchResult.failed("only ServerApps are started here, over TLS")
    command = [sys.executable, "-P", "-m", "server.apps", SERVERAPP]
    command += ["--runtime-api-address", spec.runtime_api_address]
    command += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        command += ["--parent-pid", str(spec.parent_pid)]
    silent = subprocess.DEVNULL if spec.suppress_output else None
    process = subprocess.Popen(  # noqa: S603 - this very program
        command, stdin=subprocess.PIPE, stdout=silent, stderr=silent
    )
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(f"{spec.token}\n".encode())
    except BrokenPipeError:
        return LaunchResult.failed("the process of the app ended at once")
    return LaunchResult.accepted()


def serverapp() -> None:
    """Flower's ``flwr-serverapp``, with its command line but for the token."""
    from flwr.superlink.cli import flwr_serverapp

    token = sys.stdin.readline().strip()
    sys.argv += ["--token", token]  # of this interpreter; the system shows what it was started with
    flwr_serverapp()


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVERAPP]:
        del sys.argv[1]
        serverapp()
    else:
        superexec()
