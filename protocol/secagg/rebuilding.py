"""A client's seed from its holders' shares, checked against what its advert commits to. (P-6.8)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice

from protocol.errors import RoundError
from protocol.secagg import shamir
from protocol.secagg.agreement import Keys
from protocol.secagg.client import commitment
from protocol.secagg.messages import Advert
from protocol.secagg.wrong_shares import wrong_places

SUBSETS_TRIED = 4_096  # more than leave out one or two of 128 holders' (P-6.3)
RETRY = "check the clients that were lost; the model is unchanged and the next attempt starts"


@dataclass(frozen=True, kw_only=True)
class Rebuilder:
    """``reveals``: of whom -> by whom -> share. Who gave a wrong one is added to ``liars``."""

    adverts: Mapping[bytes, Advert]
    holders: Mapping[bytes, tuple[bytes, ...]]
    threshold: int
    keys: Keys
    context: bytes
    reveals: Mapping[bytes, Mapping[bytes, int]]
    liars: set[bytes]

    def seed(self, client: bytes, *, alive: bool) -> int:
        """The client's self seed when it is alive, its mask seed else. Raises RoundError."""
        reveals = self.reveals[client]
        holders = [(place, one) for place, one in enumerate(self.holders[client], 1)]
        # Those that are named come last: not left out, for an owner may have had honest ones named.
        holders.sort(key=lambda each: each[1] in self.liars)
        shares = {place: reveals[one] for place, one in holders if one in reveals}
        if len(shares) < self.threshold:
            raise RoundError(
                f"{len(shares)} shares of a secret of {client.hex()}, needed {self.threshold}",
                RETRY,
            )
        for number, subset in enumerate(_subsets(shares, self.threshold)):
            chosen = {place: shares[place] for place in subset}
            seed = shamir.combine(chosen)
            if not self._fits(client, seed, alive=alive):
                continue
            if number:  # somebody's share was wrong
                self._blame(shares, chosen, self.holders[client])
            return seed
        raise RoundError(f"the shares of a secret of {client.hex()} contradict its advert", RETRY)

    def _blame(
        self, shares: Mapping[int, int], chosen: Mapping[int, int], holders: Sequence[bytes]
    ) -> None:
        """Whose share is off the polynomial through those ``chosen``.

        Nobody, where as few others can have made it so: they lay another polynomial with this secret through
        their shares and ``threshold - 2`` honest ones.
        """
        off = [
            place for place, share in shares.items() if shamir.combine(chosen, at=place) != share
        ]
        if 2 * len(off) <= len(shares) - self.threshold + 1:
            self.liars.update(holders[place - 1] for place in off)

    def _fits(self, client: bytes, seed: int, *, alive: bool) -> bool:
        advert = self.adverts[client]
        if alive:
            return commitment(seed, self.context, client) == advert.commitment
        return self.keys.public_of(self.keys.mask_secret(seed, self.context)) == advert.mask_key


def _subsets(shares: Mapping[int, int], needed: int) -> Iterator[list[int]]:
    """Subsets of ``needed`` places: the first, those that agree, and the first without any one or two."""
    places = list(shares)
    yield places[:needed]
    # With few to spare nothing but the advert tells which are right.
    pairs = (combinations(places[: needed + gone], gone) for gone in (1, 2))
    wrong = wrong_places(shares, needed) or ()
    for out in chain([wrong], islice(chain.from_iterable(pairs), SUBSETS_TRIED)):
        rest = [place for place in places if place not in out]
        if len(rest) >= needed:
            yield rest[:needed]
