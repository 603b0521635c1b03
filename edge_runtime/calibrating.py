"""An adapter's accuracy and temperature, by the answers that devices give, on rows of who made it. (P-5.5)

Of a release these are the publisher's rows, which it measures parity on; a device fits only what it has
trained itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_runtime.adapter import read_note
from edge_runtime.base import EdgeBase
from edge_runtime.files import write_whole
from edge_runtime.runtime import EdgeRuntime
from protocol.calibration import calibrate
from protocol.peft_format import RELEASE_FILE, ReleaseNote, render_release


def calibrate_release(
    adapter: Path, base: Path, texts: Sequence[str], labels: Sequence[int]
) -> tuple[ReleaseNote, float]:
    """Write the temperature into ``release.json`` of a released adapter; the note, and its accuracy in 0..1.

    ``labels`` are the right ones of ``texts``, by their index; at least one. Call it before the release is
    logged: the log has the file's digest.
    """
    runtime = EdgeRuntime(EdgeBase.open(base, verify=False))
    return calibrate_adapter(adapter, runtime, texts, labels)


def calibrate_adapter(
    adapter: Path, runtime: EdgeRuntime, texts: Sequence[str], labels: Sequence[int]
) -> tuple[ReleaseNote, float]:
    """The same with an open base; ``adapter`` is active afterwards. Raises ArtefactError."""
    runtime.activate(adapter)
    logits, right = runtime.logits(texts), np.asarray(labels, np.int64)
    note = read_note(adapter).model_copy(update={"calibration": calibrate(logits, right)})
    write_whole(adapter / RELEASE_FILE, render_release(note))
    return note, float((logits.argmax(-1) == right).mean())
