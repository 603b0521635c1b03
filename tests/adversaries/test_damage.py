"""Damage on the way: every published file, bit by bit, missing or exchanged, is found by the auditor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from audit.export import published
from audit.log_copy import Trust
from audit.sources import Folder
from audit.verify import load_run
from protocol.encoding import seed_from
from protocol.errors import FedgeError
from tests.adversaries.mutated import faults_of

PLACES = 3  # per file


def places_in(name: str, size: int) -> list[int]:
    drawn = [seed_from("place", name.rpartition("/")[2][:4], n) % size for n in range(PLACES - 2)]
    return [0, size - 1, *drawn]


# -- damage on the way ----------------------------------------------------------------------------


def test_one_bit_of_any_published_file(honest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(honest, tmp_path / "copy"))
    names = [each.name for each in published(load_run(Folder(honest), Trust()), vectors=True)]
    assert len(names) > 40
    for name in names:
        whole = (folder / name).read_bytes()
        for place in places_in(name, len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << seed_from("bit", name, place) % 8
            (folder / name).write_bytes(data)
            number = int(name.split("/")[1]) if name.startswith("rounds/") else None
            found = faults_of(folder, number)
            assert found, (name, place)
            if number is not None:
                assert any(f"round {number}: " in fault for fault in found), (name, place, found)
        (folder / name).write_bytes(whole)
    assert faults_of(folder) == []


def test_any_bit_of_a_checkpoint_and_a_key(honest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(honest, tmp_path / "copy"))
    for name in ("log/checkpoint", "log/key"):
        whole = (folder / name).read_bytes()
        for bit in range(0, 8 * len(whole), 3):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(data)
            with pytest.raises(FedgeError):
                load_run(Folder(folder), Trust())
        (folder / name).write_bytes(whole)


def test_a_missing_file_is_named(honest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(honest, tmp_path / "copy"))
    for each in published(load_run(Folder(honest), Trust()), vectors=False):
        if each.optional:
            continue
        (folder / each.name).rename(folder / "away")
        assert any("is not there" in fault for fault in faults_of(folder)), each.name
        (folder / "away").rename(folder / each.name)


def test_two_clients_vectors_exchanged(honest: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(honest, tmp_path / "copy"))
    one, other = sorted((folder / "rounds/0002/vectors/0").glob("?" * 32))[:2]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert any(
        fault.startswith("round 2: ") and "vector is not the one it signed" in fault
        for fault in faults_of(folder)
    )
