"""What supervised processes say, as JSON lines without data or secrets.

A line has ``time`` (UTC), ``component``, ``level`` and ``message``. Messages of exceptions, quoted
text and long hexadecimal or base64 strings are left out: a value of somebody's data, a token or a key
may stand there. Where a failure was (file, line, type) is kept.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
LEVEL = re.compile(rf"(?:[\d:, -]+)?\s*({'|'.join(LEVELS)})(?:\s*:\s*|\s)(.*)")
QUOTED = re.compile(r"(['\"`]).*\1")
LONG = re.compile(r"\b(?:[0-9a-fA-F]{24,}|(?=[A-Za-z+_=-]*\d)[A-Za-z0-9+_=-]{24,})")
EXCEPTION = re.compile(r"\s*([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Warning))\b")
TRACEBACK = (
    "Traceback (most recent call last)",
    "Exception Group Traceback (most recent call last)",
)
GROUP = " |+-"  # what the lines of an exception group begin with
REFUSED = "refused: "  # how client.app begins what it answers with a refusal
ZEROS = "contributed zeros: "  # and client.failures what nobody but the owner is told
ROTATE_BYTES, KEEP, LINE = 8 << 20, 3, 600
TAIL = 1 << 18


class Redactor:
    """Of one stream: a line in, level and message out, or nothing where the line is left out."""

    def __init__(self) -> None:
        self._failing = False  # from a traceback on until a line with a level
        self._named = False

    def line(self, raw: str) -> tuple[str, str] | None:
        """One line of a process's output."""
        text = COLOURS.sub("", raw).rstrip()
        if not text:
            return None
        levelled = LEVEL.match(text)
        bare = text.lstrip(GROUP)
        traced = levelled and levelled[2].lstrip(GROUP).startswith(TRACEBACK)
        if bare.startswith(TRACEBACK) or traced:
            self._failing, self._named = True, False
            return "ERROR", "Traceback"
        if self._failing:
            if levelled is None or text.startswith(" "):
                return self._failure(text, bare)
            self._failing = False
        plain = "WARNING" if text.startswith((REFUSED, ZEROS)) else "INFO"
        level, message = (levelled[1], levelled[2]) if levelled else (plain, text)
        message = _clean(message)
        return (level, message) if message else None

    def _failure(self, text: str, bare: str) -> tuple[str, str] | None:
        """Places and types; lines of source and of messages, which may quote anything, are left out."""
        if bare.startswith('File "') and text.startswith(" "):
            return "ERROR", bare.replace('"', "")[:LINE]
        if text.startswith(" ") and not text.lstrip().startswith("|"):
            return None
        if self._named:
            return None
        kind = EXCEPTION.match(bare)
        if kind is None and text.startswith(" "):
            return None
        self._named = True
        return "ERROR", kind[1] if kind else "an exception"


def _clean(message: str) -> str:
    return LONG.sub(lambda token: token[0][:8] + "…", QUOTED.sub("…", message))[:LINE].strip()


class JsonLog:
    """A file of JSON lines, kept below some 32 MB with its older parts."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path, self._now = path, now
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, component: str, level: str, message: str, **facts: object) -> None:
        """Add a line; a full disk loses the line, not the process."""
        time = self._now().isoformat(timespec="milliseconds")
        entry = {"time": time, "component": component, "level": level, "message": message, **facts}
        try:
            with self._lock:
                self._rotate()
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        except OSError:
            return

    def _rotate(self) -> None:
        if not self._path.exists() or self._path.stat().st_size < ROTATE_BYTES:
            return
        for number in range(KEEP - 1, 0, -1):
            older = self._path.with_suffix(f".{number}.jsonl")
            if older.exists():
                older.replace(self._path.with_suffix(f".{number + 1}.jsonl"))
        self._path.replace(self._path.with_suffix(".1.jsonl"))


def last_refusal(path: Path) -> tuple[str, str] | None:
    """When this site last refused a request, or contributed zeros, since it was started, and why.

    Of the log's newest part.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    refusal = None
    for line in lines:
        try:
            entry = json.loads(line)
            time, message = str(entry["time"]), str(entry["message"])
        except (ValueError, KeyError, TypeError):
            continue  # the first line may be half a one
        if (entry.get("component"), message) == ("supervisor", "started"):
            refusal = None
        elif message.startswith(REFUSED):
            refusal = time, message.removeprefix(REFUSED)
        elif message.startswith(ZEROS):
            refusal = time, message
    return refusal
