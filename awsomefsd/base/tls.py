"""TLS between nodes: contexts out of the node's PEM files, read again when a file changes.

TLS is version 1.3 only, with a certificate on both sides, and no session tickets: every connection makes a full handshake.  Renewal and
rotation replace files; connections that are open go on, the next ones use the files of that moment.  Certificate and key are two files, so
between their replacements they do not fit: until they do, the contexts before stay in use, and the reason is logged once.

The protocol name (ALPN) says the purpose of a connection: a voter's and a client's come to the same port, and what a segment server speaks
is offered and accepted on its port only.  A server's certificate must
name the UUID of the node that was dialled as its DNS name, so that no member can stand in for another; a client's certificate says who
dials.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awsomefsd.base.limits import PEM_BYTES_MAX

PEER_PROTOCOL = "awsomefs-peer/1"
CLIENT_PROTOCOL = "awsomefs-client/1"
SEGMENT_PROTOCOL = "awsomefs-segment/1"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """The contexts of a node: `server` for nodes that dial us; `peer` and `client` for nodes that we dial, as a voter or as a client.

    `segment_server` and `segment_client`: the two sides of a connection to a segment server.
    """

    server: ssl.SSLContext
    peer: ssl.SSLContext
    client: ssl.SSLContext
    segment_server: ssl.SSLContext
    segment_client: ssl.SSLContext


TlsNow = Callable[[], Tls]  # called for every connection; raises OSError (ssl.SSLError is one) until the files were usable once


@dataclass(frozen=True)
class PeerIdentity:
    """The node that a certificate names: its UUID, and its role "node" or "client" ("" in a certificate without a role)."""

    node: str
    role: str


def contexts(configure: Callable[[ssl.SSLContext], None]) -> Tls:
    """Returns the contexts; `configure` loads trust and certificate into each.  Raises what `configure` raises."""
    made = []
    for side, protocols in (
        (ssl.PROTOCOL_TLS_SERVER, [PEER_PROTOCOL, CLIENT_PROTOCOL]),
        (ssl.PROTOCOL_TLS_CLIENT, [PEER_PROTOCOL]),
        (ssl.PROTOCOL_TLS_CLIENT, [CLIENT_PROTOCOL]),
        (ssl.PROTOCOL_TLS_SERVER, [SEGMENT_PROTOCOL]),
        (ssl.PROTOCOL_TLS_CLIENT, [SEGMENT_PROTOCOL]),
    ):
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(protocols)
        if side == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0
        configure(context)
        made.append(context)
    return Tls(*made)


def identity_of(certificate: dict[str, Any] | None) -> PeerIdentity | None:
    """Returns the identity in a verified certificate (of SSLSocket.getpeercert); None unless it names exactly one node."""
    if not certificate:
        return None
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    units = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "organizationalUnitName"]
    if len(names) != 1:
        return None
    return PeerIdentity(str(names[0]), units[0] if len(units) == 1 and units[0] in ("node", "client") else "")


class TlsFiles:
    """The three PEM files of a node, as a TlsNow.  Any thread may call it."""

    def __init__(self, ca: Path | str, certificate: Path | str, key: Path | str) -> None:
        self.paths = (str(ca), str(certificate), str(key))
        self._lock = threading.Lock()
        self._seen: tuple[Any, ...] = ()
        self._tls: Tls | None = None
        self._error: OSError | None = None
        self.loads = 0

    def __call__(self) -> Tls:
        """Returns the contexts of the present files, or the ones before while the files cannot be used.

        Blocks for a stat of each file, and for reading them when one has changed.  Raises OSError until the files were usable once.
        """
        with self._lock:
            self._look()
            if self._tls is not None:
                return self._tls
            assert self._error is not None
            raise self._error

    def _look(self) -> None:
        try:
            seen = tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, self.paths))
        except OSError as err:
            self._failed(err)
            return
        if seen == self._seen:
            return
        self._seen = seen
        ca, certificate, key = self.paths

        def configure(context: ssl.SSLContext) -> None:
            context.load_verify_locations(ca)
            context.load_cert_chain(certificate, key, password=_no_password)

        try:
            if any(size > PEM_BYTES_MAX for _, _, size in seen):
                raise OSError(f"a certificate or key file has more than {PEM_BYTES_MAX} bytes")
            self._tls = contexts(configure)
        except OSError as err:
            self._failed(err)
        else:
            self.loads += 1
            self._error = None

    def _failed(self, err: OSError) -> None:
        if str(err) != str(self._error):
            what = "the ones before stay in use" if self._tls is not None else "no node can be reached"
            log.warning("certificates cannot be used: %s; %s", err, what, extra={"files": ", ".join(self.paths)})
        self._error = err


def _no_password() -> str:
    """Refuses an encrypted key, whose password OpenSSL would ask for on the terminal."""
    raise OSError("the private key is encrypted; awsomefsd needs it unencrypted, with mode 0600")
