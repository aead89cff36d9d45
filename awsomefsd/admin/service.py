"""The service of admin.proto: one object for gRPC, made of parts with one subject each.

Each RPC is a method of exactly one part: it translates, calls one collaborator, and translates back.  The methods run on gRPC's threads,
which may block.  Domain errors become a status in one place (grpc_errors.py); any other error is a bug of ours, logged with its trace and
answered INTERNAL.
"""

from __future__ import annotations

from awsomefsd.admin.cluster_service import ClusterRpcs
from awsomefsd.admin.device_service import DeviceRpcs
from awsomefsd.admin.maintenance_service import MaintenanceRpcs
from awsomefsd.admin.mount_service import MountRpcs
from awsomefsd.admin.observe_service import ObserveRpcs
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.pb import admin_pb2_grpc
from awsomefsd.admin.pool_service import PoolRpcs
from awsomefsd.admin.snapshot_service import SnapshotRpcs
from awsomefsd.admin.store_service import StoreRpcs
from awsomefsd.admin.stream_service import StreamRpcs
from awsomefsd.admin.ui_service import UiRpcs
from awsomefsd.admin.volume_service import VolumeRpcs


class AdminService(admin_pb2_grpc.AdminServicer):
    """The service, complete when constructed: every RPC is a method of exactly one part."""

    def __init__(
        self,
        cluster: ClusterRpcs,
        devices: DeviceRpcs,
        volumes: VolumeRpcs,
        mounts: MountRpcs,
        maintenance: MaintenanceRpcs,
        streams: StreamRpcs,
        observe: ObserveRpcs,
        page: UiRpcs,
        stores: StoreRpcs,
        pools: PoolRpcs,
        snapshots: SnapshotRpcs,
    ) -> None:
        parts = (cluster, devices, volumes, mounts, maintenance, streams, observe, page, stores, pools, snapshots)
        for method in pb.DESCRIPTOR.services_by_name["Admin"].methods:
            (rpc,) = (found for part in parts if (found := getattr(part, method.name, None)) is not None)
            setattr(self, method.name, rpc)
