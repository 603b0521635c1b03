"""A real server answers with web pages and redirects where files are asked for: every reader says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audit.sources import Web
from base_model.mirrors import mirror_at
from edge_runtime.fetching import Fetcher, WebPageError
from protocol.errors import ArtefactError, ProofError
from protocol.web_page import page_fault, redirect_fault
from server.witnessing import HttpWitness
from storage.downloads import CutError

HTML = "text/html; charset=utf-8"
PAGES = [
    (HTML, b"<!DOCTYPE html><title>Log in</title>"),
    (HTML, b"\xef\xbb\xbf\n  <HTML><body>"),
    (HTML, b"<div>Welcome to our network</div>"),
    ("application/xhtml+xml", b'<?xml version="1.0"?>\n<html>'),
    ("application/json", b"<html><script>location='/login?token=secret'</script>"),
    (None, b'<meta http-equiv="refresh" content="0; url=/login">'),
]
FILES = [
    ("application/json", b'{"signed": {}}'),
    (HTML, b'{"signed": {}}'),  # a server that calls whatever it does not know a page
    (HTML, b"\x3c\x00\x00\x00TORT<html>"),  # an adapter may begin so
    ("application/octet-stream", b"<svg"),
    (None, b""),
]


@contextmanager
def serving(status: int, headers: dict[str, str], body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    run = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    run.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def of_device(url: str) -> bytes:
    return b"".join(Fetcher(url, deadline_s=20).chunks(f"{url}/metadata/timestamp.json"))


def of_auditor(url: str) -> bytes:
    return Web(url).read("plan.json")


def of_mirror(url: str) -> bytes:
    mirror = mirror_at(url)
    with mirror.opened("manifest.json", offset=0, deadline=time.monotonic() + 20) as reader:
        return reader.rest(1000)


def of_coordinator(url: str) -> bytes:
    return HttpWitness(url).post(b"x").body.encode()


READERS: dict[Callable[[str], bytes], type[Exception]] = {
    of_device: WebPageError,
    of_auditor: ArtefactError,
    of_mirror: CutError,
    of_coordinator: ProofError,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_page_is_no_file(reader: Callable[[str], bytes]) -> None:
    for kind, body in PAGES:
        with serving(200, {"Content-Type": kind} if kind else {}, body) as url:
            with pytest.raises(READERS[reader], match=r"a web page came in place of a file") as it:
                reader(url)
            assert (kind or "of no type").partition(";")[0] in str(it.value)
            assert "secret" not in str(it.value)
    for kind, body in FILES[:2]:
        with serving(200, {"Content-Type": kind} if kind else {}, body) as url:
            assert reader(url) == body


def test_what_is_no_page_stays_a_file() -> None:
    for kind, body in FILES:
        assert page_fault(200, kind, body) == ""


def test_a_device_is_led_nowhere_and_says_where_to() -> None:
    for status in (301, 302, 303, 307, 308):
        location = {"Location": "https://u:secret@portal.example/login?token=secret"}
        with serving(status, location, b"") as url, pytest.raises(WebPageError) as it:
            of_device(url)
        assert f"it leads elsewhere to https://portal.example/login (HTTP {status}" in str(it.value)
        assert "secret" not in str(it.value)
    assert redirect_fault(304, None) == redirect_fault(200, "x") == ""
    assert "elsewhere (HTTP 302" in redirect_fault(302, None)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/login;jsessionid=SECRET", " to /login (HTTP"),
        ("/login;a=SECRET/next;b=SECRET?c=SECRET#SECRET", " to /login/next (HTTP"),
        ("https://h/s/" + "SECRET" * 6 + "/login", " to https://h/s/\u2026/login (HTTP"),
        ("https://u:SECRET@h/x", " to https://h/x (HTTP"),
        ("//u:SECRET@h/x#SECRET", "h/x (HTTP"),
        ("u:SECRET@h/x?SECRET", " to h/x (HTTP"),
        ("login#SECRET", " to login (HTTP"),
        ("https:u:SECRET@h", " to h (HTTP"),
    ],
)
def test_of_a_redirect_nothing_secret_is_shown(location: str, shown: str) -> None:
    fault = redirect_fault(302, location)
    assert shown in fault
    assert "SECRET" not in fault


@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 2500, "a" * 20 + "/" + "b" * 5000])
def test_a_redirect_is_shown_in_a_length_to_read(path: str) -> None:
    for start in ("https://h/", "/", "", f"https://{'h' * 5000}/"):
        assert len(redirect_fault(302, start + path)) < 250
