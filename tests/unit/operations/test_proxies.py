"""Proxies of the environment are for elsewhere: what urllib and httpx themselves make of each environment."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations import flower, loopback
from operations.contact import make_contact
from operations.coordinator import make_coordinator
from operations.folders import free_port
from operations.proxies import LOOPBACK, spare_loopback, verify_proxies
from operations.site import Work, make_site, read_invitation
from protocol.errors import MachineError
from tests.connect_proxy import ConnectProxy
from tests.unit.fedge.test_command_line import fedge

CLOSED = "http://127.0.0.1:9"
NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy", "no_grpc_proxy")
SETTINGS: list[dict[str, str]] = [
    {"http_proxy": CLOSED},
    {"HTTP_PROXY": CLOSED, "HTTPS_PROXY": CLOSED, "ALL_PROXY": CLOSED},
    {"http_proxy": CLOSED, "no_proxy": "intranet.example"},
    {"http_proxy": CLOSED, "NO_PROXY": "intranet.example"},
    {"http_proxy": CLOSED, "no_proxy": "a.example", "NO_PROXY": "b.example,127.0.0.1,localhost"},
    {"http_proxy": CLOSED, "no_proxy": "", "NO_PROXY": "b.example"},
    {"all_proxy": CLOSED, "no_proxy": " a.example , .b.example,"},
    {"ALL_PROXY": CLOSED, "no_proxy": "*"},
    {"http_proxy": CLOSED, "grpc_proxy": CLOSED, "no_grpc_proxy": "a.example"},
]


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    handler = partial(Quiet, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """This process with these proxy variables and no others."""
    before = dict(os.environ)
    for name in NAMES:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("variables", SETTINGS)
def test_this_machine_is_asked_without_a_proxy(variables: dict[str, str], url: str) -> None:
    for made in (own, of_flower, of_loopback):
        with environment(variables):
            changed = made()
        with environment(changed):
            urllib.request.build_opener().open(url, timeout=5).close()
            assert httpx.get(url).status_code == 200
            assert httpx.get(url.replace("127.0.0.1", "localhost")).status_code == 200
            kept = variables.get("no_proxy", variables.get("NO_PROXY", ""))
            for host in filter(None, (host.strip() for host in kept.split(","))):
                assert host in os.environ["no_proxy"]
            if "no_grpc_proxy" in variables:
                assert "127.0.0.1" in os.environ["no_grpc_proxy".lower()]
            proxied = kept != "*" and urllib.request.getproxies()
            assert not proxied or not urllib.request.proxy_bypass("elsewhere.example")


ODD = [
    ("[::1]", "::1"),
    ("::1/128", "::1"),
    ("fe80::/10", ""),
    ("[fd00::]/8", ""),
    ("[fe80::1]:80", "fe80::1"),
    ("fe80::1%eth0", "fe80::1"),
    ("bücher.de", "xn--bcher-kva.de"),
    (".bücher.de", ".xn--bcher-kva.de"),
    ("ü..de", ""),
    ("host:99999", ""),
    ("[::1", ""),
    ("a\x07b", ""),
    ("http://x", "http://x"),
    ("10.0.0.0/8", "10.0.0.0/8"),
    ("corp.example:8080", "corp.example:8080"),
    ("a b", "a b"),
    ("*.local;169.254/16", "*.local;169.254/16"),
    ("<local>", "<local>"),
    ("\udcff", ""),
]


@pytest.mark.parametrize(("entry", "kept"), ODD)
@pytest.mark.parametrize("proxies", [{}, {"http_proxy": CLOSED, "https_proxy": CLOSED}])
def test_what_httpx_cannot_read_is_spelled_for_it(
    entry: str, kept: str, proxies: dict[str, str], url: str
) -> None:
    """Flower's processes use httpx too, with the environment that they are started with."""
    for made in (own, of_flower, of_loopback):
        with environment(proxies | {"NO_PROXY": f"intranet.example,{entry}"}):
            changed = made()
        with environment(changed):
            verify_proxies(os.environ)
            entries = os.environ["no_proxy"].split(",")
            assert [each for each in entries if each not in LOOPBACK] == [
                each for each in ("intranet.example", kept) if each and each not in LOOPBACK
            ]
            assert httpx.get(url).status_code == 200
            urllib.request.build_opener().open(url, timeout=5).close()


@given(st.text(max_size=30) | st.text("[]:./%*0123456789abcdef@", max_size=30))
def test_whatever_is_kept_from_proxies_httpx_can_be_made(value: str) -> None:
    variables = {"no_proxy": value.replace("\0", "")}
    spare_loopback(variables)
    with environment({name: text for name, text in variables.items() if encodes(text)}):
        httpx.Client(verify=False).close()


def encodes(text: str) -> bool:
    """Whether a variable of the environment can hold it."""
    try:
        os.fsencode(text)
    except UnicodeError:
        return False
    return True


def test_a_site_with_variables_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    coordinator = make_coordinator(
        tmp_path / "c",
        ["127.0.0.1"],
        name="t",
        ports=(free_port(), free_port(), free_port()),
        address="127.0.0.1",
        now=datetime.now(UTC),
    )
    invitation = read_invitation(coordinator.folder / "invitation.json")
    site = make_site(tmp_path / "s", "ward-1", invitation, work=Work(), port=9100)
    with environment({"no_proxy": "[::1]"}):  # set after it was looked at
        contact = make_contact(site, lambda: datetime.now(UTC))
    assert contact.fault.startswith("the environment's proxy variables")


def own() -> dict[str, str]:
    """As `fedge` does it to itself."""
    spare_loopback(os.environ)
    return dict(os.environ)


def of_flower() -> dict[str, str]:
    return flower.environment(Path("/home"), Path("/bin"))


def of_loopback() -> dict[str, str]:
    return loopback.environment()


@pytest.mark.parametrize(
    "value",
    [
        "socks5h://10.0.0.1:1080",
        "http://",
        "http://h:99999",
        "ftp://h:1",
        "http://[::1",
        "http://h:1\x07",
    ],
)
def test_a_proxy_of_another_kind_is_refused_before_anything_starts(
    value: str, tmp_path: Path
) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
        with pytest.raises(MachineError, match=name.lower()) as caught:
            verify_proxies({name: value})
        assert value == "http://" or value not in str(caught.value)
    verify_proxies(
        {"http_proxy": "proxy.example:3128", "https_proxy": "http://u:p@h:1", "x": value}
    )


def test_nothing_is_started_with_a_proxy_that_nobody_can_use(tmp_path: Path) -> None:
    with environment({"ALL_PROXY": "socks5h://10.0.0.1:1080"}):
        for command in ("coordinator", "client"):
            done = fedge(command, "start", tmp_path)
            assert (done.returncode, "all_proxy" in done.stderr) == (8, True), done.stderr


def test_a_site_behind_a_proxy_reaches_a_coordinator_outside(tmp_path: Path) -> None:
    """The name is known to the proxy alone; TLS ends at the coordinator."""
    host, now = "coordinator.example", datetime.now(UTC)
    ports = (free_port(), free_port(), free_port())
    coordinator = make_coordinator(
        tmp_path / "c", [host], name="t", ports=ports, address="127.0.0.1", now=now
    )
    invitation = read_invitation(coordinator.folder / "invitation.json")
    site = make_site(tmp_path / "s", "ward-1", invitation, work=Work(), port=9100)
    coordinator.admit((site.folder / "request.json").read_bytes(), source="r")
    roster = (coordinator.folder / "roster.signed.json").read_bytes()
    with (
        serving(coordinator.folder / "keys" / "server.pem", ports[0], roster),
        ConnectProxy({host}) as proxy,
        environment({"https_proxy": proxy.url, "no_proxy": "intranet.example"}),
    ):
        contact = make_contact(site, lambda: datetime.now(UTC))
    assert (contact.status, contact.fault, contact.roster_version) == (200, "", 2)
    assert proxy.asked == [f"{host}:{ports[0]}"]
    with ConnectProxy(set()) as strict, environment({"https_proxy": strict.url}):
        refused = make_contact(site, lambda: datetime.now(UTC))
    assert "the proxy that the environment names does not let it through: 403" in refused.fault


@contextmanager
def serving(certificate: Path, port: int, body: bytes) -> Iterator[None]:
    """One answer over TLS to every request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        with suppress(OSError):
            while True:
                raw, _ = listener.accept()
                with context.wrap_socket(raw, server_side=True) as connection:
                    connection.recv(65536)
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(head.encode() + body)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.close()
