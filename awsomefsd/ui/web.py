"""Requests to the page and its answers, as values.  Pure.

Every answer has the headers that keep browsers from doing more than the page needs: scripts and styles of this address only, no frame, no
guess at a type, no copy on disk.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageRequest(NamedTuple):
    """A request whose head was read whole.  `headers` have names in lower case; `address` is the other side's; `secure`: it came by TLS."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    address: str
    secure: bool

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def cookies(self) -> dict[str, str]:
        pairs = (part.strip().partition("=") for part in self.headers.get("cookie", "").split(";"))
        return {name: value for name, _, value in pairs if name}


class PageResponse(NamedTuple):
    status: int
    kind: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def html(body: bytes, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> PageResponse:
    return PageResponse(status, "text/html; charset=utf-8", body, tuple(headers))


def plain(status: int, words: str, headers: Iterable[tuple[str, str]] = ()) -> PageResponse:
    return PageResponse(status, "text/plain; charset=utf-8", f"{words}\n".encode(errors="replace"), tuple(headers))


def as_json(value: Any, status: int = 200) -> PageResponse:
    return PageResponse(status, "application/json", json.dumps(value).encode())


def see(place: str, headers: Iterable[tuple[str, str]] = ()) -> PageResponse:
    """Returns the answer that has a browser get another page."""
    return plain(303, place, [("Location", place), *headers])


def host_fits(host: str, names: frozenset[str]) -> bool:
    """Returns True if a Host header names an IP address, or one of `names` (lower case).

    A page elsewhere can have its own name lead to this address (DNS rebinding), and then reads what we answer to that name.  It cannot
    be at an address of ours.
    """
    name, _, port = host.lower().rpartition(":") if not host.endswith("]") and ":" in host else (host.lower(), "", "")
    if port and not (port.isascii() and port.isdecimal()):
        return False
    if name in names:
        return True
    bracketed = name.startswith("[") and name.endswith("]")
    try:
        return ipaddress.ip_address(name[1:-1] if bracketed else name).version == (6 if bracketed else 4)
    except ValueError:
        return False


def same_origin(request: PageRequest) -> bool:
    """Returns True unless a browser says that a request comes from another page than ours."""
    site, origin = request.headers.get("sec-fetch-site", "none"), request.headers.get("origin")
    ours = f"{'https' if request.secure else 'http'}://{request.headers['host']}"
    return site in ("same-origin", "none") and origin in (None, ours)
