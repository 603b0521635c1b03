"""A node whose base is named by its fingerprint: fetched once, from the machine's own mirrors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from base_model.verify import read_manifest, verify_base
from client.settings import base_of, manifest_of
from protocol.errors import MachineError


def node(own: dict[str, Any], run: dict[str, Any] | None = None) -> Context:
    return Context(1, 2, own, RecordDict(), run or {})


def test_it_is_fetched_once_and_found_again(tiny_base: Path, tmp_path: Path) -> None:
    fingerprint = read_manifest(tiny_base).fingerprint
    own = {
        "base": fingerprint,
        "base-mirrors": f"{tmp_path / 'gone'} {tiny_base}",
        "base-cache": str(tmp_path / "cache"),
    }
    assert manifest_of(node(own)).fingerprint == fingerprint
    verify_base(tmp_path / "cache" / fingerprint)
    del own["base-mirrors"]
    assert base_of(node(own)) == tmp_path / "cache" / fingerprint
    assert base_of(node({"base": str(tiny_base)})) == tiny_base


def test_a_run_names_no_mirrors(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fingerprint = read_manifest(tiny_base).fingerprint
    run = {"base": fingerprint, "base-mirrors": str(tiny_base), "base-cache": str(tmp_path / "c")}
    with pytest.raises(MachineError, match="no mirror is named"):
        base_of(node({}, run))
    assert not (tmp_path / "c").exists()
