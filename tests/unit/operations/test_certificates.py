"""Certificates at the wrong time: a year later, or made by a clock that was wrong."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import create_connection, create_server

import pytest
from cryptography import x509

from operations import coordinator as coordinator_module
from operations.certificates import ALWAYS, issue, make_authority, validity
from operations.coordinator import Coordinator, make_coordinator
from operations.site import Site, Work, make_site, read_invitation
from protocol.errors import MachineError
from storage.locks import locked

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    return make_coordinator(
        tmp_path / "c", ["a.example"], name="t", ports=(1, 2, 3), address="::", now=NOW
    )


@pytest.fixture
def site(coordinator: Coordinator, tmp_path: Path) -> Site:
    invitation = read_invitation(coordinator.folder / "invitation.json")
    return make_site(tmp_path / "s", "ward-1", invitation, work=Work(), port=9100)


def shakes_hands(folder: Path) -> None:
    """A site's own certificate is accepted by its own authority."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "keys" / "local.pem")
    client = ssl.create_default_context(cafile=folder / "keys" / "local-ca.crt")
    with create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with server.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            create_connection(listener.getsockname()) as raw,
            client.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(b"x")
        thread.join()


def test_a_sites_own_certificate_never_ends(site: Site) -> None:
    keys = site.folder / "keys"
    for name in ("local.pem", "local-ca.crt"):
        assert validity((keys / name).read_bytes()) == ALWAYS
    assert not site.renew_certificate()
    shakes_hands(site.folder)


def test_one_that_ends_is_replaced(site: Site) -> None:
    """As earlier versions made them: after a year no message was answered any more."""
    keys = site.folder / "keys"
    authority = make_authority("old", now=NOW)
    served = issue(authority, ["127.0.0.1"], now=NOW)
    (keys / "local-ca.crt").write_bytes(authority.certificate)
    (keys / "local.pem").write_bytes(served.certificate + served.key)
    assert site.renew_certificate()
    assert (keys / "local.pem").stat().st_mode & 0o077 == 0
    assert not site.renew_certificate()
    shakes_hands(site.folder)


def test_a_certificate_of_a_clock_that_was_ahead_is_replaced(coordinator: Coordinator) -> None:
    assert coordinator.renew_certificate(NOW + timedelta(days=4000))  # the clock is wrong
    assert coordinator.renew_certificate(NOW)  # and right again
    begins, ends = validity((coordinator.folder / "keys" / "server.pem").read_bytes())
    assert begins < NOW < ends
    assert validity(make_authority("a", now=NOW + timedelta(days=9)).certificate)[0] < NOW
    assert not coordinator.renew_certificate(NOW + timedelta(hours=1))


def test_a_coordinator_that_runs_for_a_year_takes_a_new_certificate(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_module, "RENEW_EVERY_S", 0.0)
    link = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    entry = {"pid": link.pid, "restarts": 0, "last_exit": None}
    text = json.dumps({"pid": os.getpid(), "components": {"superlink": entry}})
    (coordinator.state / "status.json").write_text(text)
    at = NOW + timedelta(days=200)
    chore = coordinator.keep_certificate(lambda: at)
    try:
        with locked(coordinator.state / "supervisor.lock"):
            chore()
            assert link.poll() is None
            at = NOW + timedelta(days=350)
            chore()
        assert link.wait(10) < 0  # the supervisor starts it again
    finally:
        link.kill()
        link.wait()
    assert not coordinator.renew_certificate(at)


@pytest.mark.parametrize("name", ['a "b" \\c', "näme", "🙂", "x" * 58])
def test_any_name_can_be_written_into_settings(tmp_path: Path, name: str) -> None:
    made = make_coordinator(
        tmp_path / "c", ["a.example"], name=name, ports=(1, 2, 3), address="::", now=NOW
    )
    assert made.settings.name == name
    ca = x509.load_pem_x509_certificate(made.authority)
    assert ca.subject.rfc4514_string().startswith("CN=fedge")
    invitation = read_invitation(made.folder / "invitation.json")
    work = Work(data=f"/d/{name}", mirrors=[f"/m/{name}", "https://a.example/x"])
    site = make_site(tmp_path / "s", "ward-1", invitation, work=work, port=9100)
    assert site.settings.work == work


@pytest.mark.parametrize("authority", ["ä", "", "-----BEGIN CERTIFICATE-----\n!\n"])
def test_an_invitation_without_a_certificate_makes_nothing(
    coordinator: Coordinator, tmp_path: Path, authority: str
) -> None:
    path = coordinator.folder / "invitation.json"
    text = json.loads(path.read_text()) | {"authority": authority}
    path.write_text(json.dumps(text))
    with pytest.raises(MachineError, match="not an invitation"):
        read_invitation(path)
