"""The RPCs about the maintenance of a cluster: status, collection, scrub, upgrade, backup."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import grpc

from awsomefsd.admin.grpc_errors import edge, fail
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Error
from awsomefsd.node.health.upgrade import Levels, Upgrade
from awsomefsd.node.maintenance.scrub import Scrub, ScrubProgress
from awsomefsd.recovery.backup import Backups

logger = logging.getLogger(__name__)


class Collecting(Protocol):
    """The collection of sparse segments on this node (node/maintenance/collection.py)."""

    def order(self, action: str) -> None:
        """Orders "start" or "stop", and returns at once.  Raises Refused for any other word."""

    def status(self) -> tuple[str, dict[str, int], str]:
        """Returns (state, figures by name, the last error or "")."""


class MaintenanceRpcs:
    """The RPCs about maintenance.  `status` makes the answer to GetStatus (status.py), which needs more of the daemon than the others."""

    def __init__(self, status: Callable[[], pb.Status], collection: Collecting, scrub: Scrub, upgrade: Upgrade, backups: Backups) -> None:
        self._status = status
        self._collection = collection
        self._scrub = scrub
        self._upgrade = upgrade
        self._backups = backups

    @edge
    def GetStatus(self, request: pb.GetStatusRequest, context: grpc.ServicerContext) -> pb.Status:
        return self._status()

    @edge
    def Collect(self, request: pb.CollectRequest, context: grpc.ServicerContext) -> pb.CollectReply:
        if request.action:
            self._collection.order(request.action)
            logger.info("collection ordered", extra={"action": request.action})
        state, figures, error = self._collection.status()
        return pb.CollectReply(state=state, figures=figures, last_error=error)

    @edge
    def ScrubStart(self, request: pb.ScrubStartRequest, context: grpc.ServicerContext) -> pb.Scrub:
        logger.info("scrub started", extra={"bytes_per_s": request.bytes_per_s})
        return scrub_message(self._scrub.start(request.bytes_per_s), self._scrub.due_ns())

    @edge
    def ScrubStatus(self, request: pb.ScrubStatusRequest, context: grpc.ServicerContext) -> pb.Scrub:
        return scrub_message(self._scrub.status(), self._scrub.due_ns())

    @edge
    def ScrubStop(self, request: pb.ScrubStopRequest, context: grpc.ServicerContext) -> pb.Scrub:
        logger.info("scrub stopped")
        return scrub_message(self._scrub.stop(), self._scrub.due_ns())

    @edge
    def GetUpgrade(self, request: pb.GetUpgradeRequest, context: grpc.ServicerContext) -> pb.UpgradeStatus:
        return upgrade_message(self._upgrade.status())

    @edge
    def FinalizeUpgrade(self, request: pb.FinalizeUpgradeRequest, context: grpc.ServicerContext) -> pb.UpgradeStatus:
        done = self._upgrade.finalize()
        logger.warning("the cluster's level was raised", extra={"level": done.level})
        return upgrade_message(done)

    def BackupMetadata(self, request: pb.BackupMetadataRequest, context: grpc.ServicerContext) -> Iterator[pb.BackupPiece]:
        try:
            for piece in self._backups.pieces():
                yield pb.BackupPiece(data=piece)
        except Error as err:
            fail(context, err)


def upgrade_message(found: Levels) -> pb.UpgradeStatus:
    nodes = [pb.NodeLevel(node=node.node, name=node.name, version=node.version, level=node.level) for node in found.nodes]
    return pb.UpgradeStatus(level=found.level, known=found.known, nodes=nodes)


def scrub_message(progress: ScrubProgress, due_ns: int) -> pb.Scrub:
    shown = [field.name for field in pb.Scrub.DESCRIPTOR.fields if field.name not in ("findings", "due_ns")]
    told = [field.name for field in pb.ScrubFinding.DESCRIPTOR.fields]
    findings = [pb.ScrubFinding(**{name: getattr(finding, name) for name in told}) for finding in progress.findings]
    return pb.Scrub(findings=findings, due_ns=due_ns, **{name: getattr(progress, name) for name in shown})
