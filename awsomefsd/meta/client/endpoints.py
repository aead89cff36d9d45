"""Finds where a client of the metadata may ask: the socket of its own daemon first, then the metadata ports of the nodes that carry it.

An endpoint is a text: the path of a unix socket, or "UUID@HOST:PORT", the node that must prove itself there.  The other nodes come from
state_dir/endpoints.json, which the daemon keeps, and which is read again whenever a connection is to be made: nobody can be asked then.
A file that cannot be read, or is not what it should be, leaves the places as they were: where to ask is a hint, who answers is proved.

What leads to this node itself is asked through its socket: cheaper, and it needs no certificate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awsomefsd.base.tls import TlsNow

ENDPOINTS_NAME = "endpoints.json"
_BYTES_MAX = 1 << 20


def endpoint_of(node: str, address: str) -> str:
    """Returns the endpoint of a node's metadata port.

    An address that is no HOST:PORT is an endpoint by itself (a socket, a place in the simulator).
    """
    return f"{node}@{address}" if node and ":" in address and "@" not in address else address


def split(endpoint: str) -> tuple[str, str, int]:
    """Returns (node, host, port) of an endpoint.  Raises ConnectionRefusedError for what is none."""
    node, at, address = endpoint.partition("@")
    host, _, port = address.rpartition(":")
    if not (at and node and host and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise ConnectionRefusedError(f"{endpoint} is not the path of a socket or the address of a node")
    return node, host.strip("[]"), int(port)


class Endpoints:
    """`fixed`: node → address, of a static configuration.  `tls` makes the source of certificates when one is needed first."""

    def __init__(
        self,
        local: Path | str,
        *,
        node: str = "",
        file: Path | str = "",
        fixed: Mapping[str, str] | None = None,
        tls: Callable[[], TlsNow] | None = None,
    ) -> None:
        self._local = str(local)
        self._node = node
        self._file = str(file)
        self._nodes = dict(fixed or {})
        self._make_tls = tls
        self._tls: TlsNow | None = None

    def now(self) -> list[str]:
        """Returns all endpoints, in the order in which to try."""
        self._read()
        return [self._local, *(endpoint_of(node, address) for node, address in sorted(self._nodes.items()) if node != self._node)]

    def resolve(self, endpoint: str) -> str:
        """Returns where to connect for that endpoint."""
        return self._local if self._node and endpoint.startswith(self._node + "@") else endpoint

    def tls(self) -> TlsNow:
        """Returns the source of certificates.  Raises OSError where there are none."""
        if self._tls is None:
            if self._make_tls is None:
                raise ConnectionRefusedError("this client has no certificate, so it can only ask its own node")
            self._tls = self._make_tls()
        return self._tls

    def _read(self) -> None:
        if not self._file:
            return
        try:
            with open(self._file, "rb") as file:
                value: Any = json.loads(file.read(_BYTES_MAX))
            nodes = {node: one["metadata"] for node, one in value["nodes"].items() if one["carries"] and one["metadata"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return
        if all(isinstance(address, str) for address in nodes.values()):
            self._nodes = nodes


class OnThisHost(Endpoints):
    """Endpoints that are sockets of this host, for tests and tools."""

    def __init__(self, paths: Sequence[Path | str]) -> None:
        super().__init__(paths[0])
        self._paths = [str(path) for path in paths]

    def now(self) -> list[str]:
        return self._paths
