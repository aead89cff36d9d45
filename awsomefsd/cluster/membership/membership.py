"""The tasks that keep a node in its cluster: its reports, and on the leader the choice of voters.

There are two loops (node_reporter.py, membership_driver.py), each on a thread of its own while it works, so that neither waits for the
other's answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from awsomefsd.base.clock import common_moment
from awsomefsd.base.errors import Error
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import MANAGER_MS, NODE_REPORT_MS
from awsomefsd.cluster.membership.membership_driver import MembershipDriver
from awsomefsd.cluster.membership.metadata_host import MetadataHost
from awsomefsd.cluster.membership.node_reporter import NodeReporter
from awsomefsd.config.settings import Settings

log = logging.getLogger(__name__)


class MembershipTasks:
    """The two loops of a node.  `call` asks the leader.  `grown` is called before one voter alone becomes the first of several."""

    def __init__(
        self, settings: Settings, identity: Node, call: Callable[[Any], Any], host: MetadataHost, grown: Callable[[], None]
    ) -> None:
        self.reporter = NodeReporter(settings, identity, call, host)
        self._host = host
        self._driver = MembershipDriver(host, settings.cluster.voter_replace_after * 1_000, grown)

    def applied(self) -> int:
        """Returns how far the log is, as far as this node knows: of its own service, else of the last orders; 0 if it does not know.

        Any thread.  It may be behind, and comes after.
        """
        orders = self.reporter.orders
        return self._host.applied or (0 if orders is None else orders.applied)

    async def run(self) -> None:
        """Runs both loops until cancelled.  No Error or OSError ends it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.report)
            driver = self._driver
            nursery.start_soon(again, driver.poll, MANAGER_MS, "the membership of the metadata cannot be looked at", driver.due)

    async def report(self) -> None:
        """Runs the reports only, until cancelled: a node that meets no others tells its own service which build it is."""
        await again(self.reporter.poll, NODE_REPORT_MS, "this node has no orders from a leader now")


async def again(poll: Callable[[], object], pause_ms: int, trouble: str, due: Callable[[], bool] = lambda: True) -> None:
    """Calls `poll` on a thread every `pause_ms` until cancelled; logs an Error or OSError once for each new reason.

    Not while `due` says, without blocking, that there is nothing to do: that saves the thread.
    """
    said = ""
    while True:
        try:
            if due():
                await trio.to_thread.run_sync(poll, abandon_on_cancel=True)
        except (Error, OSError) as err:
            if str(err) != said:
                said = str(err)
                log.warning("%s", trouble, extra={"reason": said})
        else:
            said = ""
        await trio.sleep_until(common_moment(trio.current_time(), pause_ms))
