"""Encoded rows that stay in memory between a client's rounds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from client.settings import file_key
from protocol.encoding import canonical_json
from protocol.errors import DataError

if TYPE_CHECKING:
    from client.examples import Examples
    from client.worker import Worker


class RowsCache:
    """Encoded rows of files that have not changed; those not used for longest go first.

    ``budget`` bounds the tokens kept (4 bytes each, also of other media), whatever the number of clients.
    """

    def __init__(self, budget: int = 2**24) -> None:
        self._budget = budget
        self._held: OrderedDict[tuple[object, ...], Examples] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()

    def get(self, path: Path, worker: Worker) -> Examples:
        """The rows of ``path`` for the worker's task and base. Raises DataError.

        Of threads one at a time: a tokenizer's settings are changed while it encodes.
        """
        with self._lock:
            return self._get(path, worker)

    def _get(self, path: Path, worker: Worker) -> Examples:
        from client.data import load_rows

        task = worker.plan.task
        settings = canonical_json(task.model_dump(mode="json"))
        key = (*file_key(path, DataError), settings, worker.manifest.fingerprint)
        if (found := self._held.get(key)) is not None:
            if found.is_current:
                self._held.move_to_end(key)
                return found
            self._tokens -= self._held.pop(key).held
        rows = worker.encode(load_rows(path, task))
        self._held[key] = rows
        self._tokens += rows.held
        while self._tokens > self._budget and len(self._held) > 1:
            _, gone = self._held.popitem(last=False)
            self._tokens -= gone.held
        return rows

    def __len__(self) -> int:
        return len(self._held)
