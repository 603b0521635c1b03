"""A base from mirrors: right bytes arrive whatever happens, wrong ones never, and each refusal says where."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from base_model import fetch as fetch_module
from base_model.build import build_base
from base_model.fetch import Limits, fetch_base
from base_model.verify import read_manifest, verify_base
from protocol.errors import ArtefactError, MachineError
from storage.locks import locked
from tests.unit.base_model.mirror import Mirror

ROOT = Path(__file__).resolve().parents[3]
PIECE = 4096
FILES = ["chunks.json", "config.json", "graph.onnx", "tokenizer.json", "weights.safetensors"]


def describe(base: Path, *, chunks: bool = True) -> Path:
    """Write manifest and pieces of 4 KiB anew for the files that are there."""
    names = [name for name in FILES if name != "chunks.json"]
    data = {name: (base / name).read_bytes() for name in names}
    (base / "chunks.json").unlink()
    if chunks:
        digests = {
            name: [
                hashlib.sha256(each[at : at + PIECE]).hexdigest()
                for at in range(0, len(each), PIECE)
            ]
            for name, each in data.items()
        }
        text = json.dumps({"format": 1, "chunk_bytes": PIECE, "files": digests})
        (base / "chunks.json").write_text(text)
        data["chunks.json"] = text.encode()
    manifest = json.loads((base / "manifest.json").read_text())
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(each).hexdigest(), "bytes": len(each)}
        for name, each in data.items()
    }
    (base / "manifest.json").write_text(json.dumps(manifest))
    return base


@pytest.fixture(scope="module")
def base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base in small pieces."""
    return describe(shutil.copytree(tiny_base, tmp_path_factory.mktemp("mirror") / "base"))


@pytest.fixture(scope="module")
def fingerprint(base: Path) -> str:
    return read_manifest(base).fingerprint


@pytest.fixture
def mirror(base: Path) -> Iterator[Mirror]:
    with Mirror(base) as serving:
        yield serving


def nothing_appeared(cache: Path) -> None:
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".partial")] == []


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_built_base_lists_its_pieces(tiny_base: Path) -> None:
    manifest = verify_base(tiny_base)
    assert sorted(manifest.files) == FILES
    listed = json.loads((tiny_base / "chunks.json").read_text())
    data = (tiny_base / "weights.safetensors").read_bytes()
    pieces = [data[at : at + 2**20] for at in range(0, len(data), 2**20)]
    found = [hashlib.sha256(piece).hexdigest() for piece in pieces]
    assert listed["files"]["weights.safetensors"] == found


@pytest.mark.parametrize("kind", ["url", "url of many", "folder", "file url", "no ranges"])
def test_it_arrives_whole_and_once(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path, kind: str
) -> None:
    mirror.ranges = kind != "no ranges"
    if kind == "url of many":
        shutil.copytree(base, tmp_path / "many" / fingerprint)
        mirror.folder = tmp_path / "many"
    place = {"folder": str(base), "file url": base.as_uri()}.get(kind, mirror.url)
    seen: list[tuple[str, int, int]] = []
    folder = fetch_base(
        fingerprint,
        mirrors=[place],
        cache=tmp_path / "cache",
        progress=lambda *said: seen.append(said),
    )
    assert folder == tmp_path / "cache" / fingerprint
    assert verify_base(folder) == read_manifest(base)
    for path in base.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert list((tmp_path / "cache" / ".partial").iterdir()) == []
    assert seen[-1][1] == seen[-1][2] == sum(e.bytes for e in read_manifest(base).files.values())
    before = len(mirror.asked)
    assert fetch_base(fingerprint, mirrors=[], cache=tmp_path / "cache") == folder
    assert len(mirror.asked) == before


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_wrong_byte_is_refused_and_another_mirror_helps(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path, name: str
) -> None:
    data = (base / name).read_bytes()
    # of the manifest not every byte is covered by the fingerprint: the graph is not
    place = data.index(fingerprint.encode()) if name == "manifest.json" else len(data) // 2
    mirror.change = lambda served, data: flipped(data, place) if served == name else data
    with pytest.raises(ArtefactError) as caught:
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)
    assert f"{mirror.url}: " in caught.value.cause
    assert name in caught.value.cause
    nothing_appeared(tmp_path)
    folder = fetch_base(fingerprint, mirrors=[mirror.url, str(base)], cache=tmp_path)
    verify_base(folder)


@pytest.mark.parametrize("cut", [0, 1, PIECE - 1, PIECE, 5 * PIECE + 17])
def test_after_a_cut_it_goes_on_behind_the_last_whole_piece(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path, cut: int
) -> None:
    name = "weights.safetensors"
    assert (base / name).stat().st_size > 6 * PIECE
    mirror.change = lambda served, data: data[:cut] if served == name else data
    with pytest.raises(MachineError, match=rf"{name}: (ended|stopped)"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)
    nothing_appeared(tmp_path)
    mirror.change = lambda _served, data: data
    mirror.asked.clear()
    verify_base(fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path))
    assert [at for path, at in mirror.asked if path == name] == [cut // PIECE * PIECE]
    assert {path for path, _ in mirror.asked} == {"manifest.json", name}


def test_a_mirror_that_is_cut_again_and_again_gives_all_in_the_end(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path
) -> None:
    largest = max((base / name).stat().st_size for name in FILES)
    sent = 0

    def some(served: str, data: bytes) -> bytes:
        nonlocal sent
        sent += 3 * PIECE
        return data if served == "manifest.json" else data[: min(len(data), sent)]

    mirror.change = some
    verify_base(fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path))
    assert len(mirror.asked) > largest // (3 * PIECE) / 4


def test_one_base_without_pieces_is_resumed_and_checked_too(
    base: Path, tmp_path: Path, fingerprint: str
) -> None:
    old = describe(shutil.copytree(base, tmp_path / "old"), chunks=False)
    length = (old / "weights.safetensors").stat().st_size
    with Mirror(old) as bad, Mirror(old) as good:
        bad.change = lambda name, data: (
            flipped(data, 10)[: length // 2] if name == "weights.safetensors" else data
        )
        folder = fetch_base(fingerprint, mirrors=[bad.url, good.url], cache=tmp_path / "cache")
        verify_base(folder)
        asked = [at for path, at in good.asked if path == "weights.safetensors"]
        assert asked[-1] == 0  # the first half was the other's, and wrong
        shutil.rmtree(tmp_path / "cache")
        bad.change = lambda name, data: flipped(data, 10) if name == "graph.onnx" else data
        with pytest.raises(ArtefactError, match=r"graph\.onnx: its sha256 is not the manifest's"):
            fetch_base(fingerprint, mirrors=[bad.url], cache=tmp_path / "cache")


def test_bases_share_files_of_the_same_content(
    base: Path, fingerprint: str, tiny_source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    wide = build_base(str(tiny_source), task="sequence-classification", bits=8, out=other)
    cache = tmp_path / "cache"
    first = fetch_base(fingerprint, mirrors=[str(base)], cache=cache)
    second = fetch_base(wide.fingerprint, mirrors=[str(other)], cache=cache)
    verify_base(second)
    for name in ("tokenizer.json", "config.json"):
        assert (first / name).stat().st_ino == (second / name).stat().st_ino
    assert (first / "weights.safetensors").stat().st_ino != (
        second / "weights.safetensors"
    ).stat().st_ino
    shutil.rmtree(second)  # a copy that is damaged is not spread
    (first / "tokenizer.json").chmod(0o644)
    (first / "tokenizer.json").write_bytes(b"{}")
    verify_base(fetch_base(wide.fingerprint, mirrors=[str(other)], cache=cache))
    assert (first / "tokenizer.json").read_bytes() == b"{}"


def test_other_tensors_under_an_honest_fingerprint_are_refused(
    base: Path, fingerprint: str, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    forged = shutil.copytree(base, tmp_path / "forged")
    tensors = load_file(forged / "weights.safetensors")
    name = next(name for name in tensors if name.endswith(".scales"))
    save_file(tensors | {name: tensors[name] * 2}, forged / "weights.safetensors")
    describe(forged)
    mirrors = [str(forged), str(base)]
    with pytest.raises(ArtefactError, match=rf"forged: weights.safetensors: {name} is not the"):
        fetch_base(fingerprint, mirrors=mirrors[:1], cache=tmp_path / "cache")
    nothing_appeared(tmp_path / "cache")
    verify_base(fetch_base(fingerprint, mirrors=mirrors, cache=tmp_path / "cache"))


def test_another_graph_is_refused_by_the_manifests_own_digest(
    base: Path, fingerprint: str, tmp_path: Path
) -> None:
    """The fingerprint leaves the edge graph out; who needs it pins the manifest."""
    other = shutil.copytree(base, tmp_path / "other")
    (other / "graph.onnx").write_bytes(b"another graph")
    describe(other)
    pin = hashlib.sha256((base / "manifest.json").read_bytes()).hexdigest()
    options: dict[str, Any] = {"cache": tmp_path / "cache", "manifest_sha256": pin}
    with pytest.raises(ArtefactError, match="not the pinned one"):
        fetch_base(fingerprint, mirrors=[str(other)], **options)
    fetch_base(fingerprint, mirrors=[str(other), str(base)], **options)
    with pytest.raises(ArtefactError, match="holds another base, or another manifest"):
        fetch_base(fingerprint, mirrors=[], cache=tmp_path / "cache", manifest_sha256="0" * 64)
    with pytest.raises(ArtefactError, match="is that of base"):
        fetch_base("1" * 64, mirrors=[str(base)], cache=tmp_path / "cache")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_what_came_is_kept(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        file_size_limit(3 * PIECE),
        pytest.raises(MachineError, match="cannot be written: File too large"),
    ):
        fetch_base(fingerprint, mirrors=[mirror.url, str(base)], cache=tmp_path)
    nothing_appeared(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(fetch_module.shutil, "disk_usage", lambda _path: usage)
        with pytest.raises(MachineError, match="bytes are missing, 1000 are free"):
            fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)
    mirror.asked.clear()
    verify_base(fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path))
    assert any(at for _, at in mirror.asked)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_mirror_that_drips_is_left_when_the_time_is_over(
    fingerprint: str, mirror: Mirror, tmp_path: Path, where: str
) -> None:
    mirror.drip = where
    started = time.monotonic()
    with pytest.raises(MachineError, match=r"not here after 0\.5 s"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path, limits=Limits(seconds=0.5))
    assert time.monotonic() - started < 5


def test_sizes_are_bounded(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtefactError, match="bytes, 1000 are allowed"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path, limits=Limits(total=1000))
    monkeypatch.setattr(fetch_module, "MAX_MANIFEST", 1000)
    with pytest.raises(MachineError, match=r"manifest\.json: is longer than 1000 bytes"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)
    monkeypatch.undo()
    mirror.change = lambda _name, data: data + bytes(10**6)
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)


def test_who_cannot_be_reached_is_named_with_the_reason(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
        places = [closed, f"{mirror.url}/nothing", str(tmp_path / "gone"), "http://a.invalid/"]
        with pytest.raises(MachineError) as caught:
            fetch_base(fingerprint, mirrors=places, cache=tmp_path / "cache")
    said = caught.value.cause
    assert f"{closed}: manifest.json: Connection refused" in said
    assert f"{mirror.url}/nothing: manifest.json: answers with status 404" in said
    assert f"{tmp_path / 'gone'}: manifest.json: No such file or directory" in said
    verify_base(fetch_base(fingerprint, mirrors=[*places, str(base)], cache=tmp_path / "cache"))


def test_other_kinds_of_address_are_refused(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path
) -> None:
    for place in (
        "ftp://host/x",
        "http://user:secret@host/",
        "https://host/?token=secret",
        "http://",
    ):
        with pytest.raises(ArtefactError) as caught:
            fetch_base(fingerprint, mirrors=[place], cache=tmp_path)
        assert "secret" not in str(caught.value)
    mirror.redirect = (base / "manifest.json").as_uri()
    with pytest.raises(MachineError, match=r"status 302|HTTPError|unknown"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)
    mirror.redirect, mirror.range_lie = "", 1
    mirror.change = lambda name, data: data[: 2 * PIECE] if name == "graph.onnx" else data
    with pytest.raises(MachineError, match="another range than was asked for"):
        fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)


def test_of_two_fetches_at_once_one_works(fingerprint: str, mirror: Mirror, tmp_path: Path) -> None:
    def fetch(_: int) -> Path:
        return fetch_base(fingerprint, mirrors=[mirror.url], cache=tmp_path)

    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(fetch, range(4)))
    assert folders == {tmp_path / fingerprint}
    assert len(mirror.asked) == len(FILES) + 1
    with (
        locked(tmp_path / ".partial.lock"),
        pytest.raises(MachineError, match="another fetch is at work"),
    ):
        fetch_base("1" * 64, mirrors=[mirror.url], cache=tmp_path, limits=Limits(seconds=0.1))


def test_killed_in_the_middle_the_command_goes_on(
    base: Path, fingerprint: str, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.delay = 0.02
    command = [sys.executable, "-m", "fedge", "base", "fetch", fingerprint]
    command += ["--from", mirror.url, "--into", str(tmp_path), "--json"]
    process = subprocess.Popen(command, cwd=ROOT)
    weights = read_manifest(base).files["weights.safetensors"].sha256
    deadline = time.monotonic() + 60
    while not ((part := tmp_path / ".partial" / weights).exists() and part.stat().st_size):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    nothing_appeared(tmp_path)
    mirror.delay = 0.0
    mirror.asked.clear()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["fingerprint"] == fingerprint
    assert [at > 0 for path, at in mirror.asked if path == "weights.safetensors"] == [True]


def test_a_fetch_loads_no_torch(base: Path, fingerprint: str, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from base_model.fetch import fetch_base\n"
        "fetch_base(sys.argv[1], mirrors=[sys.argv[2]], cache=Path(sys.argv[3]))\n"
        "assert not {'torch', 'transformers', 'onnx'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, fingerprint, str(base), str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
