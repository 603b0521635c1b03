"""Which sites run twice: a folder that was copied has the keys, and the name, of the first.

Every start of a site's supervisor has a number of its own, the *instance*, that its requests carry. A site
that is started again goes from one instance to the next and never back: an instance that is heard after
another one runs beside it. The first keeps its place, the other is refused, and no other site is harmed.
"""

from __future__ import annotations

from dataclasses import dataclass

FORGET_S = 60.0  # an instance that is silent for so long has ended


@dataclass
class _Site:
    first: bytes
    heard: float  # the first one, last
    other: bytes = b""  # heard since the first was
    refused: float | None = None  # the other one, last


class Doubles:
    """By node key; only of keys that are enrolled, so that strangers fill nothing."""

    def __init__(self) -> None:
        self._sites: dict[bytes, _Site] = {}

    def admits(self, key: bytes, instance: bytes, now: float) -> bool:
        """Whether this request of a site may pass; ``now``, in seconds, never goes back.

        Without an instance it may.
        """
        if not instance:
            return True
        site = self._sites.get(key)
        if site is None or (site.first != instance and now - site.heard > FORGET_S):
            self._sites[key] = _Site(first=instance, heard=now)
            return True
        if site.refused is not None and now - site.refused > FORGET_S:
            site.other, site.refused = b"", None
        if site.first == instance:
            site.heard = now
            if site.other and site.refused is None:  # heard again: both run
                site.refused = now
            return True
        if site.refused is not None:
            site.refused = now
            return False
        site.other = instance
        return True

    def keys(self, now: float) -> list[bytes]:
        """Of the sites that run twice at this moment."""
        return [
            key
            for key, site in self._sites.items()
            if site.refused is not None
            and now - site.refused <= FORGET_S
            and now - site.heard <= FORGET_S
        ]
