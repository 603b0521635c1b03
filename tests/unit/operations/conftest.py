"""A consortium's coordinator and its invitation."""

from __future__ import annotations

from pathlib import Path

import pytest

from operations.coordinator import Coordinator, make_coordinator
from operations.folders import Invitation
from operations.site import read_invitation
from tests.unit.operations.consortium import NOW


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return make_coordinator(
        tmp_path / "c",
        ["fl.example.org", "10.0.0.1"],
        name="wards",
        ports=(9440, 9441, 9442),
        address="0.0.0.0",
        now=NOW,
    )


@pytest.fixture
def invitation(coordinator: Coordinator) -> Invitation:
    return read_invitation(coordinator.folder / "invitation.json")
