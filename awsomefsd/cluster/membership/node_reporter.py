"""The report that a node sends to the leader every NODE_REPORT_MS, and the orders that come back.

    the list of nodes        → endpoints.json, for a start without contact
    the trusted authorities  → pki/ca.pem
    carry                    → the metadata service of this node is started, or stopped and set aside

A leader that cannot be reached changes nothing: the node keeps its last orders.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any

from awsomefsd import __version__
from awsomefsd.base import levels
from awsomefsd.base.errors import WAS_REMOVED, FsError
from awsomefsd.base.identity import Node, boot_id
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.addresses import described
from awsomefsd.cluster.control.service import own_certificate
from awsomefsd.cluster.founding.founder import node_name
from awsomefsd.cluster.membership.metadata_host import MetadataHost
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import Settings, parse_labels
from awsomefsd.meta.api.messages.nodes import NodeOrders, NodeReport

log = logging.getLogger(__name__)


class NodeReporter:
    """The reporter of one node, used by one thread; others may read `orders`, `removed` and `state()`.  `call` asks the leader."""

    def __init__(
        self,
        settings: Settings,
        identity: Node,
        call: Callable[[Any], Any],
        host: MetadataHost,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._call = call
        self._host = host
        self._boot_id = boot_id()
        self._told: list[Any] = []
        self.orders: NodeOrders | None = None
        self.told_s = 0.0  # when the orders came, time.monotonic
        self.removed = ""  # why this node is no member any more

    def poll(self) -> None:
        """Sends one report and follows the orders.  Blocks.

        Raises Unavailable while no node leads, FsError for a report that is refused, and what starting the service raises.
        """
        try:
            orders = self._call(self.report())
        except FsError as err:
            if err.errno in (errno.EPERM, errno.EACCES) and WAS_REMOVED in str(err):
                self._removed(str(err))
            raise
        self.orders, self.told_s, self.removed = orders, time.monotonic(), ""
        if orders.nodes and orders.nodes != self._told:
            endpoints.write(self._settings.state_dir, self._identity.cluster, orders.nodes)
            self._told = orders.nodes
        self._keep_bundle(orders.ca_bundle)
        self._host.carry(orders.carry)

    def state(self) -> str:
        """Returns this node's state by the last orders, "" before the first."""
        return self.orders.state if self.orders is not None else ""

    def report(self) -> NodeReport:
        settings = self._settings
        control, metadata = described(settings)
        return NodeReport(
            self._identity.node, self._boot_id, __version__, levels.supported(), node_name(settings), control, metadata,
            parse_labels(settings.cluster.labels), self._host.carries, *own_certificate(settings.state_dir), time.time_ns() // NS_PER_MS,
        )  # fmt: skip

    def _removed(self, why: str) -> None:
        self.removed = why
        if self._host.carries:
            log.error("this node carries the metadata no longer: %s", why)
            self._host.carry(False)

    def _keep_bundle(self, pem: str) -> None:
        files = PkiFiles(self._settings.state_dir)
        if pem and files.there() and pem != files.read_bundle():
            files.write_bundle(pem)
