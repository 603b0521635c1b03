"""``device.toml``: who a device is, what it trusts and where its things are. Part of its image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from protocol.addresses import shown_address, web_fault
from protocol.delivery import Channel, Name
from protocol.documents import OddError, parse_toml, value_as
from protocol.errors import ArtefactError
from storage.regular import read_settings_text

PathField = Annotated[Path, Field(strict=False)]
FOLDERS = ("root", "trust", "base", "store", "probe", "report")


class Device(BaseModel):
    """The settings. Relative paths start at the folder of ``device.toml``.

    ``root`` is the repository's first root and ``trust`` the log's policy: both come with the image, so
    that no network is believed about them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    format: Literal[1] = 1
    id: Name
    name: Name = Field(description="which adapter, as it was published")
    channel: Channel = "stable"
    repository: str = Field(description="an http(s) address, or a folder")
    root: PathField
    trust: PathField
    base: PathField
    store: PathField
    probe: PathField
    report: PathField | None = Field(default=None, description="a file its operator collects")
    personal: bool = Field(
        default=True, description="whether an adapter that was trained here may answer here"
    )
    threads: Annotated[int, Field(ge=0, le=256)] = 1
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    most_bytes: Annotated[int, Field(gt=0)] = 64 * 2**20
    faults: Annotated[int, Field(gt=0, description="failed answers that mean a rollback")] = 5
    window_s: Annotated[float, Field(gt=0)] = 60.0


def read_device(path: Path) -> Device:
    """Read ``device.toml``. Raises ArtefactError that names the setting."""
    try:
        device = value_as(Device, parse_toml(read_settings_text(path)))
    except OSError as error:
        raise ArtefactError(
            f"{path}: no settings that can be read ({error.strerror})",
            "docs/guide.md shows a device.toml",
        ) from None
    except UnicodeDecodeError:
        raise ArtefactError(f"{path}: not UTF-8", "save this file as UTF-8") from None
    except OddError as odd:
        raise ArtefactError(f"{path}: {odd}", "docs/guide.md shows a device.toml") from None
    folder = path.resolve().parent
    found = {name: getattr(device, name) for name in FOLDERS if getattr(device, name) is not None}
    moved = {name: folder / value for name, value in found.items()}
    if "://" not in device.repository:
        moved["repository"] = str(folder / device.repository)
    elif fault := web_fault(device.repository):
        raise ArtefactError(
            f"{path}: `repository` {shown_address(device.repository)} {fault}",
            "name the folder or the http(s) address that holds the repository's `metadata`",
        )
    return device.model_copy(update=moved)
