"""``fedge log new``: a key that a plan can name before its run begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocol.errors import ArtefactError
from protocol.transparency.note import parse_key
from server.commands import app
from server.log import read_log_key


def test_a_new_key_is_its_owners_and_its_line_is_the_public_half(tmp_path: Path) -> None:
    path = tmp_path / "log.key"
    done = CliRunner().invoke(app, ["new", "log.example/1", "--out", str(path), "--json"])
    verifier = parse_key(json.loads(done.stdout)["key"])
    assert verifier.name == "log.example/1"
    assert verifier.public == read_log_key(path).public_key().public_bytes_raw()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in done.output


@pytest.mark.parametrize("name", ["a b", "a+b", ""])
def test_a_bad_name_or_a_file_that_is_there_is_refused(tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(app, ["new", name, "--out", str(tmp_path / "k")])
    assert isinstance(result.exception, ArtefactError)
    assert not (tmp_path / "k").exists()
    (tmp_path / "k").write_text("mine")
    result = CliRunner().invoke(app, ["new", "a", "--out", str(tmp_path / "k")])
    assert isinstance(result.exception, ArtefactError)
    assert (tmp_path / "k").read_text() == "mine"
