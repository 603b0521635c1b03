"""Proxies of the environment are for elsewhere: this machine asks itself without one.

httpx and urllib read ``no_proxy`` before ``NO_PROXY``, gRPC reads ``no_grpc_proxy`` before both: loopback is
added to each that counts, and what a user put there stays.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from urllib.parse import urlsplit

from protocol.errors import MachineError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


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
    for name in PROXIES:
        value = _value(environment, name) or ""
        try:
            parts = urlsplit(value if "://" in value else f"http://{value}")
            usable = not value or (parts.scheme in ("http", "https") and bool(parts.hostname))
            usable = usable and (parts.port is None or parts.port > 0)  # a port beyond 65535 raises
        except ValueError:
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
    hosts = [host.strip() for host in (value or "").split(",") if host.strip()]
    if hosts == ["*"]:  # no proxy at all; urllib knows it only by itself
        return "*"
    return ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])
