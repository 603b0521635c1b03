"""Names of hosts and web addresses as people type them: each is checked where it is typed.

A certificate, an invitation or a settings file with a name that nobody can reach fails elsewhere, later, and
at somebody else's.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
HEXADECIMAL = re.compile(r"0[xX][0-9A-Fa-f]*")
LONGEST_HOST = 253
CERTIFIED = 64  # bytes of a name in a certificate (RFC 5280, ub-common-name)


def host_fault(text: str, *, anywhere: bool = False) -> str:
    """What keeps ``text`` from being a host's name or IP address, with what to write; or nothing.

    ``anywhere``: the address that stands for all of a machine's (``0.0.0.0``, ``::``) is meant as well.
    """
    bare = text.strip()
    if "://" in bare:
        inner = bare.partition("://")[2].partition("/")[0].rpartition("@")[2]
        return f"has a scheme: write the host alone{_such_as(inner.partition(':')[0])}"
    if not text or any(char.isspace() or not char.isprintable() for char in text):
        return f"has a blank in it, or is empty: write the host alone{_such_as(bare)}"
    if "*" in text:
        return "has a star: name each host by itself"
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return _name_fault(text)
    if "%" in text:
        return "has a zone, which holds on one machine only: name an address without `%`"
    if address.is_unspecified and not anywhere:
        return "is no machine's own address: name the one that others reach"
    return ""


def _name_fault(text: str) -> str:
    host, colon, _ = text.rpartition(":")
    if text.startswith("["):
        return f"has brackets: write the address alone{_such_as(text[1:].partition(']')[0])}"
    if colon and "/" not in text:
        return f"has a port, which another option names: write the host alone{_such_as(host)}"
    if "/" in text or "@" in text:
        return "has a path or a user in it: write the host alone"
    if not text.isascii():
        return "has letters beyond ASCII: write it as the network knows it, with `xn--`"
    labels = text.split(".")
    if len(text) > LONGEST_HOST or not all(LABEL.fullmatch(label) for label in labels):
        return (
            "is no name of a host: letters, digits and `-` between dots, up to 63 each and "
            f"{LONGEST_HOST} in all"
        )
    if labels[-1].isdecimal() or HEXADECIMAL.fullmatch(labels[-1]):  # browsers and curl read both
        return "is no IPv4 address: four numbers up to 255"
    return ""


def _such_as(host: str) -> str:
    plain = host.isprintable() and not any(char.isspace() for char in host) and "://" not in host
    return f", {host}" if host and plain and not host_fault(host) else ""


def endpoint_fault(text: str, *, anywhere: bool = False, free_port: bool = False) -> str:
    """What keeps ``text`` from being HOST:PORT, with ``[…]`` around an IPv6 address; or nothing.

    ``free_port``: port 0 is meant as well.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if "://" in text or not colon or (":" in bare) != bracketed:
        return "is not HOST:PORT, such as example.org:9440 or [::1]:9440"
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65_535):
        return "has no port up to 65535 behind the colon"
    if int(port) == 0 and not free_port:
        return "has port 0, where nobody listens"
    return host_fault(bare, anywhere=anywhere)


def web_fault(text: str) -> str:
    """What keeps ``text`` from being an http or https address below which files or calls are; or nothing."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "is no web address: write https://host/folder"
    if parts.scheme not in ("http", "https"):
        return "is no web address: write http://… or https://…"
    if "@" in parts.netloc:
        return "has a user or a password in it, which would be shown: write https://host/folder"
    if parts.query or parts.fragment or any(char.isspace() for char in text):
        return "has a query, a fragment or a blank in it: write https://host/folder"
    if not text.isprintable():
        return "is no web address: it has characters that cannot be shown"
    if port == 0:
        return "has port 0, where nobody listens"
    if not parts.hostname:
        return "is no web address: there is no host in it"
    if parts.netloc.startswith("[") and ":" not in parts.hostname:
        return "has brackets, which are for IPv6 addresses: write https://host/folder"
    return host_fault(parts.hostname)


def shown_address(text: str) -> str:
    """A web address for a message: without a user, a password, a query, a fragment."""
    try:
        parts = urlsplit(text)
        if not parts.netloc:
            return parts.path.rpartition("@")[2]
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    except ValueError:
        return "an address that cannot be read"


def title_fault(text: str, *, most: int) -> str:
    """What keeps ``text`` from being a name in a certificate of ``most`` bytes of UTF-8; or nothing."""
    if not text.strip() or not text.isprintable():
        return "is empty, or has characters that cannot be shown"
    size = len(text.encode("utf-8", "replace"))
    if size > most:
        return f"has {size} bytes in UTF-8: a certificate has room for {most}"
    return ""
