"""A row of a decoders' table, and how what a decoder takes becomes bytes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.documents import OddError
from protocol.encoding import canonical_json
from protocol.errors import ArtefactError
from protocol.transparency.dsse import (
    PAYLOAD_TYPE,
    key_id,
    pae,
)

Read = Callable[[bytes], object]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """``read`` takes a whole document; ``seeds`` are some that it accepts.

    "…, signed" in a name: a seed is what its signer would write, and ``read`` signs it.
    """

    read: Read
    seeds: tuple[bytes, ...]

    @property
    def opens(self) -> tuple[Path, Callable[[Path], object]] | None:
        """The path that it reads, and how, where it opens one."""
        return getattr(self.read, "opens", None)


def of_text(read: Callable[[str], object]) -> Read:
    """Of a file's text; what is no UTF-8 stands as it would in text from elsewhere."""
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def of_file(path: Path, read: Callable[[Path], object]) -> Read:
    def reading(data: bytes) -> object:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return read(path)

    reading.opens = (path, read)  # type: ignore[attr-defined]
    return reading


def json_line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def signed_by(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    signature = key.sign(pae(PAYLOAD_TYPE, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [
                {
                    "keyid": key_id(key.public_key().public_bytes_raw()),
                    "sig": base64.b64encode(signature).decode(),
                }
            ],
        }
    )


def payload_of(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])


def json_value(data: bytes) -> Any:
    """As whoever calls a decoder of parsed values: an error of JSON's own is theirs."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ArtefactError("no JSON", "") from None


def refusing(read: Read, kind: type[ValueError] = OddError) -> Read:
    """Of a decoder whose callers turn ``kind`` into their own error, and nothing else."""

    def reading(data: bytes) -> object:
        try:
            return read(data)
        except kind as error:
            raise ArtefactError(str(error), "") from None

    return reading
