"""Files by name: only those of P-8.4, never another file of this machine, never without a bound."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from audit import sources
from audit.sources import Folder, MissingError, Web, check_name, fetch_list, open_source
from protocol.errors import ArtefactError, ProofError

NAME = "rounds/0001/sums/0.sum"


@pytest.mark.parametrize(
    "name",
    [
        "plan.json",
        "manifest.json",
        f"rosters/{'a' * 64}.json",
        "log/key",
        "log/policy",
        "log/tile/0/x001/x234/067",
        "log/tile/entries/000.p/12",
        "log/log.batch",
        "rounds/0007/log.batch",
        "rounds/12345/checkpoint.safetensors",
        "rounds/0000/adapter/passport.tlog-proof",
        f"rounds/0001/vectors/0/{'0' * 32}.chunks",
        "rounds/0001/sums/12.boxes.json",
    ],
)
def test_names_that_a_run_publishes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "log.key",
        "sequence.json",
        "rounds/0001/adapter/../../../log.key",
        "rounds/0001/adapter/.hidden",
        "../plan.json",
        "/etc/passwd",
        "log/tile/0/../../../log.key",
        "plan.json\n",
        "rounds/0001/vectors/0/site-1",
        "log/inbox/a.json",
    ],
)
def test_every_other_name_is_refused(name: str, tmp_path: Path) -> None:
    for source in (Folder(tmp_path), Web("http://127.0.0.1:9")):
        with pytest.raises(ProofError, match="no file that a run publishes"):
            source.read(name)
        with pytest.raises(ProofError):
            source.exists(name)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "log").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", run / "log" / "key")
    with pytest.raises(ProofError, match="leads out"):
        Folder(run).read("log/key")


def test_a_folder_gives_parts_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "rounds/0001/sums").mkdir(parents=True)
    (tmp_path / NAME).write_bytes(b"0123456789")
    source = open_source(str(tmp_path))
    assert source.read(NAME) == b"0123456789"
    assert source.read(NAME, start=4, length=3) == b"456"
    assert source.read(NAME, start=8, length=9) == b"89"
    assert (source.exists(NAME), source.exists("plan.json")) == (True, False)
    with pytest.raises(MissingError, match="log/key is not there"):
        source.read("log/key")
    with pytest.raises(ArtefactError, match="no folder"):
        open_source(str(tmp_path / "nowhere"))


class Answers(BaseHTTPRequestHandler):
    """Knows one file; ranges only when asked by that name."""

    def do_GET(self) -> None:
        data, status = b"0123456789", 200
        if self.path == "/run/plan.json":
            self.send_error(500)
            return
        if self.path == "/run/log/key":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        if self.path != f"/run/{NAME}":
            self.send_error(404)
            return
        if self.server.ranges and (asked := self.headers["Range"]):  # type: ignore[attr-defined]
            first, _, last = asked.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/10")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(params=[True, False])
def web(request: pytest.FixtureRequest) -> Iterator[Web]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.ranges = request.param  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Web(f"http://127.0.0.1:{server.server_port}/run", timeout_s=5.0)
    server.shutdown()
    server.server_close()


def test_the_web_gives_the_same(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert web.read(NAME) == b"0123456789"
    assert web.read(NAME, start=4, length=3) == b"456"
    assert web.read(NAME, start=8, length=9) == b"89"
    assert (web.exists(NAME), web.exists("manifest.json")) == (True, False)
    with pytest.raises(ArtefactError, match="answers 500"):
        web.read("plan.json")
    with pytest.raises(ArtefactError):
        web.read("log/key")  # leads to a file of this machine
    monkeypatch.setattr(sources, "MOST_BYTES", 9)
    with pytest.raises(ArtefactError, match="more than 9 bytes"):
        web.read(NAME)


def test_an_auditor_reads_as_long_a_ledger_as_a_coordinator_keeps(tmp_path: Path) -> None:
    for name in ("privacy.jsonl", "summary.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**26 + 1)
    assert len(Folder(tmp_path).read("privacy.jsonl")) == 2**26 + 1
    with pytest.raises(ArtefactError, match=r"summary\.json has more than"):
        Folder(tmp_path).read("summary.json")


def test_addresses_of_other_kinds_and_nobody_there() -> None:
    for address in ("file:///etc/passwd", "ftp://host/run", "http://"):
        with pytest.raises(ArtefactError, match="no web address"):
            open_source(address)
    with pytest.raises(ArtefactError, match="cannot be fetched"):
        Web("http://127.0.0.1:9", timeout_s=1.0).read("plan.json")


def test_a_list_that_cannot_be_read_is_a_fault_of_its_leaf(tmp_path: Path) -> None:
    """Whatever lies in its place: an audit goes on behind it."""
    folder, digest = tmp_path / "log/lists", "a" * 64
    folder.mkdir(parents=True)
    for lay in (
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: (path.touch(), os.truncate(path, 2**23 + 1)),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.name),
    ):
        path = folder / digest
        lay(path)
        with pytest.raises(ProofError, match=digest):
            fetch_list(Folder(tmp_path), digest)
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
