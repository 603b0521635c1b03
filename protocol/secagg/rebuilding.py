"""A client's seed from its holders' shares, checked against what its advert commits to. (P-6.8)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, islice

from protocol.errors import RoundError
from protocol.secagg import shamir
from protocol.secagg.agreement import Keys
from protocol.secagg.client import commitment
from protocol.secagg.messages import Advert

SUBSETS_TRIED = 2_000  # of shares, when one or two of them are wrong
RETRY = "check the clients that were lost; the model is unchanged and the next attempt starts"


@dataclass(frozen=True, kw_only=True)
class Rebuilder:
    """``reveals``: of whom -> by whom -> (kind, share). Who gave a wrong one is added to ``liars``."""

    adverts: Mapping[bytes, Advert]
    holders: Mapping[bytes, tuple[bytes, ...]]
    threshold: int
    keys: Keys
    context: bytes
    reveals: Mapping[bytes, Mapping[bytes, tuple[int, int]]]
    liars: set[bytes]

    def seed(self, client: bytes, *, alive: bool) -> int:
        """The client's self seed when it is alive, its mask seed else. Raises RoundError."""
        places = {other: place for place, other in enumerate(self.holders[client], 1)}
        shares = {
            places[holder]: value
            for holder, (_, value) in self.reveals.get(client, {}).items()
            if holder not in self.liars
        }
        if len(shares) < self.threshold:
            raise RoundError(
                f"{len(shares)} shares of a secret of {client.hex()}, needed {self.threshold}",
                RETRY,
            )
        for number, subset in enumerate(_subsets(sorted(shares), self.threshold)):
            chosen = {place: shares[place] for place in subset}
            seed = shamir.combine(chosen)
            if not self._fits(client, seed, alive=alive):
                continue
            if number:  # somebody's share was wrong: whose does not lie on the polynomial?
                self.liars.update(
                    other
                    for other, place in places.items()
                    if place in shares and shamir.combine(chosen, at=place) != shares[place]
                )
            return seed
        raise RoundError(f"the shares of a secret of {client.hex()} contradict its advert", RETRY)

    def _fits(self, client: bytes, seed: int, *, alive: bool) -> bool:
        advert = self.adverts[client]
        if alive:
            return commitment(seed, self.context, client) == advert.commitment
        return self.keys.public_of(self.keys.mask_secret(seed, self.context)) == advert.mask_key


def _subsets(places: list[int], needed: int) -> Iterator[list[int]]:
    """Subsets of ``needed`` places that leave out nobody, any one, any two: up to a bound."""
    out = chain.from_iterable(combinations(places, gone) for gone in range(3))
    for gone in islice(out, SUBSETS_TRIED):
        rest = [place for place in places if place not in gone]
        if len(rest) >= needed:
            yield rest[:needed]
