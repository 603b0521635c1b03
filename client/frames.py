"""Messages between a site's ClientApp processes and its trainer, over a Unix socket.

A frame is ``MAGIC`` (8 bytes, the version in it), the header's length (u32), the body's (u64), both
little-endian, a header in JSON and a body of little-endian float32. Lengths are bounded before
anything is read, headers have no unknown keys, and nothing is unpickled.

The trainer greets with :class:`State`. A :class:`Train` request (body: the adapter) is answered with
:class:`State` every few seconds while it is being worked on, then :class:`Trained` (body: the update) or
:class:`Refused`. :class:`Stop` is answered with :class:`State`.
"""

from __future__ import annotations

import socket
import struct
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from protocol import errors
from protocol.documents import OddError, json_as
from protocol.errors import ArtefactError, DataError, FedgeError
from protocol.layout import Vector

MAGIC = b"fedgeT1\x00"
PREFIX = struct.Struct("<8sIQ")
MAX_HEADER, MAX_BODY = 2**16, 2**30  # bytes
LONGEST_LINE = 2000  # characters of a refusal's text
PIECE = 2**20  # bytes read at a time: a length that is claimed only takes no memory
Count = Annotated[int, Field(ge=0)]


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Train(_Header):
    """Train as ``instruction`` (its fields) says; paths are absolute."""

    kind: Literal["train"] = "train"
    client: str
    plan: str
    base: str
    data: str
    programs: str = ""  # empty: this user's own cache
    threads: Count
    instruction: dict[str, bool | int | str]


class Stop(_Header):
    """End when the running request, which is refused, has been answered."""

    kind: Literal["stop"] = "stop"


class State(_Header):
    """Who serves: process, the code it runs, requests answered, whether it is at work."""

    kind: Literal["state"] = "state"
    pid: Count
    code: str
    served: Count
    busy: bool


class Trained(_Header):
    """A contribution; the body is its update."""

    kind: Literal["trained"] = "trained"
    weight: Count
    metrics: dict[str, float]


class Refused(_Header):
    """An error of :mod:`protocol.errors` by its name, to be raised on the other side."""

    kind: Literal["refused"] = "refused"
    error: Literal[
        "PlanError", "DataError", "ArtefactError", "UpdateError", "RoundError", "MachineError"
    ]
    cause: str
    remedy: str
    public: str | None = None

    @classmethod
    def of(cls, error: FedgeError) -> Refused:
        """What says the same as ``error``."""
        public = error.public if isinstance(error, DataError) else None
        return cls(
            error=type(error).__name__,  # type: ignore[arg-type]
            cause=error.cause[:LONGEST_LINE],
            remedy=error.remedy[:LONGEST_LINE],
            public=public,
        )

    def raised(self) -> FedgeError:
        """The error."""
        if self.error == "DataError" and self.public is not None:
            return DataError(self.cause, self.remedy, public=self.public)
        kind: type[FedgeError] = getattr(errors, self.error)
        return kind(self.cause, self.remedy)


Header = Train | Stop | State | Trained | Refused
_HEADERS: TypeAdapter[Header] = TypeAdapter(Annotated[Header, Field(discriminator="kind")])


def send(connection: socket.socket, header: Header, body: Vector | None = None) -> None:
    """Write one frame. Raises OSError when the other side has gone, ArtefactError when too long."""
    text = header.model_dump_json().encode()
    data = b"" if body is None else np.ascontiguousarray(body, "<f4").tobytes()
    if len(text) > MAX_HEADER or len(data) > MAX_BODY:
        raise _malformed(f"{len(text)} and {len(data)} bytes are more than a frame holds")
    connection.sendall(PREFIX.pack(MAGIC, len(text), len(data)) + text)
    if data:  # after an empty one the other side may have closed already
        connection.sendall(data)


def receive(connection: socket.socket) -> tuple[Header, Vector] | None:
    """Read one frame; None when the other side has closed between frames.

    Raises ArtefactError for anything that is not a frame, OSError for a broken connection, EOFError
    for one that ends within a frame.
    """
    prefix = _exactly(connection, PREFIX.size, between=True)
    if not prefix:
        return None
    magic, header_length, body_length = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise _malformed("not a frame of version 1")
    if header_length > MAX_HEADER or body_length > MAX_BODY or body_length % 4:
        raise _malformed(f"lengths {header_length} and {body_length}")
    text = _exactly(connection, header_length)
    try:
        header = json_as(_HEADERS, bytes(text), most=MAX_HEADER)
    except OddError as odd:
        raise _malformed(f"its header is wrong: {odd}") from None
    body = np.frombuffer(_exactly(connection, body_length), "<f4").astype(np.float32, copy=False)
    return header, body


def _exactly(connection: socket.socket, length: int, *, between: bool = False) -> bytearray:
    data = bytearray()
    while len(data) < length:
        piece = connection.recv(min(PIECE, length - len(data)))
        if not piece:
            if between and not data:
                return data
            raise EOFError("the connection ended within a frame")
        data += piece
    return data


def _malformed(fault: str) -> ArtefactError:
    return ArtefactError(
        f"a message between client and trainer: {fault}", "run one version of fedge at this site"
    )
