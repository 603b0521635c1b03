"""A disk that fills up in the middle of a line: the line is not kept, and its file is not broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.journal import Journal
from protocol.errors import MachineError
from server.files import append_whole
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
    append_whole(path, b"first\n")
    with file_size_limit(10), pytest.raises(OSError, match="No space left"):
        append_whole(path, b"second line\n")
    append_whole(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"
