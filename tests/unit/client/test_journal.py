"""A disk that fills up in the middle of a line: the line is not kept, and its file is not broken."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from client.journal import Journal
from protocol.errors import MachineError
from storage.whole import appending
from tests.unit.client.test_sessions import file_size_limit


def test_a_line_is_kept_whole_or_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "ledger.jsonl", "the ledger")
    journal.append("first", lambda: None)
    with file_size_limit(10), pytest.raises(MachineError, match="the ledger cannot be written"):
        journal.append("second line", lambda: None)  # four bytes of it still fit
    assert journal.text() == "first\n"
    journal.append("third", lambda: None)
    assert journal.text() == "first\nthird\n"


def test_so_is_a_coordinators(tmp_path: Path) -> None:
    path = tmp_path / "privacy.jsonl"
    for line, fits in ((b"first\n", True), (b"second line\n", False), (b"third\n", True)):
        with ExitStack() as held:
            if not fits:
                held.enter_context(file_size_limit(10))
                held.enter_context(pytest.raises(OSError, match="No space left"))
            with appending(path) as append:
                append(line)
    assert path.read_bytes() == b"first\nthird\n"
