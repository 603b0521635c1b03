"""Files of a run folder: each is written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from protocol.errors import ArtefactError
from storage.whole import write_whole

SUMMARY = "summary.json"  # of a run that is through
SEEDS = "seeds.json"  # the summary over several seeds


def write_text(path: Path, text: str) -> None:
    """:func:`storage.whole.write_whole` in UTF-8."""
    write_whole(path, text.encode())


def path_text(path: Path) -> str:
    """A path for a file that is UTF-8: of a name that is none, what cannot be said is a question mark."""
    return os.fsencode(path).decode("utf-8", "replace")


def write_json(path: Path, value: object) -> None:
    """Indented JSON with a newline at the end. Not-finite numbers are a fault of the caller."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """The document, or ``default`` when there is no file. Raises ArtefactError for damage."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError):
        raise ArtefactError(
            f"{path} is damaged", "restore it, or start the run again in another folder"
        ) from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
