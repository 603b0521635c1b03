"""Flower's ServerApp: reads the run's configuration, builds the objects, starts. Wiring only.

Run configuration: ``plan`` (TOML or JSON), ``base`` (folder; only its manifest is read), ``run``
(folder), ``resume``, under secure aggregation ``roster`` (names and public keys), and ``log-key`` (a file;
without it the run folder has a key of its own for its log), ``witnesses`` (their URLs, with spaces), and
``start`` (a round's adapter, where the plan goes on from another run).
"""

from __future__ import annotations

import errno
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from protocol.errors import ArtefactError, FedgeError, MachineError, PlanError
from protocol.layout import Tensors
from protocol.legality import verify_legal
from protocol.manifest import MANIFEST_NAME
from protocol.manifests import AnyManifest, parse_any_manifest
from protocol.plan import Plan, plan_from_text
from protocol.secagg.roster import parse_roster
from server.clock import Clock, SystemClock
from server.coordinator import run_rounds
from server.log import read_log_key
from server.rounds import missing
from server.setting import Listener
from server.store import Record, RunStore
from server.witnessing import HttpWitness
from storage.regular import read_settings_text
from storage.whole import write_whole

OUTCOME = "outcome.json"
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES}
log = logging.getLogger("flwr.fedge")  # Flower's handler writes it, as it does its own lines


def make_app(*, clock: Clock | None = None, listener: Listener | None = None) -> ServerApp:
    """A ServerApp; simulations pass a virtual clock and a listener."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        plan = read_plan(_path(context, "plan"))
        manifest = read_manifest(_path(context, "base"))
        verify_legal(plan, manifest)
        keys = read_roster(_path(context, "roster")) if plan.secrecy.exchange == "secagg" else {}
        store = RunStore(_path(context, "run"))
        try:
            note_outcome(store.folder, None)
            if store.last_round() is not None and not context.run_config.get("resume", False):
                raise ArtefactError(
                    f"{store.folder} holds a run already", "resume it, or name another folder"
                )
            run_rounds(
                plan=plan,
                manifest=manifest,
                grid=grid,
                store=store,
                clock=clock or SystemClock(),
                listener=listener or _Narrator(),
                roster_keys=keys,
                log_key=_log_key(context),
                witnesses=_witnesses(context),
                start=_optional_path(context, "start"),
            )
            note_outcome(store.folder, {"finished": True, "exit_code": 0})
        except FedgeError as error:
            note_outcome(store.folder, _failure(error))
            raise
        except OSError as error:
            if error.errno in DISK:
                with suppress(OSError):
                    note_outcome(store.folder, _failure(_unwritable(error)))
            raise
        finally:
            store.close()

    return made


def note_outcome(folder: Path, outcome: dict[str, Any] | None) -> None:
    """Leave how a run ended in ``outcome.json``, for whoever waits: Flower itself does not say."""
    path = folder / OUTCOME
    if outcome is None:
        path.unlink(missing_ok=True)
    else:
        write_whole(path, (json.dumps(outcome, indent=1) + "\n").encode())


def _unwritable(error: OSError) -> MachineError:
    return MachineError(
        f"the run folder cannot be written: {error.strerror}",
        "make room, or let this user write there, then resume",
    )


def _failure(error: FedgeError) -> dict[str, Any]:
    return {
        "finished": False,
        "exit_code": error.exit_code,
        "kind": type(error).__name__,
        "cause": error.cause,
        "remedy": error.remedy,
    }


class _Narrator:
    """Says in the log what was published; names and counts, nothing of an update."""

    def on_reply(self, round: int, done: int, expected: int) -> None:  # noqa: A002
        """Nothing: replies are in the record."""

    def on_round(self, record: Record, tensors: Tensors) -> None:
        """One line for a round."""
        used, without = len(record["used"]), len(missing(record))
        log.info("round %d is published: %d used, %d missing", record["round"], used, without)


def _optional_path(context: Context, name: str) -> Path | None:
    named = str(context.run_config.get(name) or "")
    return Path(named) if named else None


def _log_key(context: Context) -> Ed25519PrivateKey | None:
    path = _optional_path(context, "log-key")
    return read_log_key(path) if path else None


def _witnesses(context: Context) -> list[HttpWitness]:
    named = str(context.run_config.get("witnesses") or "")
    return [HttpWitness(url) for url in named.split()]


def read_plan(path: Path) -> Plan:
    """A plan from TOML or, by its ending, JSON. Raises PlanError."""
    try:
        text = read_settings_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path}: cannot be read ({type(error).__name__})", "check the path"
        ) from None
    return plan_from_text(text, source=str(path))


def read_roster(path: Path) -> dict[str, bytes]:
    """Public keys by name. Raises PlanError."""
    try:
        return parse_roster(read_settings_text(path), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"{path}: cannot be read ({type(error).__name__})", "check the path"
        ) from None


def read_manifest(folder: Path) -> AnyManifest:
    """A base's manifest. Raises ArtefactError."""
    path = folder / MANIFEST_NAME
    try:
        return parse_any_manifest(path.read_text("utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path} cannot be read", "name the folder of a base") from None


def _path(context: Context, name: str) -> Path:
    value = str(context.run_config.get(name) or "")
    if not value:
        raise MachineError(f"`{name}` is not set", f"set `{name}` in the run's configuration")
    return Path(value)


app = make_app()
