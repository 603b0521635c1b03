"""The roster: names with their Ed25519 public keys, as a JSON document. (P-6.12)"""

from __future__ import annotations

import json

from protocol.documents import parse_json
from protocol.errors import PlanError
from protocol.secagg.primitives import client_id

REMEDY = 'write {"clients": {"name": "64 hex digits of the public key", …}}'


def parse_roster(text: str, *, source: str) -> dict[str, bytes]:
    """Public keys (32 bytes) by name. Raises PlanError for anything else than a roster."""
    try:
        document = parse_json(text)
        clients = document["clients"]
        if set(document) != {"clients"} or not isinstance(clients, dict) or not clients:
            raise ValueError
        roster = {str(name): bytes.fromhex(key) for name, key in clients.items()}
    except (ValueError, TypeError, KeyError):
        raise PlanError(f"{source}: not a roster", REMEDY) from None
    for name, key in roster.items():
        if not name.isprintable() or not 1 <= len(name) <= 200:
            # Its identity joins names and keys with control characters. (P-6.12)
            raise PlanError(f"{source}: {name[:80]!a} is no name of a client", REMEDY)
        if len(key) != 32:
            raise PlanError(f"{source}: the key of {name!r} has {len(key)} bytes", REMEDY)
    if len({client_id(key) for key in roster.values()}) != len(roster):
        raise PlanError(f"{source}: two clients have one key", "give each its own identity")
    return roster


def render_roster(roster: dict[str, bytes]) -> str:
    """The document's text, by name."""
    clients = {name: key.hex() for name, key in sorted(roster.items())}
    return json.dumps({"clients": clients}, indent=1) + "\n"
