"""A node's settings, and the files they name. (client/app.py lists them)"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ArtefactError, FedgeError, MachineError, PlanError
from protocol.manifest import MANIFEST_NAME
from protocol.manifests import AnyManifest, parse_any_manifest
from protocol.plan import Plan, plan_from_text
from protocol.secagg.roster import parse_roster
from protocol.section import MOST_MEMORY, MOST_THREADS
from storage.regular import read_settings_text

if TYPE_CHECKING:
    from flwr.app import Context

FINGERPRINT = re.compile(r"[0-9a-f]{64}")
FileKey = tuple[str, int, int]  # path, mtime in ns, bytes


def client_name(context: Context) -> str:
    """The roster name: ``client-id``, or ``client-0007`` for partition 7. Raises MachineError."""
    if (name := context.node_config.get("client-id")) is not None:
        return str(name)
    if (partition := context.node_config.get("partition-id")) is not None:
        return f"client-{int(partition):04d}"
    raise MachineError(
        "this node has no name", "start it with --node-config 'client-id=\"…\"' or partition-id"
    )


def plan_of(context: Context) -> Plan:
    """The plan this node agreed to. Raises PlanError."""
    return plan_at(path_of(context, "plan"))


def plan_at(path: Path) -> Plan:
    """The plan in a file; read again when it changes. Raises PlanError."""
    return _plan(file_key(path, PlanError))


def manifest_of(context: Context) -> AnyManifest:
    """The manifest of this node's base. Raises ArtefactError."""
    return manifest_at(base_of(context))


def manifest_at(folder: Path) -> AnyManifest:
    """The manifest of a base; read again when the file changes. Raises ArtefactError."""
    return _manifest(file_key(folder / MANIFEST_NAME, ArtefactError))


def base_of(context: Context) -> Path:
    """The folder of this node's base; by fingerprint it is in the cache, and fetched when it is not.

    Only the machine's own settings name mirrors. Raises MachineError or ArtefactError.
    """
    path = path_of(context, "base")
    if not FINGERPRINT.fullmatch(str(path)):
        return path
    own = context.node_config
    cache = Path(str(own.get("base-cache") or Path.home() / ".cache" / "fedge" / "bases"))
    if (cache / path / MANIFEST_NAME).is_file():
        return cache / path
    from base_model.fetch import fetch_base

    return fetch_base(str(path), mirrors=str(own.get("base-mirrors") or "").split(), cache=cache)


def roster_of(context: Context) -> dict[str, bytes]:
    """The roster this node trusts. Raises PlanError."""
    return _roster(file_key(path_of(context, "roster"), PlanError))


def identity_path(context: Context) -> Path:
    """The file with this node's key. Raises MachineError when none is set."""
    if (path := context.node_config.get("identity")) is None:
        raise MachineError(
            "this node has no identity", "start it with --node-config 'identity=\"…\"'"
        )
    return Path(str(path))


def read_identity(path: Path) -> Ed25519PrivateKey:
    """A client's own key: 64 hex digits. Raises MachineError that shows none of them."""
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read: {error.strerror}", "name this client's identity file"
        ) from None
    except ValueError:
        raise MachineError(f"{path}: not an identity", "it holds 64 hex digits") from None


def ledger_path(context: Context) -> Path:
    """Where this client keeps what its data has spent: beside its identity unless it says so."""
    if own := context.node_config.get("ledger"):
        return Path(str(own))
    identity = identity_path(context)
    return identity.with_name(identity.name + ".ledger.jsonl")


def openings_path(context: Context) -> Path:
    """Where this client keeps which sums it has helped to open: beside its identity."""
    identity = identity_path(context)
    return identity.with_name(identity.name + ".openings.jsonl")


def receipts_path(context: Context) -> Path:
    """Where this client keeps receipts and what it was shown of logs: beside its identity."""
    identity = identity_path(context)
    return identity.with_name(identity.name + ".receipts.jsonl")


def programs_path(context: Context) -> Path | None:
    """The folder for programs that cannot lie beside their base; None for this user's own cache."""
    value = context.node_config.get("programs")
    return Path(str(value)) if value else None


def sessions_path(context: Context) -> Path | None:
    """The folder for attempts of secure aggregation; None to keep them in Flower's node state."""
    value = context.node_config.get("sessions")
    return Path(str(value)) if value else None


def controls_path(context: Context) -> Path:
    """The folder where this client keeps control variates: beside its identity unless it says so."""
    if own := context.node_config.get("controls"):
        return Path(str(own))
    if context.node_config.get("identity") is None:
        raise MachineError(
            "the plan corrects training by control variates, and this node has nowhere to keep them",
            "start it with --node-config 'controls=\"FOLDER\"'",
        )
    identity = identity_path(context)
    return identity.with_name(identity.name + ".controls")


def kept_path(context: Context) -> Path:
    """The folder where this client keeps what it masked last: beside its identity unless it says so."""
    if own := context.node_config.get("kept"):
        return Path(str(own))
    identity = identity_path(context)
    return identity.with_name(identity.name + ".kept")


def keeps_updates(context: Context) -> bool:
    """Whether it keeps what it masked under every plan: where it has a place for what outlives a process."""
    return bool({"kept", "sessions"} & context.node_config.keys())


def epsilon_limit(context: Context) -> float:
    """``max-epsilon``: what this client's data may spend over all runs. Raises MachineError."""
    value = context.node_config.get("max-epsilon")
    try:
        limit = math.inf if value is None else float(str(value))
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise MachineError(f"`max-epsilon` is {value!r}", "a positive number")
    return limit


def data_path(context: Context) -> Path:
    """The file with this node's rows. Raises MachineError when none is set."""
    if (path := context.node_config.get("data-path")) is not None:
        return Path(str(path))
    pattern, partition = _setting(context, "data-pattern"), context.node_config.get("partition-id")
    if not pattern or partition is None:
        raise MachineError("this node has no data", "start it with --node-config 'data-path=\"…\"'")
    return _filled(pattern, "data-pattern", int(partition))


def threads_of(context: Context) -> int:
    """``threads``; 0 leaves it to the engine. Raises MachineError beyond what machines have."""
    return _count(context, "threads", MOST_THREADS)


def expand_mib_of(context: Context) -> int:
    """``expand-mib``: memory for frozen weights that are expanded once. Raises MachineError."""
    return _count(context, "expand-mib", MOST_MEMORY)


def _count(context: Context, name: str, most: int) -> int:
    value = _setting(context, name) or "0"
    known = value.isascii() and value.isdigit() and len(value) <= len(str(most))
    if not known or int(value) > most:
        raise MachineError(f"`{name}` is {value[:20]!r}", f"0 to {most}")
    return int(value)


def _filled(pattern: str, name: str, partition: int) -> Path:
    try:
        return Path(pattern.format(partition=partition))
    except (KeyError, IndexError, ValueError, AttributeError):
        raise PlanError(
            f"{name} {pattern!r} is not a path with {{partition}}",
            "write for example clients/client-{partition:04d}.jsonl",
        ) from None


def _setting(context: Context, name: str) -> str:
    """A machine's own setting goes before the run's: its folders are its own.

    A machine with an identity takes part in secret sums: there the run's settings, which are the
    coordinator's, count for nothing.
    """
    own = context.node_config.get(name)
    if own or "identity" in context.node_config:
        return str(own or "")
    return str(context.run_config.get(name) or "")


def path_of(context: Context, name: str) -> Path:
    """The path a setting holds. Raises MachineError when it is not set."""
    if not (value := _setting(context, name)):
        raise MachineError(f"`{name}` is not set", f"set `{name}` in the run's or node's config")
    return Path(value)


def file_key(path: Path, kind: type[FedgeError]) -> FileKey:
    """What a file is recognised by in a cache; raises ``kind`` when it cannot be read."""
    try:
        found = path.stat()
    except OSError as error:
        raise kind(f"{path}: cannot be read: {error.strerror}", "check the path") from None
    return str(path), found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _plan(key: FileKey) -> Plan:
    return plan_from_text(_text(key, PlanError), source=key[0])


@lru_cache(maxsize=8)
def _roster(key: FileKey) -> dict[str, bytes]:
    return parse_roster(_text(key, PlanError), source=key[0])


@lru_cache(maxsize=8)
def _manifest(key: FileKey) -> AnyManifest:
    return parse_any_manifest(_text(key, ArtefactError), source=key[0])


def _text(key: FileKey, kind: type[FedgeError]) -> str:
    try:
        return read_settings_text(Path(key[0]))
    except (OSError, UnicodeDecodeError) as error:
        raise kind(f"{key[0]}: cannot be read ({type(error).__name__})", "check the file") from None
