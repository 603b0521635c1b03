"""A coordinator's folder: settings, keys, the signed roster, and the processes it is made of.

config.toml          names and ports; which of them is public
invitation.json      what sites are given
roster.json          names and identities, for plans and rounds (P-6.12)
roster.signed.json   the same with node keys and a version, signed by the operator (P-10.2)
keys/                the CA, the server's certificate, the operator's key, tokens of the processes
state/               Flower's database, the supervisor's lock, status and log
runs/                runs, where `fedge run` puts them
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from operations import flower
from operations.certificates import Pair, issue, make_authority, validity
from operations.folders import (
    CONFIG,
    HOME,
    KEYS,
    PROGRAMS,
    STATE,
    WORK,
    Invitation,
    Section,
    new_folder,
    new_signing_key,
    read_settings,
    read_signing_key,
    toml_text,
    write_secret,
)
from operations.supervisor import Component, processes_of
from protocol.addresses import CERTIFIED, host_fault, title_fault
from protocol.documents import json_as
from protocol.enrolment import (
    MAX_BYTES,
    SignedRoster,
    Site,
    sign_roster,
    verify_request,
    verify_roster,
)
from protocol.errors import ArtefactError, MachineError, PlanError
from storage.locks import locked
from storage.whole import PRIVATE, write_whole

INVITATION, ROSTER, SIGNED = "invitation.json", "roster.json", "roster.signed.json"
CA, CA_KEY = "ca.crt", "ca.key"
SERVER = "server.pem"  # certificate and key in one file: one rename renews both
OPERATOR, SECRET, TOKEN = "operator.key", "superexec.secret", "control.token"
RUNS, LINK, TURN = "runs", "link.json", "turn.lock"
TURN_S = 30.0
RENEW, RENEW_EVERY_S = timedelta(days=30), 3600.0
LINK_PROCESS = "superlink"
LONGEST_NAME = CERTIFIED - len("fedge ")  # bytes
LOOPBACK = ["localhost", "127.0.0.1"]


def _faultless(fault: Callable[[str], str]) -> AfterValidator:
    def check(text: str) -> str:
        if cause := fault(text):
            raise ValueError(f"{text[:80]!r} {cause}")
        return text

    return AfterValidator(check)


listener_fault = partial(host_fault, anywhere=True)
name_fault = partial(title_fault, most=LONGEST_NAME)


class Public(Section):
    """What sites reach."""

    # In the certificate; the first is told to sites.
    hosts: list[Annotated[str, _faultless(host_fault)]] = Field(min_length=1)
    address: Annotated[str, _faultless(listener_fault)] = "0.0.0.0"  # noqa: S104 - sites are elsewhere; the gate decides what they reach
    port: int = Field(default=9440, ge=1, le=65535)


class Private(Section):
    """What stays on loopback."""

    port: int = Field(default=9441, ge=1, le=65535)
    metrics_port: int = Field(default=9442, ge=1, le=65535)


class Limits(Section):
    """What one request of a node may cost."""

    request_bytes: int = Field(default=64 << 20, ge=1 << 20)


class CoordinatorSettings(Section):
    """``config.toml``."""

    format: int = Field(default=1, ge=1, le=1)
    name: Annotated[str, _faultless(name_fault)]
    public: Public
    private: Private = Private()
    limits: Limits = Limits()


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """An opened folder, by its full path."""

    folder: Path
    settings: CoordinatorSettings

    @classmethod
    def open(cls, folder: Path) -> Coordinator:
        """Raises MachineError for a folder that is none, or with wrong settings."""
        folder = folder.resolve()
        return cls(folder=folder, settings=read_settings(folder / CONFIG, CoordinatorSettings))

    @property
    def state(self) -> Path:
        """Where the supervisor keeps its lock, status and log."""
        return self.folder / STATE

    @property
    def roster_file(self) -> Path:
        """The roster that runs are started with."""
        return self.folder / ROSTER

    @property
    def authority(self) -> bytes:
        """The CA's certificate."""
        return (self.folder / KEYS / CA).read_bytes()

    @property
    def token(self) -> str:
        """What the Control API asks for."""
        return (self.folder / KEYS / TOKEN).read_text("ascii").strip()

    def roster(self) -> SignedRoster:
        """The roster as it stands, verified. Raises ProofError."""
        path = self.folder / SIGNED
        if path.stat().st_size > MAX_BYTES:
            raise ArtefactError(f"{path} is too large", "restore it")
        return verify_roster(path.read_bytes(), self._operator(), least=1, source=str(path))

    def write_roster(self) -> list[str]:
        """Make ``roster.json`` what the signed roster says; the names of the sites that it lists."""
        with self.turn():
            return self._write_roster()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Of those who change files here, one after the other. Raises MachineError."""
        with locked(self.state / TURN, seconds=TURN_S) as acquired:
            if not acquired:
                raise MachineError(f"{self.folder}: another command is at work", "wait for it")
            yield

    def _write_roster(self) -> list[str]:
        roster = self.roster()
        if text := roster.render():
            write_whole(self.roster_file, text.encode())
        else:
            self.roster_file.unlink(missing_ok=True)
        return [site.name for site in roster.sites]

    @property
    def address(self) -> str:
        """Where its own settings say that sites reach it."""
        return _with_port(self.settings.public.hosts[0], self.settings.public.port)

    def told_elsewhere(self) -> str | None:
        """The address in the invitation, when it is another: behind a proxy that may well be right."""
        announced = self._invitation().address
        return None if announced == self.address else announced

    def _invitation(self) -> Invitation:
        return json_as(Invitation, (self.folder / INVITATION).read_bytes())

    def _operator(self) -> bytes:
        return bytes.fromhex(self._invitation().operator)

    def admit(self, request: bytes, *, source: str, key: Path | None = None) -> Site:
        """Take a site into the roster. Raises ProofError, or PlanError when its name or keys are taken."""
        site = verify_request(request, source=source)
        with self.turn():
            roster = self.roster()
            for enrolled in roster.sites:
                if enrolled == site:
                    raise PlanError(
                        f"{source}: {site.name} is enrolled already", "nothing is to be done"
                    )
                if enrolled.name == site.name:
                    raise PlanError(
                        f"{source}: another site is enrolled as {site.name}",
                        f"remove it first: fedge coordinator remove {site.name}",
                    )
            self._sign(roster.version + 1, (*roster.sites, site), key)
        return site

    def remove(self, name: str, *, key: Path | None = None) -> None:
        """Take a site out of the roster. Raises PlanError when it is not in it."""
        with self.turn():
            roster = self.roster()
            remaining = tuple(site for site in roster.sites if site.name != name)
            if len(remaining) == len(roster.sites):
                names = ", ".join(site.name for site in roster.sites) or "nobody"
                raise PlanError(f"there is no site {name}", f"enrolled are: {names}")
            self._sign(roster.version + 1, remaining, key)

    def _sign(self, version: int, sites: tuple[Site, ...], key: Path | None) -> None:
        """Another version of the signed roster, and the plain one from it."""
        signer = read_signing_key(key or self.folder / KEYS / OPERATOR)
        if signer.public_key().public_bytes_raw() != self._operator():
            raise PlanError(
                "this key is not the operator's", "name the key whose public half sites were given"
            )
        write_whole(self.folder / SIGNED, sign_roster(version, sites, signer))
        self._write_roster()

    def renew_certificate(self, now: datetime) -> bool:
        """Another server certificate when the present one is about to end; whether one was made.

        Or when it does not hold yet: then this clock was ahead.
        """
        keys = self.folder / KEYS
        begins, ends = validity((keys / SERVER).read_bytes())
        if begins <= now and ends - now > RENEW:
            return False
        pair = Pair(certificate=self.authority, key=(keys / CA_KEY).read_bytes())
        renewed = issue(pair, [*self.settings.public.hosts, *LOOPBACK], now=now)
        write_whole(keys / SERVER, renewed.certificate + renewed.key, mode=PRIVATE)
        return True

    def keep_certificate(self, now: Callable[[], datetime]) -> Callable[[], None]:
        """A chore for the supervisor: once an hour; the SuperLink is started again with a new one."""
        due = time.monotonic() + RENEW_EVERY_S

        def chore() -> None:
            nonlocal due
            if time.monotonic() < due:
                return
            due = time.monotonic() + RENEW_EVERY_S
            if self.renew_certificate(now()):
                for process in processes_of(self.state):
                    if process.name == LINK_PROCESS and process.pid:
                        os.kill(process.pid, signal.SIGTERM)

        return chore

    def components(self) -> list[Component]:
        """The processes: the SuperLink behind its gate, and the one that starts apps."""
        keys, private = self.folder / KEYS, self.settings.private
        link = self.state / LINK
        write_whole(link, self._link_settings().encode())
        programs = self.folder / PROGRAMS  # Flower looks programs up by name, and finds none
        environment = flower.environment(self.folder / HOME, programs)
        work = flower.work_of(f"127.0.0.1:{private.port}", keys / CA, keys / SECRET)
        return [
            Component(
                name=LINK_PROCESS,
                command=flower.module("server.link", str(link)),
                environment=environment,
            ),
            Component(
                name="superexec",
                command=flower.module("server.apps", *work),
                environment=environment,
            ),
        ]

    def _link_settings(self) -> str:
        from server.link import LinkSettings

        keys, public = self.folder / KEYS, self.settings.public
        return LinkSettings(
            public_address=public.address,
            public_port=public.port,
            private_port=self.settings.private.port,
            database=str(self.state / "link.db"),
            certificate=str(keys / SERVER),
            key=str(keys / SERVER),
            authority=str(keys / CA),
            superexec_secret=str(keys / SECRET),
            control_token=str(keys / TOKEN),
            roster=str(self.folder / SIGNED),
            operator=self._operator().hex(),
            request_bytes=self.settings.limits.request_bytes,
        ).model_dump_json(indent=1)

    @property
    def work(self) -> Path:
        """The neutral folder in which processes run."""
        return self.folder / WORK


def make_coordinator(
    folder: Path,
    hosts: list[str],
    *,
    name: str,
    ports: tuple[int, int, int],
    address: str,
    now: datetime,
) -> Coordinator:
    """A new folder with its authority, certificate, keys and an empty roster.

    ``hosts`` are the names by which sites reach it, ``ports`` the public, private and metrics port.
    Raises ArtefactError when the folder has something in it, PlanError for a repeated port.
    """
    if len(set(ports)) != 3:
        raise PlanError("two ports are the same", "name three different ports")
    _verify_typed(hosts, address, name)
    authority = make_authority(f"fedge {name}", now=now)
    server = issue(authority, [*hosts, *LOOPBACK], now=now)
    folder = new_folder(folder)
    keys = folder / KEYS
    operator, public = new_signing_key()
    for path, secret in (
        (CA_KEY, authority.key),
        (SERVER, server.certificate + server.key),
        (OPERATOR, operator),
        (SECRET, os.urandom(32)),
        (TOKEN, secrets.token_hex(32).encode()),
    ):
        write_secret(keys / path, secret)
    write_whole(keys / CA, authority.certificate)
    invitation = Invitation(
        name=name,
        address=_with_port(hosts[0], ports[0]),
        authority=authority.certificate.decode("ascii"),
        operator=public,
    )
    write_whole(folder / INVITATION, invitation.model_dump_json(indent=1).encode() + b"\n")
    signer = read_signing_key(keys / OPERATOR)
    write_whole(folder / SIGNED, sign_roster(1, (), signer))
    (folder / RUNS).mkdir()
    write_whole(folder / CONFIG, _config(name, hosts, address, ports).encode())
    return Coordinator.open(folder)


def _verify_typed(hosts: list[str], address: str, name: str) -> None:
    options = [("--host", host, host_fault(host)) for host in hosts]
    options += [("--address", address, listener_fault(address)), ("--name", name, name_fault(name))]
    for option, text, fault in options:
        if fault:
            raise PlanError(f"{option} {text[:80]!r} {fault}", f"correct {option}")


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _config(name: str, hosts: list[str], address: str, ports: tuple[int, int, int]) -> str:
    return f"""# A coordinator of fedge. Restart it after a change.
format = 1
name = {toml_text(name)}

[public]                # the one port that sites reach: open it in the firewall
hosts = [{", ".join(map(toml_text, hosts))}]   # in the certificate
address = {toml_text(address)}
port = {ports[0]}

[private]               # loopback only: leave both closed
port = {ports[1]}
metrics_port = {ports[2]}

[limits]
request_bytes = {64 << 20}   # of one request of a site
"""
