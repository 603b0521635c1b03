"""How a process that only answers starts: with little work and little memory. Import nothing before it."""

from __future__ import annotations

import gc
import os


def start_lean() -> None:
    """Before the first import of numpy or pydantic: no threads for matrices, no plugins, no collections.

    ONNX Runtime has threads of its own; pydantic would look through every installed package for plugins;
    what start-up makes stays, so that collecting it only costs time.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.disable()


def end_start() -> None:
    """Collect again from here on; what is there now is not looked at any more."""
    gc.freeze()
    gc.enable()
