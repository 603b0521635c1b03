"""A mirror that wants more of a site than to be read: its disk, or its loopback."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from base_model import fetch as fetch_module
from base_model.fetch import fetch_base
from base_model.verify import read_manifest
from protocol.errors import ArtefactError, MachineError
from storage import downloads
from tests.unit.base_model.mirror import Mirror


def test_a_mirror_does_not_say_how_much_a_base_may_take(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fingerprint covers tensors, not files: a manifest with its tensors may list anything beside them."""
    monkeypatch.setattr(fetch_module, "SPARE_BYTES", 2**16)
    greedy = shutil.copytree(tiny_base, tmp_path / "greedy")
    entry = json.loads((greedy / "manifest.json").read_text())
    big = b"x" * 2**24
    (greedy / "more.bin").write_bytes(big)
    entry["files"]["more.bin"] = {"sha256": hashlib.sha256(big).hexdigest(), "bytes": len(big)}
    (greedy / "manifest.json").write_text(json.dumps(entry))
    with pytest.raises(ArtefactError, match="are allowed"):
        fetch_base(entry["fingerprint"], mirrors=[str(greedy)], cache=tmp_path / "cache")
    assert list((tmp_path / "cache" / ".partial").iterdir()) == []


def test_a_redirect_leads_no_nearer(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror elsewhere cannot make this machine ask what listens on its loopback."""
    fingerprint = read_manifest(tiny_base).fingerprint
    with Mirror(tiny_base) as near, Mirror(tmp_path, address="127.0.0.2") as far:
        far.redirect = f"{near.url}/manifest.json"
        monkeypatch.setattr(downloads, "_reach", lambda at: 4 if at == "127.0.0.2" else 1)
        with pytest.raises(MachineError, match="redirects to a nearer network"):
            fetch_base(fingerprint, mirrors=[far.url], cache=tmp_path / "cache")
    assert near.asked == []
    monkeypatch.undo()
    cases = {"::1": 1, "127.8.9.1": 1, "0.0.0.0": 1, "::ffff:127.0.0.1": 1, "fe80::1%eth0": 2}
    cases |= {"169.254.169.254": 2, "10.1.2.3": 3, "fd00::1": 3, "1.1.1.1": 4}
    assert {address: downloads._reach(address) for address in cases} == cases


def test_a_cache_that_somebody_else_prepared_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    cache, trap = tmp_path / "cache", tmp_path / "trap"
    cache.mkdir()
    trap.mkdir()
    (cache / ".partial").symlink_to(trap)
    fingerprint = read_manifest(tiny_base).fingerprint
    with pytest.raises(MachineError, match="not this user's own"):
        fetch_base(fingerprint, mirrors=[str(tiny_base)], cache=cache)
    assert list(trap.iterdir()) == []
