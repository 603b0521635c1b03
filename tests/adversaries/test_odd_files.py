"""A name in a folder of others may be a pipe, a socket, a folder, a device or a file without end.

Every reader of the decoders' registry that opens a path is tried: one plain error, at once.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from audit.sources import Folder
from base_model.mirrors import FolderMirror
from base_model.verify import verify_base
from edge_runtime.base import check_file
from protocol.errors import ArtefactError, FedgeError
from storage.downloads import CutError
from storage.regular import SMALL, read_regular, sha256_of
from tests.properties.decoders.registry import of_paths
from tests.properties.decoders.world import World

KINDS = ("pipe", "socket", "folder", "device", "endless")


class WaitedError(BaseException):
    """Of no kind that a reader would take for an error of a file."""


def put(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() or path.is_symlink():
        path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as one, TemporaryDirectory() as near:
                one.bind(f"{near}/s")  # a socket's address has some hundred bytes
                Path(near, "s").rename(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/null")
        case _:  # without end for whoever reads all of it: sparse
            with path.open("wb") as file:
                file.truncate(2**31)


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    """Whoever waits for a writer that never comes is interrupted, and fails."""

    def ring(number: int, frame: object) -> None:
        raise WaitedError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_every_reader_of_a_path(tmp_path: Path) -> None:
    readers = of_paths(World(tmp_path / "world"))
    assert len(readers) > 12
    for name, (path, read) in readers.items():
        for kind in KINDS:
            put(path, kind)
            try:
                read(path)
            except FedgeError:
                pass
            except BaseException as error:
                pytest.fail(f"{name}, {kind}: {type(error).__name__}: {error}")
            (path.rmdir if kind == "folder" else path.unlink)()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_base(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    put(base / "graph.onnx", kind)
    with pytest.raises(ArtefactError):
        verify_base(base)
    with pytest.raises(ArtefactError):
        check_file(base / "graph.onnx", "0" * 64, size=10)
    if kind != "endless":
        with (
            pytest.raises(CutError),
            FolderMirror(base).opened("graph.onnx", offset=0, deadline=1e12),
        ):
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_run(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "plan.json", kind)
    with pytest.raises(FedgeError):
        Folder(tmp_path).read("plan.json")


def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 10)
    assert read_regular(path, most=10) == b"a" * 10
    for most in (9, 0):
        with pytest.raises(OSError, match="longer"):
            read_regular(path, most=most)
        with pytest.raises(OSError, match="longer"):
            sha256_of(path, size=most)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert read_regular(link) == b"a" * 10
    assert SMALL == 2**24
