"""Every tile in a folder, to its last byte: also the partial ones of earlier checkpoints. (P-8.4)"""

from __future__ import annotations

import re

from audit.log_copy import LOG
from audit.published import REMEDY, Run
from protocol.errors import ProofError
from protocol.transparency.tiles import (
    HEIGHT,
    WIDTH,
    entries_path,
    pack_entries,
    tile_path,
)

TILE = re.compile(
    r"log/tile/(?P<level>[0-9]{1,2}|entries)/(?P<index>(x[0-9]{3}/){0,6}[0-9]{3})(\.p/(?P<width>[0-9]{1,3}))?"
)


def check_tiles(run: Run) -> None:
    """Those of this checkpoint were compared already. Raises ProofError for any other bytes."""
    names = run.source.names()
    if names is None:
        return
    for name in sorted(each for each in names if each.startswith(f"{LOG}tile/")):
        if (ours := _tile(run, name)) is None:
            continue  # of no leaf that is in this log: it is listed as not covered
        if run.source.read(name) != ours:
            raise ProofError(f"{name} is not of the tree of the entries", REMEDY)
        run.coverage.tiles.add(name)


def _tile(run: Run, name: str) -> bytes | None:
    """The bytes of a tile of this log, None when the log has none of that name."""
    found = TILE.fullmatch(name)
    if found is None:
        return None
    index = int(found["index"].replace("x", "").replace("/", ""))
    width = int(found["width"] or WIDTH)
    first = index * WIDTH
    if not 0 < width <= WIDTH:
        return None
    if found["level"] == "entries":
        if LOG + entries_path(index, width) != name or first + width > run.copy.checkpoint.size:
            return None
        return pack_entries(run.copy.entries[first : first + width])
    level = int(found["level"])
    if LOG + tile_path(level, index, width) != name:
        return None
    if first + width > run.copy.checkpoint.size >> HEIGHT * level:
        return None
    return b"".join(run.copy.tree.complete(HEIGHT * level, first, first + width))
