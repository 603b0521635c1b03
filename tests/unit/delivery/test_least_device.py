"""Which devices a release is offered to: those that read its note. (P-9.4)"""

from __future__ import annotations

import pytest

from delivery.gate import least_device
from protocol.peft_format import ReleaseNote


@pytest.mark.parametrize(("nested", "version"), [(None, 3), (True, 4)])
def test_what_says_nested_is_for_devices_that_know_it(nested: bool | None, version: int) -> None:
    said = {} if nested is None else {"nested": nested}
    note = ReleaseNote.model_construct(**said)
    assert least_device(note) == version
