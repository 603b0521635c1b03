"""At the publisher: a released adapter's accuracy and temperature, by the answers that devices will give.

The rows are the publisher's own, which it measures parity on; a device never fits anything. (P-5.5)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_runtime.adapter import read_note
from edge_runtime.base import EdgeBase
from edge_runtime.runtime import EdgeRuntime
from protocol.calibration import calibrate
from protocol.peft_format import RELEASE_FILE, ReleaseNote, render_release
from storage.whole import write_whole


def calibrate_release(
    adapter: Path, base: Path, texts: Sequence[str], labels: Sequence[int]
) -> tuple[ReleaseNote, float]:
    """Write the temperature into ``release.json`` of a released adapter; the note, and its accuracy in 0..1.

    ``labels`` are the right ones of ``texts``, by their index; at least one. Call it before the release is
    logged: the log has the file's digest.
    """
    runtime = EdgeRuntime(EdgeBase.open(base, verify=False))
    runtime.activate(adapter)
    logits, right = runtime.logits(texts), np.asarray(labels, np.int64)
    note = read_note(adapter).model_copy(update={"calibration": calibrate(logits, right)})
    write_whole(adapter / RELEASE_FILE, render_release(note))
    return note, float((logits.argmax(-1) == right).mean())
