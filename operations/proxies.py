"""Proxies of the environment are for elsewhere: this machine asks itself without one.

httpx and urllib read ``no_proxy`` before ``NO_PROXY``, gRPC reads ``no_grpc_proxy`` before both: loopback is
added to each that counts, and what a user put there stays, spelled as httpx reads it: it ends a process at
what other programs take, a network of IPv6 addresses, brackets, letters beyond ASCII.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, MutableMapping
from urllib.parse import urlsplit

from protocol.errors import MachineError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
BRACKETED = re.compile(r"\[([^\]]*)\](?::\d*)?")
PLAIN = re.compile(
    r"(?:(?:all|https?)://)?[^/?#:@\[\]\x00-\x1f\x7f]{1,253}(?::(\d{1,5}))?(?:/\d+)?"
)


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Add loopback to what ``environment`` keeps from its proxies; for this process and those it starts."""
    hosts = _with_loopback(_value(environment, "no_proxy"))
    environment["no_proxy"] = environment["NO_PROXY"] = hosts
    if (own := _value(environment, "no_grpc_proxy")) is not None:
        environment["no_grpc_proxy"] = environment["NO_GRPC_PROXY"] = _with_loopback(own)


def verify_proxies(environment: Mapping[str, str]) -> None:
    """Every proxy is one that httpx can use: else it would end processes later on. Raises MachineError.

    The value is not shown: it may hold a password.
    """
    import httpx  # not with `fedge --help`

    for name in PROXIES:
        value = _value(environment, name) or ""
        try:
            parts = urlsplit(value if "://" in value else f"http://{value}")
            usable = not value or (parts.scheme in ("http", "https") and bool(parts.hostname))
            usable = usable and (parts.port is None or parts.port > 0)  # a port beyond 65535 raises
            if usable and value:
                httpx.Proxy(value if "://" in value else f"http://{value}")
        except (ValueError, httpx.InvalidURL):
            usable = False
        if not usable:
            raise MachineError(
                f"the variable `{name}` names no HTTP proxy",
                "set it to http://HOST:PORT, or unset it; other kinds, such as SOCKS, are not spoken",
            )


def _value(environment: Mapping[str, str], name: str) -> str | None:
    """The lower-case variable counts where both are set, as in Python and curl."""
    return environment.get(name, environment.get(name.upper()))


def _with_loopback(value: str | None) -> str:
    hosts = [host for host in map(_spared, (value or "").split(",")) if host]
    if hosts == ["*"]:  # no proxy at all; urllib knows it only by itself
        return "*"
    return ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])


def _spared(entry: str) -> str:
    """One entry of ``no_proxy`` as httpx reads it, or nothing: networks it knows none."""
    entry = entry.strip()
    bracketed = BRACKETED.fullmatch(entry)
    address = (bracketed[1] if bracketed else entry).partition("%")[0]
    try:
        network = ipaddress.IPv6Network(address, strict=False)
    except ValueError:
        pass
    else:
        return str(network.network_address) if network.num_addresses == 1 else ""
    if not entry.isascii():
        host = entry.lstrip("*.")
        try:
            entry = entry.removesuffix(host) + host.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    plain = PLAIN.fullmatch(entry)
    return entry if plain and int(plain[1] or 0) <= 65_535 else ""
