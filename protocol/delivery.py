"""What publisher and devices agree on about delivery: names, small facts, who is in a rollout. (P-9)

Authenticity and freshness are TUF's; this is what the files mean that it carries.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from protocol.documents import OddError, json_as
from protocol.encoding import digest
from protocol.errors import DeliveryError

CANARY, STABLE = "canary", "stable"
CHANNELS = (CANARY, STABLE)
# Of what a device understands; a release names the least it needs. 2: `calibration` in release.json, 3:
# `program` there, 4: `nested` there.
DEVICE_VERSION = 4
GATE = "urn:fedge:gate:1"  # predicate type of a gate's evidence
MOST_CURRENT, MOST_NOTE = 65_536, 1_048_576  # bytes of <name>.current.json and of a release.json
MOST_METADATA = {  # bytes of TUF's files, as devices take them
    "root": 65_536,
    "timestamp": 16_384,
    "snapshot": 65_536,
    "targets": 1_048_576,  # and the channels'
}
MOST_OFFERS = 16

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
FileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Time = Annotated[int, Field(ge=0, lt=253_402_300_800)]  # Unix seconds up to the year 9999
Permille = Annotated[int, Field(ge=0, le=1000)]
Text = Annotated[str, Field(max_length=300, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Channel = Literal["canary", "stable"]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Facts(_Form):
    """``custom`` of an adapter's TUF target: what a device decides on before it downloads. (P-9.4)

    ``metrics`` are thousandths, ``epsilon_milli`` a client's spent epsilon in thousandths, None without
    privacy noise: TUF's canonical JSON has no real numbers.
    """

    format: Literal[1] = 1
    plan: str
    round: Count
    seq: Count
    log_origin: str
    log_index: Count
    base: Sha256
    graph: Sha256
    device_min: Count
    epsilon_milli: Count | None
    metrics: dict[str, int]


class File(_Form):
    """A target of the channel; TUF's own digest of it has to be the same."""

    name: FileName
    sha256: Sha256
    length: Count


class Files(_Form):
    """What a release consists of."""

    adapter: File
    release: File
    passport: File

    def by_kind(self) -> dict[str, File]:
        """The same, to go through."""
        return {"adapter": self.adapter, "release": self.release, "passport": self.passport}


class Offer(_Form):
    """A release, and the share of devices that may take it."""

    seq: Count
    rollout_permille: Permille
    device_min: Count
    files: Files

    @property
    def id(self) -> str:
        """A release's identity: the SHA-256 of its release.json, which names the adapter's."""
        return self.files.release.sha256


class Withdrawn(_Form):
    """A release that no device may go on running."""

    seq: Count
    release: Sha256
    reason: Text


class Current(_Form):
    """``<channel>/<name>.current.json``: releases from the newest to the oldest on offer. (P-9.3)"""

    format: Literal[1] = 1
    name: Name
    channel: Channel
    releases: list[Offer] = Field(max_length=MOST_OFFERS)
    revoked: list[Withdrawn]

    def encode(self) -> bytes:
        """The file."""
        return encode(self)


class Held(_Form):
    """A release on a device."""

    seq: Count
    release: Sha256


class Fault(_Form):
    """A release that failed on a device, and why."""

    seq: Count
    release: Sha256
    reason: Text


class DeviceReport(_Form):
    """What a device tells its operator. Times are Unix seconds. (P-9.9)

    ``personal``: an adapter that it has trained from ``current`` answers in that one's place.
    """

    format: Literal[1] = 1
    device: Name
    name: Name
    channel: Channel
    time: Time
    understands: Count  # DEVICE_VERSION of its software
    outcome: Text
    refreshed: Time | None
    current: Held | None
    previous: Held | None
    faults: list[Fault]
    personal: bool = False

    def encode(self) -> bytes:
        """The file."""
        return encode(self)


Form = TypeVar("Form", bound=_Form)


def encode(form: BaseModel) -> bytes:
    """Sorted, indented JSON with a newline at the end."""
    return (json.dumps(form.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def decode(kind: type[Form], data: bytes, *, source: str) -> Form:
    """Read a form strictly. Raises DeliveryError `release.form`."""
    try:
        return json_as(kind, data)
    except OddError as odd:
        raise DeliveryError(
            "release.form", f"{source}: {odd}", "publish it again, or update fedge"
        ) from None


def release_name(name: str, seq: int) -> str:
    """``home-r0007``."""
    return f"{name}-r{seq:04d}"


def target_names(name: str, seq: int) -> dict[str, str]:
    """The file names of a release by what they are."""
    stem = release_name(name, seq)
    return {
        "adapter": f"{stem}.onnx_adapter",
        "release": f"{stem}.release.json",
        "passport": f"{stem}.tlog-proof",
    }


def bitmap_name(name: str, seq: int) -> str:
    """The file name of an adapter's bitmap form, which is offered where it is shorter. (P-9.10)"""
    return f"{target_names(name, seq)['adapter']}.bitmap"


def current_name(name: str) -> str:
    """The one name a device knows beforehand."""
    return f"{name}.current.json"


def in_rollout(device: str, release: str, permille: int) -> bool:
    """Whether ``device`` is in the share of ``permille`` for the release with this id. (P-9.5)

    The first four bytes of a digest over both, modulo 1000: every device has a fixed place, which differs
    from release to release, so raising the share only adds devices.
    """
    place = int(digest("rollout", f"{device}\x00{release}".encode())[:8], 16) % 1000
    return place < permille
