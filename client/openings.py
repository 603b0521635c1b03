"""Which sums this client has helped to open, in a file: whatever restarts, or is started anew. (P-6.10)

Flower's node state ends with a Flower run, and a coordinator starts as many of those as it likes; this
memory is the site's own. A line is on disk before the shares of its sum leave.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from client.journal import Journal, Mark
from protocol.documents import OddError, json_as
from protocol.secagg.openings import Opening

MOST_INDICES = 4096  # files that a process keeps in mind: simulated clients


class Openings(Protocol):
    """The sums opened, by plan."""

    def last(self, plan: str) -> list[Opening]:
        """Those of the last round under the plan with this digest: no earlier one is opened again."""
        ...

    def of_adapter(self, adapter: str) -> list[Line]:
        """Of the incoming adapter with this digest, under any plan."""
        ...

    def of_sums(self, plan: str, rids: Collection[str]) -> list[Opening]:
        """Of these sums (in hex) of the plan."""
        ...

    def rounds_within(self, plan: str, sums: Mapping[str, int]) -> set[int]:
        """Rounds of the plan whose sums are all among ``sums``: rids in hex, with their rounds."""
        ...

    def note(self, line: Line, allowed: Callable[[], None]) -> None:
        """Keep ``line`` unless ``allowed`` raises; it is safe when this returns."""
        ...


class Line(BaseModel):
    """A sum and the plan of its run; a line that does not say whether that has a start counts as yes."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="hex", val_json_bytes="hex"
    )

    plan: str
    start: bool = True
    opening: Opening


class _OfPlan:
    """Rounds and sums of the lines of a plan, 16 bytes a line, and the openings of its last round."""

    def __init__(self) -> None:
        self.rounds, self.rids = array("Q"), array("Q")
        self.last: list[Opening] = []

    def add(self, opening: Opening) -> None:
        self.rounds.append(opening.round)
        self.rids.append(_short(opening.rid.hex()))
        most = max((each.round for each in self.last), default=0)
        if opening.round >= most:
            self.last = [opening] if opening.round > most else [*self.last, opening]

    def of_round(self, number: int) -> set[int]:
        places = zip(self.rounds, self.rids, strict=True) if number in self.rounds else ()
        return {rid for each, rid in places if each == number}


class _Index:
    """What a process knows of a file that it has read up to ``mark``.

    A sum or adapter is known by the beginning of its digest: what it may be about is looked up in the file.
    """

    def __init__(self) -> None:
        self.mark = Mark()
        self.adapters = array("Q")
        self.plans: dict[str, _OfPlan] = {}

    def add(self, line: Line) -> None:
        self.adapters.append(_short(line.opening.adapter))
        self.plans.setdefault(line.plan, _OfPlan()).add(line.opening)


_indices: dict[Path, _Index] = {}
_turn = Lock()  # clients of a simulation may be side by side; a file is one client's


class FileOpenings:
    """One JSON line per opened sum, only ever appended to, readable by its owner alone.

    A process reads and checks every line once, and then the new ones.
    """

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path, "the memory of opened sums")

    def last(self, plan: str) -> list[Opening]:
        """The plan's last. Raises MachineError for a damaged file."""
        return list(self._of(plan).last)

    def of_adapter(self, adapter: str) -> list[Line]:
        """All of its lines. Raises MachineError for a damaged file."""
        if _short(adapter) not in self._index().adapters:
            return []
        return [line for line in self._lines() if line.opening.adapter == adapter]

    def of_sums(self, plan: str, rids: Collection[str]) -> list[Opening]:
        """The plan's. Raises MachineError for a damaged file."""
        of_plan = self._of(plan)
        known = {each.rid.hex(): each for each in of_plan.last}
        missing = [rid for rid in rids if rid not in known and _short(rid) in of_plan.rids]
        if missing:
            known = {
                line.opening.rid.hex(): line.opening for line in self._lines() if line.plan == plan
            }
        return [known[rid] for rid in rids if rid in known]

    def rounds_within(self, plan: str, sums: Mapping[str, int]) -> set[int]:
        """The plan's. Raises MachineError for a damaged file."""
        of_plan, among = self._of(plan), set(map(_short, sums))
        opened = {number: of_plan.of_round(number) for number in set(sums.values())}
        return {number for number, rids in opened.items() if rids and rids <= among}

    def note(self, line: Line, allowed: Callable[[], None]) -> None:
        """Check and append as one. Raises what ``allowed`` raises, or MachineError."""
        self._journal.append(line.model_dump_json(), allowed)

    def _of(self, plan: str) -> _OfPlan:
        return self._index().plans.get(plan, _OfPlan())

    def _index(self) -> _Index:
        path = self._journal.path.absolute()
        index = _indices.get(path, _Index())
        same, new, mark = self._journal.since(index.mark)
        if not same:
            index = _Index()
        for line in list(self._parsed(new)):  # all of them, or none
            index.add(line)
        index.mark = mark
        with _turn:
            _indices.pop(path, None)
            _indices[path] = index
            if len(_indices) > MOST_INDICES:
                del _indices[next(iter(_indices))]
        return index

    def _lines(self) -> Iterator[Line]:
        return self._parsed(self._journal.text().splitlines())

    def _parsed(self, lines: list[str]) -> Iterator[Line]:
        try:
            for line in lines:
                yield json_as(Line, line)
        except OddError as error:
            # Fail closed. A last line that a power cut tore was never followed by a share.
            raise self._journal.unusable("read", error) from None


def _short(digest: str) -> int:
    """The first 8 bytes of a digest in hex; of something else, which no digest equals, 0."""
    try:
        return int.from_bytes(bytes.fromhex(digest[:16]), "big")
    except ValueError:
        return 0
