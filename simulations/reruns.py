"""``reruns.json``: which clients were run again in which round, because what ran them was lost."""

from __future__ import annotations

import threading
from pathlib import Path

from simulations.files import read_json, write_json
from simulations.progress import Progress

RERUNS = "reruns.json"


class Reruns:
    """Those of a run folder: by round, clients with causes. Of threads one writes at a time."""

    def __init__(self, out: Path, progress: Progress) -> None:
        self._path, self._progress, self._lock = out / RERUNS, progress, threading.Lock()

    def note(self, number: int, client: str, cause: str) -> None:
        """One more, of round ``number``; it is said, too."""
        with self._lock:
            noted = load_reruns(self._path.parent)
            noted.setdefault(str(number), []).append({"client": client, "cause": cause})
            write_json(self._path, noted)
            self._progress.warn(f"round {number}: {client} is run again ({cause})")


def load_reruns(out: Path) -> dict[str, list[dict[str, str]]]:
    """What was noted; nothing where no cluster lost anything. Raises ArtefactError for a damaged file."""
    noted: dict[str, list[dict[str, str]]] = read_json(out / RERUNS, {})
    return noted
