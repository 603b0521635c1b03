"""``fedge``: mounts each role's commands and turns errors into two lines and an exit code.

Nothing of a role is imported before one of its commands is invoked, so that ``fedge --help``
answers at once and a device needs no torch to run ``fedge edge``.
"""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

import click
import typer
import typer.main

from operations.proxies import spare_loopback
from protocol.errors import FedgeError, MachineError

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported when it is used: ``module:attribute`` and its line of help."""

    target: str
    help: str

    def load(self) -> click.Command:
        """Import it. A Typer app becomes a group, a function a command."""
        module, _, attribute = self.target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        single = typer.Typer(add_completion=False)
        single.command()(found)
        return typer.main.get_command(single)


COMMANDS = {
    "init": Lazy("fedge.proposing:init", "Write a commented plan to start from."),
    "plan": Lazy(
        "fedge.plans:app", "Check a plan, forecast what it costs, list rules and methods."
    ),
    "base": Lazy("base_model.commands:app", "Prepare or fetch a base, check it, look at it."),
    "program": Lazy(
        "base_model.programs.commands:app", "What trains: derive it from a base, check it."
    ),
    "coordinator": Lazy("fedge.coordinators:app", "The machine where rounds are coordinated."),
    "client": Lazy(
        "fedge.sites:app", "A site's machine, identity, receipts, and what its data spent."
    ),
    "roster": Lazy("fedge.rosters:app", "Who may take part in secret sums."),
    "simulate": Lazy("simulations.commands:simulate", "Run an experiment on this machine."),
    "run": Lazy("fedge.runs:run", "Run a plan over the sites of a coordinator."),
    "status": Lazy("fedge.statuses:status", "A coordinator's processes, sites and runs, live."),
    "release": Lazy(
        "delivery.release_commands:release",
        "Make a round's adapter ready for devices, with parity.",
    ),
    "export": Lazy(
        "delivery.export_commands:export", "Write an adapter for llama.cpp or onnxruntime-genai."
    ),
    "deploy": Lazy("delivery.commands:app", "Deliver releases to devices: a signed repository."),
    "report": Lazy("simulations.commands:report", "Write a run's HTML page."),
    "metrics": Lazy("fedge.metrics:metrics", "A run's curves: lines, TensorBoard, MLflow."),
    "compare": Lazy("simulations.commands:compare", "Put runs beside one another."),
    "log": Lazy("server.commands:app", "Look after a run's log: expired vectors, submissions."),
    "audit": Lazy("audit.commands:app", "Check a run's log and sums, without seeing an update."),
    "edge": Lazy("fedge.edge:app", "Answer texts on a device; update, train, measure adapters."),
}


class LazyGroup(click.Group):
    """A group whose commands are known by name and help, and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: D102
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: D102
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        command = lazy.load()
        command.name = cmd_name
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest command named when there is none of that name."""
        if args and args[0] not in COMMANDS:
            import difflib  # only for a misspelling

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            ctx.fail(f"There is no command `{args[0]}`.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The static lines of help: nothing is imported for them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    no_args_is_help=True,
    help="Federated fine-tuning of adapters on one frozen quantised base, from the plan to the device.",
)
@click.version_option(package_name="fedge", message="fedge %(version)s")
def cli() -> None:
    """The root; its help is above."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    if arguments is None:
        _speak_utf8()
    given = sys.argv[1:] if arguments is None else arguments
    spare_loopback(os.environ)
    _say_anywhere()
    try:
        code = cli.main(args=given, prog_name="fedge", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        print("stopped" + _goes_on(given), file=sys.stderr)  # noqa: T201
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _leave_output()
        sys.exit(1)
    except Exception as error:
        sys.exit(_failed(error, given))


def _goes_on(given: list[str]) -> str:
    """What to do behind a stop, of a command that can be told to."""
    return "; a run goes on with --resume" if given[:1] in (["run"], ["simulate"]) else ""


def _leave_output() -> None:
    """What is still to be written goes nowhere: the output takes no more, and Python would try at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speak_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale knows too few letters for names of files."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this program


def _say_anywhere() -> None:
    """A terminal of another encoding shows escapes: it must not end a run that has done its work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _failed(error: Exception, given: list[str]) -> int:
    """Show an error; returns the exit code."""
    if os.environ.get("FEDGE_DEBUG"):
        traceback.print_exc()
    known = error if isinstance(error, FedgeError) else _translated(error, given)
    if "--json" in given:
        body: dict[str, Any] = {
            "kind": type(known).__name__,
            "cause": known.cause,
            "remedy": known.remedy,
        }
        try:
            print(json.dumps({"error": body}), flush=True)  # noqa: T201
            return known.exit_code
        except OSError:  # perhaps what the error is about: a full disk behind the output
            _leave_output()
    print(f"error: {known.cause}\nfix: {known.remedy}", file=sys.stderr)  # noqa: T201
    return known.exit_code


def _translated(error: Exception, given: list[str]) -> FedgeError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        extra = _EXTRAS.get(package)
        if extra:
            return MachineError(
                f"the package `{package}` is not installed",
                f"pip install -c constraints.txt '.[{extra}]'",
            )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        where = error.filename or "the disk"
        return MachineError(
            f"{where} cannot be written: {error.strerror}", f"make room{_goes_on(given)}"
        )
    return FedgeError(
        f"unexpected {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}",
        "this is a bug of ours; run again with FEDGE_DEBUG=1 and report the traceback",
    )


_EXTRAS = {
    "torch": "base",
    "transformers": "base",
    "peft": "base",
    "onnx": "client",
    "onnxscript": "base",
    "pyarrow": "parquet",
    "flwr": "server",
    "jinja2": "server",
    "prometheus_client": "server",
    "onnxruntime": "edge",
    "tokenizers": "edge",
    "h11": "edge",
    "uvicorn": "edge",
    "tuf": "deploy",
    "safetensors": "server",
    "ray": "ray",
    "tensorboard": "tracking",
    "mlflow": "tracking",
    "sqlalchemy": "tracking",
    "alembic": "tracking",
}
