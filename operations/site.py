"""A site's folder: its keys, what it agreed to, and the processes it is made of.

config.toml          name, data, plan, base; the port of its own processes, on loopback
bases/               the base, when it is named by its fingerprint
coordinator.json     the operator's invitation
request.json         what the operator is sent: public keys and name, signed (P-10.1)
roster.json          names and identities, taken from the newest signed roster
roster.signed.json   that roster
keys/                identity and node key; they never leave. A certificate for loopback
state/               the supervisor's lock, status and log; what was last heard of the coordinator
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from client.node import INSTANCE
from client.settings import FINGERPRINT
from operations import flower
from operations.certificates import ALWAYS, make_local, validity
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
    toml_text,
    write_secret,
)
from operations.supervisor import Component
from protocol.addresses import endpoint_fault
from protocol.documents import json_as, parse_toml, value_as
from protocol.enrolment import NAME, NAME_FORM, make_request
from protocol.errors import ArtefactError, MachineError, PlanError
from protocol.plan import Plan, plan_from_text
from protocol.recipe import Recipe
from protocol.section import MOST_MEMORY, MOST_THREADS
from storage.regular import read_settings_text
from storage.whole import PRIVATE, write_whole

INVITED, REQUEST, BASES = "coordinator.json", "request.json", "bases"
ROSTER, SIGNED = "roster.json", "roster.signed.json"
IDENTITY, NODE_KEY, SECRET = "identity.key", "node.key", "superexec.secret"
PLAN_LINE = re.compile(r'(?m)^(plan\s*=\s*)"(?:[^"\\\n]|\\.)*"(?!")')
WHERE = "correct the path in config.toml"
AUTHORITY, LOCAL_CA, LOCAL = "coordinator.crt", "local-ca.crt", "local.pem"


class Work(Section):
    """What this site trains on, and what it agreed to. Paths start from the folder."""

    data: str = ""
    plan: str = ""
    base: str = ""  # a folder, or a fingerprint that is fetched from the mirrors
    mirrors: list[str] = Field(default_factory=list)
    threads: int = Field(default=0, ge=0, le=MOST_THREADS)
    expand_mib: int = Field(default=0, ge=0, le=MOST_MEMORY)
    max_epsilon: float | None = Field(default=None, gt=0)


class SiteSettings(Section):
    """``config.toml``."""

    format: int = Field(default=1, ge=1, le=1)
    name: str
    port: int = Field(ge=1, le=65535)  # of its own processes, on loopback
    work: Work = Work()


@dataclass(frozen=True, kw_only=True)
class Site:
    """An opened folder, by its full path; ``instance`` tells this opening of it from that of a copy."""

    folder: Path
    settings: SiteSettings
    invitation: Invitation
    instance: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Raises MachineError for a folder that is none, or with wrong settings."""
        folder = folder.resolve()
        settings = read_settings(folder / CONFIG, SiteSettings)
        return cls(folder=folder, settings=settings, invitation=read_invitation(folder / INVITED))

    @property
    def state(self) -> Path:
        """Where the supervisor keeps its lock, status and log."""
        return self.folder / STATE

    @property
    def work(self) -> Path:
        """The neutral folder in which processes run."""
        return self.folder / WORK

    @property
    def fetches(self) -> bool:
        """Whether the base is named by its fingerprint."""
        return FINGERPRINT.fullmatch(self.settings.work.base) is not None

    @property
    def base(self) -> Path:
        """The base's folder; under ``bases`` when it is fetched."""
        work = self.settings.work
        return self.folder / BASES / work.base if self.fetches else self.folder / work.base

    def verify_ready(self) -> None:
        """Everything that a round needs is named and there. Raises PlanError, MachineError."""
        for key in ("data", "plan", "base"):
            value = getattr(self.settings.work, key)
            if not value:
                raise PlanError(
                    f"{self.folder / CONFIG}: `work.{key}` is not set", f"name this site's {key}"
                )
            if not (key == "base" and self.fetches) and not (self.folder / value).exists():
                raise MachineError(
                    f"{self.folder / CONFIG}: `work.{key}`: {value} is not there",
                    "correct the path",
                )

    def agree(self, plan: Path) -> Plan:
        """Name another plan in ``config.toml``; the rest of the file stays. That plan.

        Raises what :meth:`verify_ready` and :meth:`verify_fits` raise, then nothing is written; MachineError
        for a file without a plain line for the plan.
        """
        path, named = self.folder / CONFIG, toml_text(str(plan.resolve()))
        changed = PLAN_LINE.sub(lambda found: found[1] + named, read_settings_text(path))
        work = self.settings.work.model_copy(update={"plan": str(plan.resolve())})
        settings = self.settings.model_copy(update={"work": work})
        try:
            clear = value_as(SiteSettings, parse_toml(changed)) == settings
        except ValueError:
            clear = False
        if not clear:
            cause = f"{path}: it is not clear where the plan is named"
            raise MachineError(cause, f"write plan = {named} below [work]")
        agreed = replace(self, settings=settings)
        agreed.verify_ready()
        found = agreed.verify_fits()
        write_whole(path, changed.encode())
        return found

    def verify_fits(self) -> Plan:
        """Plan, base and rows fit each other: else the first round would be the one to say so.

        Raises PlanError, ArtefactError, DataError.
        """
        from base_model.verify import read_manifest

        work = self.settings.work
        source = self.folder / work.plan
        try:
            plan = plan_from_text(read_settings_text(source), source=str(source))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"{source}: cannot be read ({type(error).__name__})", WHERE) from None
        mine = work.base if self.fetches else read_manifest(self.base).fingerprint
        if mine != plan.base.fingerprint:
            raise ArtefactError(
                f"{self.folder / CONFIG}: `work.base` is base {mine[:12]}…, the plan {source} is for "
                f"base {plan.base.fingerprint[:12]}…",
                "name the plan's base, or the plan that was agreed on",
            )
        if not self.fetches:
            Recipe(plan=plan, manifest=read_manifest(self.base)).verify_settings()
        plan.task.rows(self.folder / work.data)
        return plan

    def renew_certificate(self) -> bool:
        """Replace a certificate for loopback that ends, as earlier versions made them."""
        keys = self.folder / KEYS
        if validity((keys / LOCAL).read_bytes()) == ALWAYS:
            return False
        write_local(keys, self.settings.name)
        return True

    def components(self) -> list[Component]:
        """The processes: Flower's SuperNode, and the one that starts the app for every message."""
        keys = self.folder / KEYS
        address = f"127.0.0.1:{self.settings.port}"
        nothing = self.folder / PROGRAMS  # Flower looks programs up by name, and finds none
        environment = flower.environment(self.folder / HOME, nothing)
        node = [
            *flower.module("client.node", "supernode", "--superlink", self.invitation.address),
            *("--root-certificates", str(keys / AUTHORITY)),
            *("--auth-supernode-private-key", str(keys / NODE_KEY)),
            *("--host", "127.0.0.1", "--port", str(self.settings.port)),
            *("--ssl-certfile", str(keys / LOCAL), "--ssl-keyfile", str(keys / LOCAL)),
            *("--ssl-ca-certfile", str(keys / LOCAL_CA)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(keys / SECRET)),
            *("--node-config", self._node_config()),
        ]
        apps = flower.work_of(address, keys / LOCAL_CA, keys / SECRET)
        # What one of them knows of a message is lost with it: the other would wait for a minute.
        return [
            Component(
                name="supernode",
                command=node,
                environment=environment | {INSTANCE: self.instance},
                takes_along=("apps",),
            ),
            Component(
                name="apps",
                command=[*flower.module("client.node", "apps"), *apps],
                environment=environment,
                takes_along=("supernode",),
            ),
        ]

    def _node_config(self) -> str:
        """The settings of ``client.app``, in Flower's form."""
        work, keys = self.settings.work, self.folder / KEYS
        paths = {
            "data-path": self.folder / work.data,
            "plan": self.folder / work.plan,
            "base": self.base,
            "identity": keys / IDENTITY,
            "roster": self.folder / ROSTER,
            "sessions": self.state / "sessions",
            "programs": self.state / "programs",
        }
        for name, path in paths.items():
            if '"' in str(path) or "\\" in str(path):
                raise MachineError(f"`{name}`: {path} has a quote in it", "use another path")
        settings = [f'client-id="{self.settings.name}"', f"threads={work.threads}"]
        settings.append(f"expand-mib={work.expand_mib}")
        settings += [f'{name}="{path}"' for name, path in paths.items()]
        if work.max_epsilon is not None:
            settings.append(f'max-epsilon="{work.max_epsilon!r}"')
        return " ".join(settings)


def make_site(
    folder: Path,
    name: str,
    invitation: Invitation,
    *,
    work: Work,
    port: int,
) -> Site:
    """A new folder with this site's keys and the request that goes to the operator.

    Raises ArtefactError when the folder has something in it, PlanError for a name of another form.
    """
    if not NAME.fullmatch(name):
        raise PlanError(f"the name {name!r} is not {NAME_FORM}", "choose another --name")
    identity, _ = new_signing_key()
    node_key = ec.generate_private_key(ec.SECP384R1())
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(identity.decode()))
    request = make_request(name, signer, node_key)
    folder = new_folder(folder)
    keys = folder / KEYS
    write_secret(keys / IDENTITY, identity)
    write_secret(
        keys / NODE_KEY,
        node_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    write_secret(keys / SECRET, os.urandom(32))
    write_local(keys, name)
    write_whole(keys / AUTHORITY, invitation.authority.encode("ascii"))
    write_whole(folder / INVITED, invitation.model_dump_json(indent=1).encode() + b"\n")
    write_whole(folder / REQUEST, request)
    write_whole(folder / CONFIG, _config(name, port, work).encode())
    return Site.open(folder)


def write_local(keys: Path, name: str) -> None:
    """The certificate of a site's own processes; the authority first, so that a cut is noticed."""
    authority, served = make_local(f"fedge site {name}")
    write_whole(keys / LOCAL_CA, authority)
    write_whole(keys / LOCAL, served.certificate + served.key, mode=PRIVATE)


def read_invitation(path: Path) -> Invitation:
    """An operator's invitation. Raises MachineError."""
    try:
        invitation = json_as(Invitation, read_settings_text(path))
        x509.load_pem_x509_certificate(invitation.authority.encode("ascii"))
    except OSError as error:
        raise MachineError(
            f"{path}: cannot be read: {error.strerror}", "name the operator's invitation.json"
        ) from None
    except ValueError:
        raise MachineError(f"{path}: not an invitation", "ask the operator for it again") from None
    if fault := endpoint_fault(invitation.address):
        raise MachineError(
            f"{path}: `address` {invitation.address[:80]!r} {fault}",
            "ask the operator, whose `fedge coordinator init --host` names it; or correct this file",
        )
    return invitation


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's node key. Raises MachineError that shows nothing of it."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError):
        raise MachineError(f"{path}: not a node key", "restore it, or enrol anew") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MachineError(f"{path}: not a node key", "restore it, or enrol anew")
    return key


def _config(name: str, port: int, work: Work) -> str:
    lines = [
        "# A site of fedge. Restart it after a change. Paths start from this folder.",
        "format = 1",
        f"name = {toml_text(name)}",
        f"port = {port}               # of its own processes, on loopback",
        "",
        "[work]",
        f"data = {toml_text(work.data)}   # rows that stay here",
        f"plan = {toml_text(work.plan)}   # what this site agreed to",
        f"base = {toml_text(work.base)}   # the model: a folder, or a fingerprint to be fetched",
        f"mirrors = [{', '.join(map(toml_text, work.mirrors))}]   # folders and addresses to fetch it from",
        f"threads = {work.threads}            # 0: as many as there are cores",
        f"expand_mib = {work.expand_mib}   # memory for weights as floats: faster steps of few rows",
    ]
    if work.max_epsilon is not None:
        lines.append(f"max_epsilon = {work.max_epsilon!r}   # over all runs, at delta 1e-6")
    return "\n".join(lines) + "\n"
