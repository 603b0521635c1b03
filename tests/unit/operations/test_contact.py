"""A site asks its coordinator, and the coordinator answers as badly as it can."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from operations import contact
from operations.contact import keep_in_contact, last_contact, make_contact
from operations.coordinator import Coordinator, make_coordinator
from operations.folders import Invitation, free_port
from operations.site import Site, Work, make_site, read_invitation
from protocol.enrolment import MAX_BYTES

Answer = Callable[[socket.socket], None]
HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return made(tmp_path / "c", now())


def made(folder: Path, at: datetime) -> Coordinator:
    ports = (free_port(), free_port(), free_port())
    return make_coordinator(folder, ["127.0.0.1"], name="t", ports=ports, address="::", now=at)


@pytest.fixture
def site(coordinator: Coordinator, tmp_path: Path) -> Site:
    enrolled = make_site(tmp_path / "s", "ward-1", invitation(coordinator), work=Work(), port=9100)
    coordinator.admit((enrolled.folder / "request.json").read_bytes(), source="r")
    return enrolled


def invitation(coordinator: Coordinator) -> Invitation:
    return read_invitation(coordinator.folder / "invitation.json")


def roster(coordinator: Coordinator) -> bytes:
    return (coordinator.folder / "roster.signed.json").read_bytes()


@contextmanager
def answering(coordinator: Coordinator, answer: Answer) -> Iterator[None]:
    """A server with the coordinator's certificate; ``answer`` gets every connection after its request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(coordinator.folder / "keys" / "server.pem")
    listener = socket.create_server(("127.0.0.1", coordinator.settings.public.port))

    def serve() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(raw, server_side=True) as connection:
                    while b"\r\n\r\n" not in connection.recv(65536):
                        pass
                    answer(connection)
            except OSError:
                raw.close()  # the site has had enough

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def send_for_ever(piece: bytes, pause: float = 0.0) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return answer


def test_an_honest_answer_is_taken(coordinator: Coordinator, site: Site) -> None:
    with answering(coordinator, lambda c: c.sendall(HEAD + b"\r\n" + roster(coordinator))):
        found = make_contact(site, now)
    assert (found.status, found.fault, found.roster_version) == (200, "", 2)
    assert last_contact(site) == found


def test_an_endless_answer_is_cut(coordinator: Coordinator, site: Site) -> None:
    sent = 0

    def answer(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(HEAD + b"\r\n")
        while sent < 16 * MAX_BYTES:
            connection.sendall(bytes(1 << 20))
            sent += 1 << 20

    with answering(coordinator, answer):
        found = make_contact(site, now)
    assert found.fault == "the roster is too long"
    assert sent < 4 * MAX_BYTES


def test_nothing_is_unpacked(coordinator: Coordinator, site: Site) -> None:
    packed = gzip.compress(roster(coordinator))
    head = HEAD + b"Content-Encoding: gzip\r\n\r\n"
    with answering(coordinator, lambda c: c.sendall(head + packed)):
        assert "not canonical JSON" in make_contact(site, now).fault


@pytest.mark.parametrize("piece", [b"X: y\r\n", b"\r\n"])
def test_an_answer_that_drips_is_left(
    coordinator: Coordinator, site: Site, piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "TIMEOUT_S", 0.6)
    began = time.monotonic()
    with answering(coordinator, send_for_ever(piece, pause=0.1)):
        found = make_contact(site, now)
    assert "no answer" in found.fault
    assert time.monotonic() - began < 5


def test_who_asks_keeps_nobody_waiting(coordinator: Coordinator, site: Site) -> None:
    chore = keep_in_contact(site, now)
    with answering(coordinator, lambda c: time.sleep(1.0)):
        began = time.monotonic()
        chore()
        chore()
        assert time.monotonic() - began < 0.5
        until = time.monotonic() + 10
        while last_contact(site) is None and time.monotonic() < until:
            time.sleep(0.05)
    found = last_contact(site)
    assert found is not None
    assert "no answer" in found.fault


@pytest.mark.parametrize(
    ("ahead", "said"),
    [(timedelta(days=2), "not yet valid"), (timedelta(days=-400), "has expired")],
)
def test_a_certificate_of_another_time_is_said(tmp_path: Path, ahead: timedelta, said: str) -> None:
    coordinator = made(tmp_path / "c", now() + ahead)
    site = make_site(tmp_path / "s", "ward-1", invitation(coordinator), work=Work(), port=9100)
    with answering(coordinator, lambda c: None):
        found = make_contact(site, now)
    assert said in found.fault
    assert "compare the clocks" in found.fault
    assert found.status == 0


def test_another_machine_in_the_coordinators_place_is_said(
    coordinator: Coordinator, site: Site, tmp_path: Path
) -> None:
    other = made(tmp_path / "o", now())
    port = other.settings.public.port
    there = site.invitation.model_copy(update={"address": f"127.0.0.1:{port}"})
    (site.folder / "coordinator.json").write_text(there.model_dump_json())
    with answering(other, lambda c: None):
        assert "its certificate is refused" in make_contact(Site.open(site.folder), now).fault


def test_what_is_wrong_here_is_not_the_coordinators(coordinator: Coordinator, site: Site) -> None:
    good = HEAD + b"\r\n" + roster(coordinator)
    (site.folder / "roster.json").mkdir()  # stands for a disk that cannot be written
    with answering(coordinator, lambda c: c.sendall(good)):
        found = make_contact(site, now)
        assert "cannot be written" in found.fault
        (site.folder / "roster.json").rmdir()
        assert make_contact(site, now).fault == ""
        signed = site.folder / "roster.signed.json"
        signed.write_bytes(signed.read_bytes().replace(b"payload", b"palyoad", 1))
        found = make_contact(site, now)
    assert "roster.signed.json" in found.fault
    assert found.roster_version == 0
    assert last_contact(site) == found
