"""The RPCs about snapshots of volumes."""

from __future__ import annotations

import logging

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.types import SNAPSHOT_WORDS, SnapshotInfo
from awsomefsd.node.snapshots import SnapshotCatalog

logger = logging.getLogger(__name__)


class SnapshotRpcs:
    """The RPCs about snapshots: each translates, calls one collaborator, and translates back."""

    def __init__(self, snapshots: SnapshotCatalog) -> None:
        self._snapshots = snapshots

    @edge
    def CreateSnapshots(self, request: pb.CreateSnapshotsRequest, context: grpc.ServicerContext) -> pb.SnapshotsReply:
        volumes = list(request.volumes)
        made = self._snapshots.create(volumes, request.name, crash_consistent=request.crash_consistent)
        logger.info("snapshot made", extra={"volumes": volumes, "snapshot": request.name})
        return pb.SnapshotsReply(snapshots=[snapshot_message(name, info) for name, info in zip(volumes, made, strict=True)])

    @edge
    def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext) -> pb.SnapshotsReply:
        volume, found = self._snapshots.all(request.volume)
        return pb.SnapshotsReply(snapshots=[snapshot_message(volume.name, info) for info in found])

    @edge
    def DeleteSnapshot(self, request: pb.DeleteSnapshotRequest, context: grpc.ServicerContext) -> pb.Snapshot:
        gone = self._snapshots.delete(request.volume, request.name)
        logger.warning("snapshot deleted", extra={"volume": request.volume, "snapshot": request.name})
        return snapshot_message(request.volume, gone)


def snapshot_message(volume: str, info: SnapshotInfo) -> pb.Snapshot:
    """Returns a snapshot as the API shows it."""
    return pb.Snapshot(
        volume=volume, name=info.name, number=info.snapshot, uuid=info.uuid, created_ns=info.time_ns, word=SNAPSHOT_WORDS[info.word],
        used_bytes=info.used_bytes, used_inodes=info.used_inodes, freed_bytes=info.freed_bytes,
    )  # fmt: skip
