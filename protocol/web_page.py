"""Web pages that come in place of a file: of a network that wants a login, a portal, a server's own error.

Nobody attacks there: whoever asked is told to sign in or to correct the address, not to keep evidence.
"""

from __future__ import annotations

from http.client import responses

from protocol.addresses import shown_address
from protocol.errors import printable, shortened

PEEK = 512  # bytes of a body that are enough to tell
LONGEST_STEP, LONGEST_TARGET = 24, 200  # characters, of a name in a path and of an address
REMEDY = (
    "sign in where this network asks for it, or correct the address: a web page is no file of ours"
)
_TYPES = ("text/html", "application/xhtml+xml")
_BEGINNINGS = (b"<!doctype html", b"<html", b"<head", b"<script", b"<meta ")


def page_fault(status: int, content_type: str | None, head: bytes) -> str:
    """What came in place of a file, when it is a web page; else nothing. ``head``: the body's beginning.

    A type alone does not decide: some servers call every file they do not know a page.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    tag = text[:1] == b"<" and (text[1:2].isalpha() or text[1:2] in (b"!", b"?"))
    if not (text.startswith(_BEGINNINGS) or (kind in _TYPES and tag)):
        return ""
    return printable(f"a web page came in place of a file (HTTP {status}, {kind or 'of no type'})")


def redirect_fault(status: int, location: str | None) -> str:
    """Where an answer leads to, without what may be secret in it, when it leads anywhere; else nothing."""
    if not 300 <= status < 400 or status == 304:
        return ""
    where = f" to {_shown_target(location)}" if location else ""
    return printable(f"it leads elsewhere{where} (HTTP {status} {responses.get(status, '')})")


def _shown_target(location: str) -> str:
    """Where a stranger leads to, in a length to read: a session's number in the path is nobody's business."""
    scheme, mark, rest = shown_address(location).rpartition("://")
    host, *steps = rest.split("/")
    names = (step.partition(";")[0] for step in steps)
    steps = [name if len(name) <= LONGEST_STEP else "\u2026" for name in names]
    return shortened("/".join([f"{scheme}{mark}{host}", *steps]), LONGEST_TARGET)
