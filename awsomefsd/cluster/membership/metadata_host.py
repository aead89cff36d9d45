"""The metadata service of this node, or none: it runs while the node carries the metadata, and is started and stopped by order.

The files of a node decide whether it begins with one: journal or state on its disk; else the list of nodes that it holds, if it is in
it; else whether it founded the cluster.  An order to stop comes when the node is no member any more, so nothing is lost: journal and
state are set aside, never used again, and a later order begins with a fresh journal under another incarnation.

`founds` keeps a node whose directory was lost from beginning a second, empty cluster beside the others: only a founder that knows of no
other node that carries the metadata does.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from awsomefsd.base.errors import Error, Refused, Unavailable
from awsomefsd.base.identity import Node
from awsomefsd.base.wait import Signal
from awsomefsd.cluster import endpoints
from awsomefsd.meta.api.messages import Body, Reply
from awsomefsd.meta.replica.state_snapshot_files import set_aside
from awsomefsd.meta.server.service import MetadataService

log = logging.getLogger(__name__)


def has_state(directory: Path) -> bool:
    """Returns True if there is a journal or a state of this node.  Another thread may be setting them aside meanwhile."""
    held = (directory / "store" / "data.mdb", directory / "store.ready")
    try:
        journals = os.listdir(directory / "journal")
    except FileNotFoundError:
        journals = []
    return any(name.endswith(".journal") for name in journals) or any(path.exists() for path in held)


def others_carry(state_dir: Path, node: str) -> bool:
    """Returns True if another node carries the metadata, as far as this node knows."""
    return any(found.carries and found.node != node for found in _known(state_dir).values())


def begins(state_dir: Path, identity: Node) -> bool:
    """Returns True if this node carries the metadata from its start on."""
    if has_state(state_dir / "meta"):
        return True
    mine = _known(state_dir).get(identity.node)
    return mine.carries if mine is not None else identity.founder and identity.role == "node"


def _known(state_dir: Path) -> dict[str, endpoints.Endpoint]:
    try:
        return endpoints.read(state_dir)
    except Error:
        return {}  # a hint; who is who is proved


class MetadataHost:
    """The host of this node's metadata service.  Any thread.  `make` builds a service that has not been started."""

    def __init__(self, directory: Path, make: Callable[[], MetadataService]) -> None:
        self._directory = directory
        self._make = make
        self._lock = threading.Lock()
        self._service: MetadataService | None = None
        self.failed = Signal()  # the service ended by itself, with `error`

    @property
    def service(self) -> MetadataService | None:
        return self._service

    @property
    def carries(self) -> bool:
        return self._service is not None

    @property
    def alone(self) -> bool:
        """True if this node is one voter without others."""
        service = self._service
        return service is not None and service.alone

    @property
    def leads(self) -> bool:
        """True if this node decides the metadata now, alone or as the leader of several."""
        service = self._service
        return service is not None and service.leads

    @property
    def applied(self) -> int:
        """The index of the newest entry that this node's own service has applied, a moment ago; 0 without one."""
        service = self._service
        return 0 if service is None else service.applied

    @property
    def error(self) -> BaseException | None:
        """The error with which the service ended by itself; None if it did not."""
        service = self._service
        return service.error if service is not None and service.failed.done else None

    def start(self) -> None:
        """Starts the service if there is none.  Blocks until it is ready, and raises what MetadataService.start raises."""
        with self._lock:
            if self._service is None:
                service = self._make()
                service.start()
                self._service = service
                service.failed.start(lambda _value, _error: self.failed.fire())

    def meet_others(self) -> None:
        """Makes the service anew if it does not listen for other nodes: it was made before this node had a certificate.

        Blocks as `stop` and `start`, and raises as `start`.
        """
        if self._service is not None and not self._service.meets_others:
            self.stop()
            self.start()

    def carry(self, wanted: bool) -> None:
        """Follows an order: starts the service, or stops it and sets its files aside.  Blocks.

        Raises as `start`, and Refused for an order to stop the only voter.
        """
        if wanted and not self.carries:
            log.info("this node carries the metadata from now on")
            self.start()
        elif not wanted and self.carries:
            if self.alone:
                raise Refused("this node was told to give up the metadata, but it is the only one that has it; it keeps it")
            log.info("this node carries the metadata no longer; its journal and state are set aside")
            self.stop()
            set_aside(self._directory)

    def hand_over(self) -> None:
        """Lets another voter lead, before a clean stop.  Blocks as MetadataService.hand_over."""
        service = self._service
        if service is not None:
            service.hand_over()

    def stop(self) -> None:
        """Stops the service, if there is one.  Blocks until it has ended."""
        with self._lock:
            service, self._service = self._service, None
        if service is not None:
            service.stop()

    def query(self, body: Body, timeout_s: float) -> Reply:
        """Returns the reply of this node's own metadata service.  Blocks; any thread.  Raises Unavailable if this node carries none."""
        service = self._service
        if service is None:
            raise Unavailable("this node carries no metadata")
        return service.query(body, timeout_s)

    def copy_store(self, path: Path) -> None:
        self._present().copy_store(path)

    def copy_pages(self, path: Path) -> None:
        self._present().copy_pages(path)

    def _present(self) -> MetadataService:
        service = self._service
        if service is None:
            raise Unavailable("this node carries no metadata; run the command on a node that does (`awsomefsd node ls` lists them)")
        return service
