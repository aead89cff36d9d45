"""The addresses and certificates with which a node's metadata service meets the other voters, from the files on its disk.

This is a module apart from membership.py, which a start needs later: nothing here imports trio or the loops.
"""

from __future__ import annotations

import logging

from awsomefsd.base.errors import ConfigError, Error
from awsomefsd.base.identity import Node
from awsomefsd.base.tls import TlsFiles
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.addresses import described, split_endpoint
from awsomefsd.cluster.membership.metadata_host import others_carry
from awsomefsd.cluster.resolver import Resolver
from awsomefsd.config.settings import Settings, parse_endpoint
from awsomefsd.meta.net.peers import Voters

log = logging.getLogger(__name__)
UNKNOWN = "0.0.0.0"  # nothing listens there under another node's certificate


def in_cluster(settings: Settings, identity: Node) -> bool:
    """Returns True if this node meets others: it has joined them, or it has a port by which they can; and no static list of voters."""
    joined = identity.role != "node" or not identity.founder
    return bool(joined or settings.metadata.listen) and reports(settings)


def reports(settings: Settings) -> bool:
    """Returns True if this node has a row that its reports are about: it has a certificate, and no static list of voters."""
    return not settings.metadata.voters and (settings.state_dir / "pki" / "node.pem").exists()


def cluster_voters(settings: Settings, identity: Node) -> Voters:
    """Returns the voters that the metadata service of this node starts with.  Raises ConfigError for certificates that cannot be used."""
    pki = settings.state_dir / "pki"
    tls = TlsFiles(pki / "ca.pem", pki / "node.pem", pki / "node.key")
    try:
        tls()
    except OSError as err:
        raise ConfigError(f"the certificates in {pki} cannot be used: {err}") from err
    known = _Known(settings, identity.node)
    listen = parse_endpoint(settings.metadata.listen)
    return Voters(known, listen, tls, frozenset(), lambda: not others_carry(settings.state_dir, identity.node), described(settings)[1])


class _Known:
    """The addresses of the nodes that carry the metadata, from endpoints.json, which is read when it has changed.

    Host names go through cluster/resolver.py.
    """

    def __init__(self, settings: Settings, node: str) -> None:
        self._settings = settings
        self._node = node
        self._stamp: tuple[int, int] = (-1, -1)
        self._places: dict[str, tuple[str, int]] = {}  # host and port as they are written
        self._names = Resolver()

    def __call__(self) -> dict[str, tuple[str, int]]:
        try:
            found = (self._settings.state_dir / endpoints.FILE).stat()
        except OSError:
            return self._now()
        if (stamp := (found.st_mtime_ns, found.st_ino)) != self._stamp:
            self._stamp = stamp
            self._read()
        return self._now()

    def _now(self) -> dict[str, tuple[str, int]]:
        found = {node: (self._names.address(host), port) for node, (host, port) in self._places.items()}
        # A node whose address is not known yet may talk to us all the same: it is dialled in vain, and its greeting has the address.
        return {node: (address or UNKNOWN, port) for node, (address, port) in found.items()}

    def _read(self) -> None:
        try:
            held = endpoints.read(self._settings.state_dir)
        except Error:
            return
        self._places = {}
        for one in held.values():
            if one.carries and one.metadata:
                try:
                    self._places[one.node] = split_endpoint(one.metadata)
                except ConfigError:
                    log.warning("node %s has no usable address: %s", one.name, one.metadata)
