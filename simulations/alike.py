"""Whether runs of several seeds may stand side by side: all of the same rows, on the same base."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.errors import ArtefactError
from simulations.files import read_json
from simulations.identity import Identities
from simulations.prepare import IDENTITY, MARKER, admit
from simulations.seeds import SeedRun


def verify_alike(runs: Sequence[SeedRun]) -> None:
    """All may be run or gone on with, and those that begin now read what those before have read.

    Raises what :func:`simulations.prepare.admit` does, and ArtefactError for rows or a base that changed.
    """
    begin = [each for each in runs if _begins(each)]
    if not begin:
        return
    now = Identities().of(begin[0].experiment)
    for each in runs:
        marker = read_json(each.folder / MARKER, {})
        if marker.get(IDENTITY, now) != now:
            raise ArtefactError(
                f"{each.folder} was run on other rows, or on another base, than seed {begin[0].seed} "
                "would be: a file has changed since",
                "restore it, or run all seeds in another folder: --out",
            )


def _begins(each: SeedRun) -> bool:
    return admit(each.experiment, each.folder.resolve(), resume=each.folder.exists()) is not None
