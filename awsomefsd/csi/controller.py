"""The CSI controller service: it makes, changes, lists and deletes volumes.  Every node answers it; state is in the metadata only.

CreateVolume is idempotent by name: the record that one entry makes together with the volume is found again, and compared with the present
request.  A directory of a shared volume is only recorded here and made by the node that first stages it: creating mounts nothing.
Deleting one has to: its files are removed through a mount of this node.
"""

from __future__ import annotations

import errno
import logging
import uuid
from typing import Protocol

import grpc

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import CSI_PAGE_MAX
from awsomefsd.base.types import CsiVolumeInfo, VolumeInfo
from awsomefsd.csi import rules
from awsomefsd.csi.errors import CsiError, invalid, not_found, precondition
from awsomefsd.csi.grpc_errors import CallFigures, rpc
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.pb import csi_pb2_grpc
from awsomefsd.csi.settings import DriverSettings
from awsomefsd.csi.volume_health import VolumeHealth, condition
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volumes import INLINE_NODE, DriverVolumes, FoundVolume, is_uuid
from awsomefsd.meta.api.commands import ClaimVolume, DropCsiVolume, EndClaims, MakeCsiVolume, SetCsiVolume, SetNames

logger = logging.getLogger(__name__)
_WELL = "the volume is there"
DELETING = "deletion"  # in the place of a node: the claim of a driver that removes the files of a volume
_Rpc = pb.ControllerServiceCapability.RPC
CAPABILITIES = [
    _Rpc.CREATE_DELETE_VOLUME, _Rpc.LIST_VOLUMES, _Rpc.GET_CAPACITY, _Rpc.EXPAND_VOLUME, _Rpc.GET_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER, _Rpc.MODIFY_VOLUME,
]  # fmt: skip
ATTACH_CAPABILITIES = [_Rpc.PUBLISH_UNPUBLISH_VOLUME, _Rpc.LIST_VOLUMES_PUBLISHED_NODES]
HEALTH_CAPABILITIES = {"1.12": [_Rpc.VOLUME_CONDITION], "1.13": [_Rpc.GET_VOLUME_HEALTH, _Rpc.LIST_VOLUME_HEALTH], "off": []}


class DirectoryRemover(Protocol):
    """The part of VolumeMounts that the controller needs."""

    def remove_directory(self, volume: VolumeInfo, path: str, *, shared: bool) -> None:
        """Removes a directory of a volume with all its content; does nothing if it does not exist.  Blocks; raises CsiError."""


class ControllerService(csi_pb2_grpc.ControllerServicer):
    """The controller RPCs.  They run on gRPC's threads and block."""

    def __init__(
        self, driver: DriverSettings, volumes: DriverVolumes, volume_mounts: DirectoryRemover, locks: VolumeLocks, figures: CallFigures,
        health: VolumeHealth,
    ) -> None:  # fmt: skip
        self._driver = driver
        self._health = health
        self._volumes = volumes
        self._volume_mounts = volume_mounts
        self._locks = locks
        self._figures = figures

    @rpc
    def ControllerGetCapabilities(
        self, request: pb.ControllerGetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetCapabilitiesResponse:
        found = [*CAPABILITIES, *(ATTACH_CAPABILITIES if self._driver.attach else ()), *HEALTH_CAPABILITIES[self._driver.health_api]]
        return pb.ControllerGetCapabilitiesResponse(capabilities=[pb.ControllerServiceCapability(rpc=_Rpc(type=one)) for one in found])

    # --- make and delete ----------------------------------------------------------------------------------------------------

    @rpc
    def CreateVolume(self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext) -> pb.CreateVolumeResponse:
        rules.check_name(request.name)
        block = rules.check_capabilities(request.volume_capabilities)
        if request.HasField("volume_content_source"):
            raise invalid("snapshots and clones are not supported: leave volume_content_source out")
        wanted = rules.read_parameters(request.parameters, request.mutable_parameters, block=block, name=request.name)
        size = rules.capacity_of(request.capacity_range, block=block)
        self._check_topology(request)
        with self._locks.alone(f"name {request.name}"):
            record = self._volumes.record(name=request.name) or self._make(request.name, wanted, size, block)
            self._compare(record, request, wanted, block)
        return pb.CreateVolumeResponse(volume=self._volume(record))

    def _make(self, name: str, wanted: rules.WantedVolume, size: int, block: bool) -> CsiVolumeInfo | None:
        shared = self._volumes.named(wanted.volume) if wanted.volume else None
        command = MakeCsiVolume(
            id=str(uuid.uuid4()),
            name=name,
            capacity=size,
            block=block,
            settings=sorted(wanted.settings.items()),
            volume=shared.volume if shared else 0,
            path=wanted.subdirectory,
            quota_bytes=size if wanted.hard else 0,
            quota_inodes=wanted.inodes,
            mode=wanted.mode,
            uid=wanted.uid,
            gid=wanted.gid,
            names=0 if shared else self._volumes.new_names() if wanted.names is None else wanted.names,
        )
        try:
            self._volumes.propose(command)
            logger.info("csi volume created", extra={"volume": command.id, "named": name, "bytes": size})
        except FsError as err:
            if err.errno != errno.EEXIST:  # made by another node at the same moment
                raise
        return self._volumes.record(name=name)

    def _compare(self, record: CsiVolumeInfo | None, request: pb.CreateVolumeRequest, wanted: rules.WantedVolume, block: bool) -> None:
        if record is None:
            raise CsiError("ABORTED", f"{request.name} was deleted while it was being created; try again")
        if dict(record.settings).get(INLINE_NODE):
            raise CsiError("ALREADY_EXISTS", f"{request.name} is the name of a pod's inline volume")
        if record.block != block or not rules.fits(record.capacity, request.capacity_range):
            raise CsiError(
                "ALREADY_EXISTS",
                f"{request.name} exists already with {record.capacity} bytes as a {'block device' if record.block else 'file system'}",
            )
        fixed = {key: value for key, value in record.settings if key in rules.FIXED}
        if fixed != {key: value for key, value in wanted.settings.items() if key in rules.FIXED}:
            raise CsiError("ALREADY_EXISTS", f"{request.name} exists already with other parameters")

    def _check_topology(self, request: pb.CreateVolumeRequest) -> None:
        asked = request.accessibility_requirements.requisite
        ours = self._driver.reachable
        if asked and not any(all(one.segments.get(key, value) == value for key, value in ours.items()) for one in asked):
            raise CsiError("RESOURCE_EXHAUSTED", "none of the requested topologies is a node of this cluster")

    @rpc
    def DeleteVolume(self, request: pb.DeleteVolumeRequest, context: grpc.ServicerContext) -> pb.DeleteVolumeResponse:
        if not request.volume_id:
            raise invalid("volume_id is missing")
        record = self._volumes.record(id=request.volume_id) if len(request.volume_id) <= 128 else None
        if record is None:
            return pb.DeleteVolumeResponse()
        if dict(record.settings).get(INLINE_NODE):
            raise precondition("this is an inline volume; it is deleted with its pod, or when its node is removed from the cluster")
        with self._locks.alone(f"name {record.name}"):
            destroy = dict(record.settings).get("onDelete", "delete") == "delete"
            used = [one for one in self._volumes.claims(record.volume) if one.path == record.path and one.node != DELETING]
            if any(not claim.fenced for claim in used):
                raise precondition(f"volume {record.id} is in use by a node; it is deleted when no node uses it")
            if destroy and not record.own:
                self._delete_directory(record)
            try:
                self._volumes.propose(DropCsiVolume(record.id, destroy))
                logger.warning("csi volume deleted", extra={"volume": record.id, "destroyed": destroy})
            except FsError as err:
                if err.errno != errno.ENOENT:
                    raise
        return pb.DeleteVolumeResponse()

    def _delete_directory(self, record: CsiVolumeInfo) -> None:
        """Removes the files of a volume that is a directory.  Raises CsiError if a node has claimed the volume.

        A claim keeps all nodes out meanwhile; it stays if the driver dies, and whoever is asked to delete the volume again goes on with it.
        """
        volume = next((one for one in self._volumes.every() if one.volume == record.volume), None)
        if volume is None:
            return
        with self._locks.alone(f"volume {volume.uuid}"):
            claim(self._volumes, FoundVolume(record.id, volume, record.path, record), DELETING, "", exclusive=True)
            self._volume_mounts.remove_directory(volume, record.path, shared=self._volumes.sharable(volume))
            self._volumes.propose(EndClaims(DELETING, record.volume, record.path, "its files are deleted"))

    # --- change -------------------------------------------------------------------------------------------------------------

    def _record(self, volume_id: str) -> CsiVolumeInfo:
        found = self._volumes.find(volume_id)
        if found.record is None:
            raise invalid(f"{volume_id} was not made by this driver; change it with `awsomefsd volume set`")
        return found.record

    @rpc
    def ControllerExpandVolume(
        self, request: pb.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ControllerExpandVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not (request.capacity_range.required_bytes or request.capacity_range.limit_bytes):
            raise invalid("capacity_range is missing")
        record = self._record(request.volume_id)
        if request.HasField("volume_capability"):
            rules.check_capability(request.volume_capability, of_block=record.block)
        size = max(rules.capacity_of(request.capacity_range, block=record.block, default=record.capacity), record.capacity)
        if request.capacity_range.limit_bytes and size > request.capacity_range.limit_bytes:
            raise CsiError("OUT_OF_RANGE", f"the volume has {record.capacity} bytes and cannot be made smaller")
        with self._locks.alone(f"name {record.name}"):
            if size > record.capacity:
                hard = record.own and not record.block and dict(record.settings).get("quota", "hard") == "hard"
                self._volumes.propose(SetCsiVolume(record.id, size, size if hard else -1))
        return pb.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=record.block)

    @rpc
    def ControllerModifyVolume(
        self, request: pb.ControllerModifyVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ControllerModifyVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        rules.check_mutable(request.mutable_parameters)
        record = self._record(request.volume_id)
        settings = dict(record.settings) | dict(request.mutable_parameters)
        fixed = {key: value for key, value in settings.items() if key in rules.FIXED}
        wanted = rules.read_parameters(fixed, {key: settings[key] for key in settings.keys() - fixed}, block=record.block)
        quota = (record.capacity if wanted.hard else 0) if record.own else -1
        with self._locks.alone(f"name {record.name}"):
            inodes = wanted.inodes if record.own else -1
            asked = wanted.names if record.own and "names" in request.mutable_parameters else None
            if asked is not None and asked != self._volumes.names(record.volume):
                self._volumes.propose(SetNames(record.volume, asked))
            self._volumes.propose(SetCsiVolume(record.id, -1, quota, inodes, sorted(settings.items())))
        return pb.ControllerModifyVolumeResponse()

    @rpc
    def ValidateVolumeCapabilities(
        self, request: pb.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.ValidateVolumeCapabilitiesResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.volume_capabilities:
            raise invalid("volume_capabilities are missing")
        found = self._volumes.find(request.volume_id)
        try:
            rules.check_capabilities(request.volume_capabilities, of_block=found.block)
            rules.check_mutable(request.mutable_parameters)
            self._check_parameters(found, request)
        except CsiError as err:
            return pb.ValidateVolumeCapabilitiesResponse(message=str(err))
        confirmed = pb.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
        return pb.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def _check_parameters(self, found: FoundVolume, request: pb.ValidateVolumeCapabilitiesRequest) -> None:
        for key, value in {**request.parameters, **request.mutable_parameters}.items():
            if not key.startswith(rules.KUBERNETES) and found.settings.get(key) != value:
                raise invalid(f"the volume was not made with parameter {key}: {value!r}")

    # --- which node may use it ------------------------------------------------------------------------------------------------

    @rpc
    def ControllerPublishVolume(
        self, request: pb.ControllerPublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ControllerPublishVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.node_id or not request.HasField("volume_capability"):
            raise invalid("node_id or volume_capability is missing")
        found = self._volumes.find(request.volume_id)
        rules.check_capability(request.volume_capability, of_block=found.block)
        if request.node_id not in {self._driver.node, *self._driver.voters} and request.node_id not in self._volumes.nodes():
            raise not_found(f"there is no node {request.node_id!r} in this cluster")
        exclusive = request.volume_capability.access_mode.mode in rules.EXCLUSIVE
        for one in self._volumes.claims(found.volume.volume):
            if (one.path, one.node) == (found.path, request.node_id) and one.attached and one.exclusive != exclusive:
                raise CsiError("ALREADY_EXISTS", f"{found.handle} is published to node {request.node_id} with another access mode")
        claim(self._volumes, found, request.node_id, "", exclusive=exclusive, attached=True)
        return pb.ControllerPublishVolumeResponse()

    @rpc
    def ControllerUnpublishVolume(
        self, request: pb.ControllerUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> pb.ControllerUnpublishVolumeResponse:
        if not request.volume_id:
            raise invalid("volume_id is missing")
        try:
            found = self._volumes.find(request.volume_id)
        except CsiError:
            return pb.ControllerUnpublishVolumeResponse()
        for one in self._volumes.claims(found.volume.volume):
            if one.path == found.path and request.node_id in ("", one.node) and one.node != DELETING:
                self._volumes.propose(
                    EndClaims(one.node, one.volume, one.path, "detached by the orchestrator", attached=True, keep_out=True)
                )
        return pb.ControllerUnpublishVolumeResponse()

    # --- questions ----------------------------------------------------------------------------------------------------------

    def _volume(self, record: CsiVolumeInfo | None) -> pb.Volume:
        assert record is not None
        topology = [pb.Topology(segments=self._driver.reachable)]
        return pb.Volume(volume_id=record.id, capacity_bytes=record.capacity, accessible_topology=topology)

    def _rows(self, max_entries: int, token: str) -> tuple[list[CsiVolumeInfo], str]:
        """A page of volumes and the token of the next: the last id of this page, "" for the last page.

        Without inline volumes: they are kubelet's, and not the orchestrator's to watch or to delete.
        """
        if max_entries < 0:
            raise invalid("max_entries is negative")
        if token and not is_uuid(token):
            raise CsiError("ABORTED", f"starting_token {token[:64]!r} is not a token of this driver; list again without a token")
        count = max_entries or CSI_PAGE_MAX
        rows = self._volumes.page(token, min(count + 1, CSI_PAGE_MAX))
        token = rows[count - 1].id if len(rows) > count else rows[-1].id if len(rows) == CSI_PAGE_MAX else ""
        return [row for row in rows[:count] if not dict(row.settings).get(INLINE_NODE)], token

    @rpc
    def ListVolumes(self, request: pb.ListVolumesRequest, context: grpc.ServicerContext) -> pb.ListVolumesResponse:
        rows, token = self._rows(request.max_entries, request.starting_token)
        nodes: dict[tuple[int, str], list[str]] = {}
        for one in self._volumes.claims() if self._driver.attach else ():
            if not one.fenced:
                nodes.setdefault((one.volume, one.path), []).append(one.node)
        entries = []
        facts, volumes = (self._health.facts(), self._by_number()) if self._driver.health_api == "1.12" else (None, {})
        for row in rows:
            status = pb.ListVolumesResponse.VolumeStatus(published_node_ids=nodes.get((row.volume, row.path), ()))
            if facts is not None and row.volume in volumes:
                status.volume_condition.CopyFrom(condition(facts.of(volumes[row.volume]), _WELL))
            entries.append(pb.ListVolumesResponse.Entry(volume=self._volume(row), status=status))
        return pb.ListVolumesResponse(entries=entries, next_token=token)

    @rpc
    def ControllerGetVolume(self, request: pb.ControllerGetVolumeRequest, context: grpc.ServicerContext) -> pb.ControllerGetVolumeResponse:
        found = self._volumes.find(request.volume_id)
        if found.record is None:
            raise not_found(f"{found.handle} was not made by this driver")
        claims = self._volumes.claims(found.volume.volume) if self._driver.attach else ()
        nodes = [one.node for one in claims if one.path == found.path and not one.fenced]
        status = pb.ControllerGetVolumeResponse.VolumeStatus(published_node_ids=nodes)
        if self._driver.health_api == "1.12":
            status.volume_condition.CopyFrom(condition(self._health.of(found.volume), _WELL))
        return pb.ControllerGetVolumeResponse(volume=self._volume(found.record), status=status)

    @rpc
    def GetCapacity(self, request: pb.GetCapacityRequest, context: grpc.ServicerContext) -> pb.GetCapacityResponse:
        """The scheduler goes by the maximum size of a volume, where one is named, and by what is available otherwise.

        So a maximum stands only where the size of a volume is no bound, and nothing has to be there for it (decision 266).
        """
        if request.volume_capabilities:
            rules.check_capabilities(request.volume_capabilities)
        wanted = rules.read_parameters(request.parameters, {}, block=False)
        here = self._driver.reachable
        segments = request.accessible_topology.segments
        if any(segments.get(key, value) != value for key, value in here.items()):
            return pb.GetCapacityResponse(available_capacity=0)
        response = pb.GetCapacityResponse(available_capacity=self._volumes.free_bytes())
        if not wanted.hard:
            response.maximum_volume_size.value = rules.FILE_BYTES_MAX
        return response

    # --- health -------------------------------------------------------------------------------------------------------------

    def _by_number(self) -> dict[int, VolumeInfo]:
        return {one.volume: one for one in self._volumes.every()}

    @rpc
    def ControllerGetVolumeHealth(
        self, request: pb.ControllerGetVolumeHealthRequest, context: grpc.ServicerContext
    ) -> pb.ControllerGetVolumeHealthResponse:
        found = self._volumes.find(request.volume_id)
        health = pb.VolumeHealth(volume_id=found.handle, health_statuses=self._health.of(found.volume))
        return pb.ControllerGetVolumeHealthResponse(volume_health=health)

    @rpc
    def ControllerListVolumeHealth(
        self, request: pb.ControllerListVolumeHealthRequest, context: grpc.ServicerContext
    ) -> pb.ControllerListVolumeHealthResponse:
        rows, token = self._rows(request.max_entries, request.starting_token)
        facts, volumes = self._health.facts(), self._by_number()
        found = [(row.id, facts.of(volumes[row.volume])) for row in rows if row.volume in volumes]
        entries = [pb.VolumeHealth(volume_id=id, health_statuses=one) for id, one in found if one]
        return pb.ControllerListVolumeHealthResponse(entries=entries, next_token=token)


def claim(volumes: DriverVolumes, found: FoundVolume, node: str, boot_id: str, *, exclusive: bool, attached: bool = False) -> int:
    """Takes the claim of a node on a volume; returns its epoch.  Raises CsiError: FAILED_PRECONDITION names the node that has it."""
    try:
        epoch: int = volumes.propose(ClaimVolume(found.volume.volume, found.path, node, boot_id, exclusive, attached)).epoch
        return epoch
    except FsError as err:
        if err.errno == errno.EBUSY:
            raise precondition(volumes.with_names(f"volume {found.handle} cannot be used by node {node} now: {err}")) from err
        raise
