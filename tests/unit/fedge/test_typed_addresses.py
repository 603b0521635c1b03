"""Every host, name and address that a person types is refused where it is typed, with what to write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.exceptions import UsageError
from cryptography import x509
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from audit.commands import app as audit_app
from base_model.commands import app as base_app
from delivery.release_commands import release
from edge_runtime.settings import read_device
from fedge.coordinators import app as coordinator_app
from fedge.sites import app as client_app
from operations.certificates import issue, make_authority
from operations.coordinator import LONGEST_NAME, Coordinator, make_coordinator
from operations.site import read_invitation
from protocol.addresses import endpoint_fault, host_fault, shown_address, title_fault, web_fault
from protocol.errors import ArtefactError, FedgeError, PlanError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BAD_HOSTS = [
    "https://fl.example.org",
    "http://u:p@fl.example.org:9440/x",
    "fl.example.org:9440",
    "[::1]",
    "[::1]:9440",
    "*.example.org",
    "*",
    "fl example.org",
    " fl.example.org",
    "fl.example.org\n",
    "fl.example.org/path",
    "u@fl.example.org",
    "",
    ".",
    "fl..example.org",
    "fl.example.org.",
    "-fl.example.org",
    "f" * 64 + ".org",
    ".".join(["f" * 60] * 5),
    "10.0.0.256",
    "10.0.1",
    "0x7f000001",
    "10.0.0.0X1",
    "fe80::1%eth0",
    "klinik-süd.example",
    "\x1b[2Jx",
]
GOOD_HOSTS = ["fl.example.org", "localhost", "10.0.0.1", "::1", "2001:db8::1", "my_service", "a-b"]
ANYWHERE = ["0.0.0.0", "::"]
BAD_URLS = [
    "ftp://h/x",
    "https://",
    "http://h:99999",
    "http://h:x",
    "http://[::1",
    "https://u:secret@h/x",
    "https://h/x?token=secret",
    "https://h/x#y",
    "https://*.h/x",
    "https://h h/x",
    "https://h/a\x00b",
    "https://h/\u202e",
    "https://[v1.abc]/",
    "https://0x7f000001/",
    "https:///x",
]
BAD_NAMES = ["", " ", "\x07", "Krankenhäuser " * 4, "x" * (LONGEST_NAME + 1), "ü" * 30, "a\nb"]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_a_good_host_makes_a_certificate_and_an_invitation(host: str, tmp_path: Path) -> None:
    assert host_fault(host) == "" == endpoint_fault(f"[{host}]:1" if ":" in host else f"{host}:1")
    made = coordinator(tmp_path / "c", host)
    assert read_invitation(made.folder / "invitation.json").address == made.address


def coordinator(folder: Path, host: str, name: str = "t", address: str = "::") -> Coordinator:
    return make_coordinator(
        folder, [host], name=name, ports=(9440, 9441, 9442), address=address, now=NOW
    )


@pytest.mark.parametrize("host", [*BAD_HOSTS, *ANYWHERE])
def test_a_bad_host_is_refused_at_every_door(host: str, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(PlanError, match="--host"):
        coordinator(new, host)
    error = invoked(coordinator_app, "init", str(new), "--host", "h", "--host", host)
    assert "--host" in error
    assert not new.exists()
    if host not in ANYWHERE:
        with pytest.raises(PlanError, match="--address"):
            coordinator(new, "h", address=host)
        listened = host.startswith("[") or "--listen" in invoked(
            audit_app, "witness", "--log", "x", "--listen", f"{host}:80"
        )
        assert listened
    made = coordinator(new, "h.example")
    invitation = new / "invitation.json"
    body = json.loads(invitation.read_text())
    invitation.write_text(json.dumps(body | {"address": f"{host}:9440"}))
    if not host.startswith("["):
        with pytest.raises(FedgeError, match="`address`"):
            read_invitation(invitation)
    config = made.folder / "config.toml"
    config.write_text(config.read_text().replace('"h.example"', json.dumps(host)))
    with pytest.raises(FedgeError, match=r"config\.toml"):
        Coordinator.open(new)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_certificate_can_bear_is_refused_first(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--name"):
        coordinator(tmp_path / "new", "h", name)
    assert not (tmp_path / "new").exists()
    made = coordinator(tmp_path / "c", "h", "x" * LONGEST_NAME)
    config = made.folder / "config.toml"
    config.write_text(config.read_text().replace("x" * LONGEST_NAME, json.dumps(name)[1:-1]))
    with pytest.raises(FedgeError, match=r"config\.toml"):
        Coordinator.open(made.folder)
    command = ("enrol", str(tmp_path / "s"), "--name", name)
    told = invoked(client_app, *command, "--invitation", str(made.folder / "invitation.json"))
    assert "--name" in told or "name" in told
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["a b", "a+b", "x" * 129, "\x07"])
def test_a_witness_of_no_name_makes_no_key(name: str, tmp_path: Path) -> None:
    places = ("--identity", str(tmp_path / "key"), "--state", str(tmp_path / "state"))
    assert "--new" in invoked(audit_app, "witness", "--new", name, *places)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_web_address_is_refused_at_every_door(url: str, tmp_path: Path) -> None:
    made = coordinator(tmp_path / "c", "h")
    enrol = ("enrol", str(tmp_path / "s"), "--name", "w", "--from", url)
    doors: dict[str, Callable[[], str]] = {
        "enrol": lambda: invoked(
            client_app, *enrol, "--invitation", str(made.folder / "invitation.json")
        ),
        "fetch": lambda: invoked(
            base_app, "fetch", "0" * 64, "--from", url, "--into", str(tmp_path / "cache")
        ),
        "audit": lambda: invoked(audit_app, "verify", url),
        "release": lambda: raised(
            lambda: release(tmp_path, tmp_path, tmp_path / "rows", witnesses=[url])
        ),
        "device": lambda: raised(lambda: read_device(device_file(tmp_path, url))),
    }
    for door, said in doors.items():
        text = said()
        assert re.search("address|port|query|password|star|blank", text), (door, text)
        assert "secret" not in text, door
    assert not (tmp_path / "s").exists()


def device_file(folder: Path, url: str) -> Path:
    path = folder / "device.toml"
    plain = dict.fromkeys(("id", "name", "root", "trust", "base", "store", "probe"), "x")
    settings = plain | {"repository": url}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return path


def invoked(app: object, *arguments: str) -> str:
    """What a command said when it refused; it must refuse."""
    result = CliRunner().invoke(app, arguments)  # type: ignore[arg-type]
    assert result.exit_code != 0, result.output
    assert result.exception is None or isinstance(
        result.exception, (FedgeError, UsageError, SystemExit)
    ), repr(result.exception)
    return f"{result.output} {result.exception}"


def raised(call: Callable[[], object]) -> str:
    with pytest.raises((PlanError, ArtefactError)) as caught:
        call()
    return str(caught.value)


AUTHORITY = make_authority("fedge t", now=NOW)


@given(st.text(st.characters(), max_size=80))
@example("0x7f.1")
def test_whatever_passes_can_be_certified(text: str) -> None:
    if not host_fault(text):
        made = issue(AUTHORITY, [text], now=NOW)
        names = x509.load_pem_x509_certificate(made.certificate).extensions
        assert names.get_extension_for_class(x509.SubjectAlternativeName)
    if not title_fault(text, most=LONGEST_NAME):
        make_authority(f"fedge {text}", now=NOW)
    for fault in (endpoint_fault, web_fault, shown_address):
        assert isinstance(fault(text), str)


@pytest.mark.parametrize("text", ["[a]:80", "[1.2.3.4]:80", "[]:80", "::1:80"])
def test_brackets_are_for_ipv6(text: str) -> None:
    assert "is not HOST:PORT" in endpoint_fault(text)
