"""Whole or not at all: each promise of ``storage.whole``, on real files, links, threads and killed processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.whole import (
    PRIVATE,
    appending,
    file_that_appears,
    folder_that_appears,
    move_whole,
    write_whole,
)
from tests.unit.client.test_sessions import file_size_limit

ROOT = Path(__file__).resolve().parents[3]
NAME, LEFT = "state.json", ".state.json.tmp"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is flushed, and `replace`, in their order."""
    seen: list[str] = []
    flush, replace = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        flush(descriptor)

    def replaced(source: Path, target: Path) -> None:
        seen.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@linux
def test_a_file_is_flushed_before_its_name_and_the_folder_after(
    tmp_path: Path, steps: list[str]
) -> None:
    write_whole(tmp_path / NAME, b"new")
    assert steps == [LEFT, "replace", tmp_path.name]


@linux
def test_so_is_everything_in_a_folder(tmp_path: Path, steps: list[str]) -> None:
    with folder_that_appears(tmp_path / "base") as new:
        (new / "inner").mkdir()
        (new / "inner" / "a").write_bytes(b"a")
    assert sorted(steps[:3]) == [".base.tmp", "a", "inner"]
    assert steps[3:] == ["replace", tmp_path.name]
    steps.clear()
    move_whole(tmp_path / "base", tmp_path / "other")
    assert sorted(steps[:3]) == ["a", "base", "inner"]
    assert steps[3:] == ["replace", tmp_path.name]


def planted_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def planted_second_name(path: Path, victim: Path) -> None:
    os.link(victim, path)


def planted_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def planted_socket(path: Path, victim: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # its name must be short
    try:
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(path.name)
    finally:
        os.chdir(before)


def planted_folder(path: Path, victim: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "link").symlink_to(victim)


PLANTED = (planted_link, planted_second_name, planted_pipe, planted_socket, planted_folder)


@pytest.mark.parametrize("plant", PLANTED)
def test_nothing_is_written_through_what_lies_there(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    folder, victim = tmp_path / "own", tmp_path / "victim"
    folder.mkdir()
    victim.write_bytes(b"mine")
    plant(folder / LEFT, victim)
    write_whole(folder / NAME, b"new")
    assert (folder / NAME).read_bytes() == b"new"
    assert not (folder / NAME).is_symlink()
    assert victim.read_bytes() == b"mine"
    assert names(folder) == [NAME]
    plant(folder / ".base.tmp", victim)
    with folder_that_appears(folder / "base") as new:
        (new / "a").write_bytes(b"a")
    assert names(folder) == ["base", NAME]
    assert victim.read_bytes() == b"mine"


def test_what_is_put_in_its_place_meanwhile_gets_no_name(tmp_path: Path) -> None:
    write_whole(tmp_path / NAME, b"old")
    (tmp_path / "victim").write_bytes(b"theirs")

    def robbed() -> None:
        with file_that_appears(tmp_path / NAME) as temporary:
            temporary.unlink()
            temporary.symlink_to(tmp_path / "victim")

    with pytest.raises(OSError, match="somebody else") as refused:
        robbed()
    assert refused.value.errno == errno.ESTALE
    assert (tmp_path / NAME).read_bytes() == b"old"


@pytest.mark.usefixtures("open_umask")
def test_modes_are_those_asked_for_also_after_a_leftover(tmp_path: Path) -> None:
    (tmp_path / LEFT).touch(mode=0o666)
    write_whole(tmp_path / NAME, b"secret", mode=PRIVATE)
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    write_whole(tmp_path / NAME, b"for all")
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o666
    os.umask(0o027)
    write_whole(tmp_path / NAME, b"for some")
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o640
    with folder_that_appears(tmp_path / "own", mode=0o700):
        pass
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


KILLED = """
import os, signal, sys
from pathlib import Path
from storage import whole
maker = getattr(whole, sys.argv[1])
with maker(Path(sys.argv[2])) as new:
    (new / "half" if new.is_dir() else new).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(maker: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, maker, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_kill_leaves_the_old_file_and_what_the_next_writer_removes(tmp_path: Path) -> None:
    write_whole(tmp_path / NAME, b"old")
    for _ in range(2):  # leftovers do not add up
        killed("file_that_appears", tmp_path / NAME)
        assert (tmp_path / NAME).read_bytes() == b"old"
        assert names(tmp_path) == [LEFT, NAME]
    write_whole(tmp_path / NAME, b"new")
    assert (tmp_path / NAME).read_bytes() == b"new"
    assert names(tmp_path) == [NAME]


def test_a_kill_leaves_no_folder_and_what_the_next_maker_removes(tmp_path: Path) -> None:
    for _ in range(2):
        killed("folder_that_appears", tmp_path / "base")
        assert names(tmp_path) == [".base.tmp"]
    with folder_that_appears(tmp_path / "base") as new:
        (new / "a").write_bytes(b"a")
    assert names(tmp_path) == ["base"]
    assert names(tmp_path / "base") == ["a"]


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    """Neither removes what the other is writing: each file that appears is one writer's."""
    path, contents = tmp_path / NAME, [bytes([number]) * 50_000 for number in range(6)]
    write_whole(path, contents[0])
    stop, torn = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            if (data := path.read_bytes()) not in contents:
                torn.append(len(data))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            tasks = [
                pool.submit(write_whole, path, data, durable=False)
                for _ in range(20)
                for data in contents
            ]
            for task in tasks:
                task.result()
    finally:
        stop.set()
        looker.join()
    assert torn == []
    assert names(tmp_path) == [NAME]


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    later = threading.Thread(target=write_whole, args=(tmp_path / NAME, b"second"))
    with file_that_appears(tmp_path / NAME) as temporary:
        later.start()
        later.join(0.1)
        temporary.write_bytes(b"first")
    later.join()
    assert (tmp_path / NAME).read_bytes() == b"second"
    assert names(tmp_path) == [NAME]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    write_whole(tmp_path / NAME, b"old")
    with file_size_limit(10), pytest.raises(OSError, match="too large"):
        write_whole(tmp_path / NAME, b"longer than ten bytes")

    def spoilt() -> None:
        with folder_that_appears(tmp_path / "base") as new:
            (new / "a").write_bytes(b"a")
            raise KeyError

    with pytest.raises(KeyError):
        spoilt()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="Is a directory"):
        write_whole(tmp_path / "folder", b"x")
    assert (tmp_path / NAME).read_bytes() == b"old"
    assert names(tmp_path) == ["folder", NAME]
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "none" / NAME, b"x")
    with pytest.raises(FileNotFoundError), folder_that_appears(tmp_path / "none" / "base"):
        pass


def test_a_new_file_takes_nobodys_place(tmp_path: Path) -> None:
    write_whole(tmp_path / NAME, b"old")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in (NAME, "link"):
        with pytest.raises(FileExistsError):
            write_whole(tmp_path / name, b"new", new=True)
    assert (tmp_path / NAME).read_bytes() == b"old"
    assert names(tmp_path) == ["link", NAME]

    def attempt(number: int) -> bool:
        try:
            write_whole(tmp_path / "key", b"%d" % number, new=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(attempt, range(6)))
    assert sum(won) == 1
    assert (tmp_path / "key").read_bytes() == b"%d" % won.index(True)


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    def write(number: int) -> None:
        with appending(path, mode=PRIVATE) as append:
            count = len(path.read_bytes().splitlines())
            append(b"%d %d\n" % (count, number))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(30)))
    lines = [line.split() for line in path.read_bytes().splitlines()]
    assert [int(line[0]) for line in lines] == list(range(30))  # nobody wrote after a look
    assert sorted(int(line[1]) for line in lines) == list(range(30))
    assert path.stat().st_mode & 0o777 == 0o600
