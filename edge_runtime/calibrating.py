"""An adapter's quality and temperature, by the answers that devices give, on rows of who made it. (P-5.5)

Of a release these are the publisher's rows, which it measures parity on; a device fits only what it has
trained itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.adapter import read_note
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.tasks import task_named
from protocol.peft_format import RELEASE_FILE, ReleaseNote, render_release
from protocol.rows.read import Text
from storage.whole import write_whole


def calibrate_release(
    adapter: Path, base: Path, texts: Sequence[Text], targets: Sequence[Any]
) -> tuple[ReleaseNote, float]:
    """Write the temperature into ``release.json`` of a released adapter; the note, and its quality in 0..1.

    ``targets`` are the right ones of ``texts``, as the client reads them; at least one. Call it before the
    release is logged: the log has the file's digest.
    """
    runtime = EdgeRuntime(EdgeBase.open(base, verify=False))
    return calibrate_adapter(adapter, runtime, texts, targets)


def calibrate_adapter(
    adapter: Path, runtime: EdgeRuntime, texts: Sequence[Text], targets: Sequence[Any]
) -> tuple[ReleaseNote, float]:
    """The same with an open base; ``adapter`` is active afterwards. Raises ArtefactError."""
    runtime.activate(adapter)
    note = read_note(adapter)
    quality, fit = task_named(note.task).measured(runtime.logits(texts), np.asarray(targets))
    note = note.model_copy(update={"calibration": fit})
    write_whole(adapter / RELEASE_FILE, render_release(note))
    return note, quality
