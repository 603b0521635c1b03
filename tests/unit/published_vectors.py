"""The published test vectors, and what their tests have in common."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tests.vectors.make import FOLDER


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def fedge_hash(tag: str, message: bytes) -> str:
    return hashlib.sha256(b"fedge/" + tag.encode() + b"/v1\x00" + message).hexdigest()
