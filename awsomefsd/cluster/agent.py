"""What a node tells the leader about itself every NODE_REPORT_MS, and what it does with the orders that come back.

    the list of nodes        → endpoints.json, for whoever has nobody to ask
    the trusted authorities  → pki/ca.pem
    carry                    → the metadata service of this node is started, or stopped and set aside

A leader that cannot be reached changes nothing: a node goes on with what it was told last.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd import __version__, levels
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.addresses import described
from awsomefsd.cluster.founder import node_name
from awsomefsd.cluster.host import MetadataHost
from awsomefsd.config import Settings, parse_labels
from awsomefsd.errors import FsError
from awsomefsd.meta.node_messages import NodeOrders, NodeReport
from awsomefsd.meta.nodes import WAS_REMOVED
from awsomefsd.node import Node, boot_id

log = logging.getLogger(__name__)


class Agent:
    """`call` asks whoever leads (access.MetaAccess).  `renew`: called when a new certificate is to be got now.  One thread uses it."""

    def __init__(
        self,
        settings: Settings,
        identity: Node,
        call: Callable[[Any], Any],
        host: MetadataHost,
        renew: Callable[[], None] = lambda: None,
        issuer: Callable[[], str] = lambda: "",
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._call = call
        self._host = host
        self._renew = renew
        self._issuer = issuer
        self._boot_id = boot_id()
        self._told: list[Any] = []
        self._hashed = ("", "")  # bundle, and its hash
        self.orders: NodeOrders | None = None

    def look(self) -> None:
        """One report.  Raises Unavailable while nobody leads, and what starting the service raises."""
        try:
            orders = self._call(self.report())
        except FsError as err:
            if err.errno in (errno.EPERM, errno.EACCES) and WAS_REMOVED in str(err):
                self._removed(str(err))
            raise
        self.orders = orders
        if orders.nodes and orders.nodes != self._told:
            endpoints.write(self._settings.state_dir, self._identity.cluster, orders.nodes)
            self._told = orders.nodes
        self._keep_bundle(orders.ca_bundle)
        self._host.carry(orders.carry)
        if orders.renew:
            self._renew()

    def report(self) -> NodeReport:
        settings = self._settings
        control, metadata = described(settings)
        return NodeReport(
            self._identity.node, self._boot_id, __version__, levels.supported(), node_name(settings), control, metadata,
            parse_labels(settings.cluster.labels), self._host.carries, self._bundle_hash(), self._issuer(),
        )  # fmt: skip

    def _removed(self, why: str) -> None:
        if self._host.carries:
            log.error("this node carries the metadata no longer: %s", why)
            self._host.carry(False)

    @property
    def _bundle(self) -> Path:
        return self._settings.state_dir / "pki" / "ca.pem"

    def _bundle_hash(self) -> str:
        """Of the authorities that this node trusts; counted again only when they change."""
        try:
            pem = self._bundle.read_text()
        except FileNotFoundError:
            return ""
        if pem != self._hashed[0]:
            from awsomefsd.cluster.ca import bundle_hash

            self._hashed = (pem, bundle_hash(pem))
        return self._hashed[1]

    def _keep_bundle(self, pem: str) -> None:
        if pem and pem != self._hashed[0]:
            from awsomefsd.cluster.pki_files import PkiFiles

            PkiFiles(self._settings.state_dir).write_bundle(pem)
