"""The gravest finding: both seeds of one client in one attempt. (P-8.16)

Whoever has the seed of its self mask and that of its mask key takes all masks off its vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from audit.collected import Fault
from audit.published import Run
from protocol.errors import FedgeError
from protocol.secagg import shamir
from protocol.secagg.agreement import Keys
from protocol.secagg.client import commitment
from protocol.secagg.contexts import attempt_context
from protocol.secagg.messages import Advert as AdvertMessage
from protocol.secagg.messages import decode_advert
from protocol.transparency.leaves import Advert, Leaf, Reveal

L = TypeVar("L", bound=Leaf)
MOST = 64  # adverts and seeds of one client and attempt that are tried on each other


def both_seeds(run: Run) -> Iterator[Fault]:
    """Clients of whom two seeds of different kinds are anywhere in the log."""
    adverts, seeds = _adverts(run), _seeds(run)
    for (client, seq), revealed in seeds.items():
        different = list(dict.fromkeys(seed for _, seed in revealed))
        if len(different) < 2:
            continue
        kinds = {
            kind
            for advert in adverts.get((client, seq), [])[:MOST]
            for seed in different[:MOST]
            for kind in _kinds(run, advert, seq, seed)
        }
        number = next((n for n, _ in reversed(revealed) if n is not None), None)
        what = f"two seeds of client {client} in attempt {seq} are in the log"
        if len(kinds) == 2:
            what = (
                f"GRAVE: both seeds of client {client} in attempt {seq}: its update can be computed"
            )
        yield Fault(round=number, what=what)


def _leaves(run: Run, kind: type[L]) -> Iterator[tuple[int | None, L]]:
    """(round, leaf) of a kind, the repeated and the misplaced too."""
    for part in run.log.all_rounds:
        for group_sum in (*part.sums, *part.unopened):
            yield from ((part.number, placed.leaf) for placed in group_sum.of(kind))
    for stray in run.log.strays:
        if isinstance(stray.leaf, kind):
            yield None, stray.leaf


def _seeds(run: Run) -> dict[tuple[str, int], list[tuple[int | None, str]]]:
    """(round, seed) by client and attempt."""
    seeds: dict[tuple[str, int], list[tuple[int | None, str]]] = {}
    for number, leaf in _leaves(run, Reveal):
        for client, seed in leaf.by_id.items():
            seeds.setdefault((client, leaf.seq), []).append((number, seed))
    return seeds


def _adverts(run: Run) -> dict[tuple[str, int], list[AdvertMessage]]:
    adverts: dict[tuple[str, int], list[AdvertMessage]] = {}
    for _, leaf in _leaves(run, Advert):
        try:
            advert = decode_advert(bytes.fromhex(leaf.advert), Keys(run.plan.secrecy.keys))
        except FedgeError:
            continue  # its own sum says so
        adverts.setdefault((advert.client.hex(), advert.seq), []).append(advert)
    return adverts


def _kinds(run: Run, advert: AdvertMessage, seq: int, seed: str) -> Iterator[str]:
    context, value = attempt_context(run.sid, seq), shamir.from_bytes(bytes.fromhex(seed))
    if value is None:
        return
    keys = Keys(run.plan.secrecy.keys)
    if commitment(value, context, advert.client) == advert.commitment:
        yield "self mask"
    if keys.public_of(keys.mask_secret(value, context)) == advert.mask_key:
        yield "mask key"
