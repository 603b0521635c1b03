"""The engine that every client has: programs of the base, run by ONNX Runtime on the CPU.

A session belongs to a graph, not to a client: whoever trains the same program in this process, on whatever
thread, shares it, and a client costs its vectors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from base_model.programs.build import GRADIENT, LOSS
from base_model.programs.document import graph_name
from base_model.programs.expanded import expanded
from base_model.programs.folder import Program
from base_model.programs.footprint import Keep, Way
from base_model.programs.recompute import recomputing
from base_model.programs.session import open_session
from base_model.tasks import TASKS
from client.engine.interface import Values
from client.engine.threads import threads_of_openmp
from client.examples import RowBatch
from protocol.layout import Layout, Tensors
from protocol.rules import Parts

SESSIONS = 6  # kept open; the one not used for longest is let go


class OnnxEngine:
    """A program on a base's folder, for adapters of ``layout``."""

    def __init__(
        self,
        program: Program,
        base: Path,
        layout: Layout,
        *,
        threads: int,
        way: Way | None = None,
        expand: int = 0,
    ) -> None:
        """``threads`` 0: as many as OMP_NUM_THREADS says, or as ONNX Runtime finds cores.

        ``way``: what a step keeps and how many tokens it takes at a time; without it nothing is bounded here.
        ``expand``: bytes that frozen weights as floats may take, where a step keeps everything.
        """
        self.layout, self.most = layout, None if way is None else way.tokens
        self._keep = Keep.ALL if way is None else way.keep
        self._program, self._base, self._digest = program, base, program.document.digest
        self._task = TASKS[program.document.task]
        self._threads = threads or threads_of_openmp()
        self._expand = expand if self._keep is Keep.ALL else 0

    def gradients(self, tensors: Values, batch: RowBatch, parts: Parts) -> tuple[float, Tensors]:
        """See :class:`client.engine.interface.Engine`."""
        session = self._session(parts)
        wanted = [f"{GRADIENT}{spec.name}" for spec in self.layout.specs if spec.part in parts]
        feeds = {**batch.inputs, self._task.TARGET: batch.targets, **tensors}
        loss, *gradients = session.run([LOSS, *wanted], feeds)
        names = (name.removeprefix(GRADIENT) for name in wanted)
        return float(loss), dict(zip(names, gradients, strict=True))

    def outputs(self, tensors: Values, batch: RowBatch) -> npt.NDArray[np.float32]:
        """See :class:`client.engine.interface.Engine`."""
        judged = {self._task.TARGET: batch.targets} if self._task.JUDGES else {}
        feeds = {**batch.inputs, **judged, **tensors}
        (outputs,) = self._session(frozenset()).run(None, feeds)
        return np.asarray(outputs, np.float32)

    def _session(self, parts: Parts) -> Any:
        keep = self._keep if parts else Keep.ALL
        expand = self._expand if parts else 0
        key = (self._digest, graph_name(parts), str(self._base), self._threads, keep, expand)
        with _lock:
            if key not in _sessions:
                while len(_sessions) >= SESSIONS:
                    _sessions.popitem(last=False)
                _sessions[key] = self._opened(parts, keep, expand)
            _sessions.move_to_end(key)
            return _sessions[key][0]

    def _opened(self, parts: Parts, keep: Keep, expand: int) -> tuple[Any, Tensors]:
        """A session, and what lives as long as it does."""
        graph = self._program.graph(parts)
        values: Tensors = {}
        if keep is not Keep.ALL:
            graph = recomputing(graph, keep, adapter=[s.name for s in self.layout.specs])
        if expand:
            graph, values = expanded(graph, self._base, most=expand)
        as_written = keep is not Keep.ALL
        session = open_session(
            graph, self._base, threads=self._threads, as_written=as_written, values=values
        )
        return session, values


_sessions: OrderedDict[tuple[str, str, str, int, Keep, int], tuple[Any, Tensors]] = OrderedDict()
_lock = threading.Lock()
