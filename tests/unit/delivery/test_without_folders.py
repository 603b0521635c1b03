"""What evidence says of folders: nothing of where they lie, and no more than that is taken out."""

from __future__ import annotations

from pathlib import Path

import pytest

from delivery.withdrawals import without_folders


@pytest.mark.parametrize("folder", [".", "..", "run"])
def test_a_name_alone_changes_nothing(folder: str) -> None:
    text = "accuracy 0.612 of run.. is below the floor 0.95"
    assert without_folders(text, [Path(folder)]) == text


def test_a_place_becomes_its_name() -> None:
    folders = [Path("/srv/runs/a"), Path("/srv/runs/a/before")]
    text = "/srv/runs/a/before and /srv/runs/a are none"
    assert without_folders(text, folders) == "before and a are none"
