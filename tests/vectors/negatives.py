"""Messages that must be refused, each with the code of its error, at one honest client of the attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import SecrecyError
from protocol.secagg import client
from protocol.secagg.messages import Cohort, decode_cohort
from protocol.secagg.primitives import sign


def refusals(
    *,
    key: Ed25519PrivateKey,
    other_key: Ed25519PrivateKey,
    policy: client.Policy,
    random: Callable[[int], bytes],
    terms: dict[str, Any],
    advertised: client.Advertised,
    cohort: bytes,
    shared: client.Shared,
    box: bytes,
    masked: client.Masked,
    alive: bytes,
    agreed: client.Agreed,
    signatures: bytes,
) -> list[dict[str, str]]:
    """(phase, what is wrong, message, code) of everything a lying coordinator might send it."""

    def code(what: str, work: Callable[[], Any]) -> str:
        try:
            work()
        except SecrecyError as error:
            return error.code
        raise AssertionError(f"{what}: not refused")

    found: list[dict[str, str]] = []

    def note(phase: str, what: str, message: bytes, work: Callable[[], Any]) -> None:
        found.append(
            {"phase": phase, "what": what, "message": message.hex(), "code": code(what, work)}
        )

    for what, message in _cohorts(decode_cohort(cohort), advertised.client, other_key).items():
        note(
            "share",
            what,
            message,
            lambda message=message: client.share(
                advertised, message, key=key, policy=policy, random=random
            ),
        )
    for what, message in _rounds(box, shared).items():
        note(
            "mask",
            what,
            message,
            lambda m=message: client.open_shares(shared, m, terms, policy=policy),
        )
    for what, message in _alive(alive, masked).items():
        note(
            "alive",
            what,
            message,
            lambda m=message: client.agree_on_alive(masked, m, key=key, policy=policy),
        )
    for what, message in _signatures(signatures).items():
        note(
            "unmask",
            what,
            message,
            lambda m=message: client.unmask(agreed, m, policy=policy),
        )
    return found


def _cohorts(cohort: Cohort, own: bytes, stranger: Ed25519PrivateKey) -> dict[str, bytes]:
    adverts = list(cohort.adverts)
    mine = next(at for at, advert in enumerate(adverts) if advert.client == own)
    victim = (mine + 2) % len(adverts)

    def altered(at: int, **changes: Any) -> bytes:
        changed = replace(adverts[at], **changes)
        return replace(cohort, adverts=(*adverts[:at], changed, *adverts[at + 1 :])).encode()

    swapped = replace(adverts[victim], mask_key=adverts[mine].mask_key)
    forged = swapped.body
    return {
        "a client twice": replace(
            cohort, adverts=tuple(sorted([*adverts, adverts[victim]], key=lambda a: a.client))
        ).encode(),
        "two clients only": replace(cohort, adverts=tuple(adverts[:2])).encode(),
        "own advert altered": altered(mine, mask_key=adverts[victim].mask_key),
        "a key swapped": altered(victim, mask_key=adverts[mine].mask_key),
        "a key swapped and signed by a stranger": altered(
            victim, mask_key=adverts[mine].mask_key, signature=sign(stranger, "advert", forged)
        ),
        "an advert of another attempt": altered(victim, seq=adverts[victim].seq + 1),
        "an unknown client": altered(len(adverts) - 1, client=b"\xff" * 16)
        if victim != len(adverts) - 1
        else altered(0, client=bytes(16)),
        "threshold 1": replace(cohort, threshold=1).encode(),
        "a smaller graph": replace(cohort, degree=2).encode(),
        "a chosen graph": replace(cohort, graph_seed=b"\x01" * 32).encode(),
        "an alive set from a log": replace(cohort, alive_index=0).encode(),
        "a byte short": cohort.encode()[:-1],
    }


def _rounds(box: bytes, shared: client.Shared) -> dict[str, bytes]:
    count = int.from_bytes(box[:2], "big")
    ids = [box[2 + 16 * at : 18 + 16 * at] for at in range(count)]
    sealed, own = box[2 + 16 * count :], shared.before.client
    size = len(sealed) // (count - 1)

    def made(members: list[bytes], boxes: bytes) -> bytes:
        return len(members).to_bytes(2, "big") + b"".join(members) + boxes

    return {
        "itself not a member": made([one for one in ids if one != own], sealed),
        "a stranger among the members": made([*ids[:-1], b"\xff" * 16], sealed),
        "too few neighbours": made(sorted([own, *[i for i in ids if i != own][:1]]), sealed[:size]),
        "boxes exchanged": made(ids, sealed[size : 2 * size] + sealed[:size] + sealed[2 * size :]),
        "a box missing": made(ids, sealed[:-size]),
        "members out of order": made(ids[::-1], sealed),
    }


def _alive(alive: bytes, masked: client.Masked) -> dict[str, bytes]:
    ids = [alive[at : at + 16] for at in range(0, len(alive), 16)]
    return {
        "itself not alive": b"".join(one for one in ids if one != masked.client),
        "a stranger alive": b"".join([*ids[:-1], b"\xff" * 16]),
        "two alive": b"".join(sorted([masked.client, *[i for i in ids if i != masked.client][:1]])),
        "one alive twice": b"".join([ids[0], *ids]),
    }


def _signatures(signatures: bytes) -> dict[str, bytes]:
    size = 16 + 64
    entries = [signatures[at : at + size] for at in range(0, len(signatures), size)]
    return {
        "a signature moved to another": b"".join(
            [entries[0], entries[1][:16] + entries[0][16:], *entries[2:]]
        ),
        "too few signatures": b"".join(entries[:2]),
        "a byte short": signatures[:-1],
        "a stranger's signature": b"".join([*entries[:-1], b"\xff" * 16 + entries[-1][16:]]),
    }
