"""What the folders of a coordinator and of a site have in common: settings, secrets, whole files."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field

from protocol.documents import OddError, parse_toml, value_as
from protocol.errors import ArtefactError, MachineError
from storage.regular import read_settings_text
from storage.whole import PRIVATE, write_whole

CONFIG, KEYS, STATE, PROGRAMS, WORK, HOME = "config.toml", "keys", "state", "bin", "work", "flwr"
Settings = TypeVar("Settings", bound=BaseModel)


class Section(BaseModel):
    """A part of a settings file: unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Invitation(Section):
    """What an operator gives to sites, over a way they trust: none of it is secret."""

    format: int = Field(default=1, ge=1, le=1)
    name: str
    address: str  # host:port
    authority: str  # the CA's certificate, PEM
    operator: str = Field(pattern=r"^[0-9a-f]{64}$")  # signs the roster


def new_folder(path: Path) -> Path:
    """An empty folder of its owner alone, by its full path. Raises ArtefactError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ArtefactError(f"{path} is not empty", "name a new folder")
        path.chmod(0o700)
        for name in (KEYS, STATE, WORK, HOME):
            (path / name).mkdir(mode=0o700)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be made: {error.strerror}", "name another folder"
        ) from None
    return path.resolve()


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """A TOML file as settings. Raises MachineError that names the key."""
    try:
        return value_as(kind, parse_toml(read_settings_text(path)))
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read: {error.strerror}",
            "name a folder that `fedge coordinator init` or `fedge client enrol` has made",
        ) from None
    except UnicodeDecodeError:
        raise MachineError(f"{path}: not UTF-8", "save this file as UTF-8") from None
    except OddError as odd:
        raise MachineError(f"{path}: {odd}", "correct this file") from None


def toml_text(text: str) -> str:
    """A string of a TOML file, whatever is in it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_secret(path: Path, data: bytes) -> None:
    """A new file that its owner alone can read. Raises ArtefactError when it exists."""
    try:
        write_whole(path, data, mode=PRIVATE, new=True)
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be written: {error.strerror}", "a key is not overwritten"
        ) from None


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key of 64 hex digits. Raises MachineError that shows none of them."""
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text("ascii").strip()))
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read: {error.strerror}", "name the file with the key"
        ) from None
    except ValueError:
        raise MachineError(f"{path}: not a key", "it holds 64 hex digits") from None


def new_signing_key() -> tuple[bytes, str]:
    """A file's content for a new Ed25519 key, and its public half in hex."""
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes_raw().hex().encode() + b"\n",
        key.public_key().public_bytes_raw().hex(),
    )


def free_port() -> int:
    """A port that nobody has on loopback at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
