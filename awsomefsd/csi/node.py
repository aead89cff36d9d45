"""The CSI node service: it brings a volume to a staging path, and from there to the targets of pods.

Stage: the claim of this node is taken (an entry of the log), the volume is mounted (volume_mounts.py), and the whole of it or a directory
is bound below the staging path (staging_paths.py); for a block volume a loop device is put over its file instead.  Publish binds that to a
target.  Every step first checks the state that it finds, so a call that died half way is simply repeated.  Unpublish and Unstage go by the
mount table alone: they unmount mounts that are ours and remove the empty directory or file that is left, and refuse anything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

import grpc

from awsomefsd.base import consistency
from awsomefsd.base.errors import Error
from awsomefsd.csi import blocks, rules, staging_paths, targets
from awsomefsd.csi.block_volumes import BlockVolumes, block_file, published
from awsomefsd.csi.controller import claim
from awsomefsd.csi.errors import CsiError, invalid, not_found, precondition
from awsomefsd.csi.grpc_errors import CallFigures, rpc
from awsomefsd.csi.inline_volumes import EPHEMERAL, InlineVolumes
from awsomefsd.csi.kubelet_paths import KubeletDirectory, KubeletPath
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.pb import csi_pb2_grpc
from awsomefsd.csi.settings import DriverSettings
from awsomefsd.csi.volume_health import VolumeHealth, condition
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volume_mounts import VolumeMounts
from awsomefsd.csi.volumes import DriverVolumes, FoundVolume
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.mount_syscalls import MountEntry
from awsomefsd.meta.api.commands import EndClaims
from awsomefsd.node.mounts import is_dead

_Rpc = pb.NodeServiceCapability.RPC
_BYTES, _INODES = pb.VolumeUsage.BYTES, pb.VolumeUsage.INODES
CAPABILITIES = [_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.EXPAND_VOLUME, _Rpc.SINGLE_NODE_MULTI_WRITER]
HEALTH_CAPABILITIES = {"1.12": [_Rpc.VOLUME_CONDITION], "1.13": [_Rpc.GET_VOLUME_HEALTH, _Rpc.GET_STORAGE_HEALTH], "off": []}


class NodeService(csi_pb2_grpc.NodeServicer):
    """The node RPCs.  They run on gRPC's threads and block."""

    def __init__(
        self,
        driver: DriverSettings,
        volumes: DriverVolumes,
        volume_mounts: VolumeMounts,
        inline: InlineVolumes,
        locks: VolumeLocks,
        figures: CallFigures,
        health: VolumeHealth,
    ) -> None:
        self._driver = driver
        self._health = health
        self._volumes = volumes
        self._volume_mounts = volume_mounts
        self._inline = inline
        self._locks = locks
        self._figures = figures
        self._root = KubeletDirectory(driver.kubelet_dir)
        self._blocks = BlockVolumes(volumes, volume_mounts)

    @rpc
    def NodeGetCapabilities(self, request: pb.NodeGetCapabilitiesRequest, context: grpc.ServicerContext) -> pb.NodeGetCapabilitiesResponse:
        found = [*CAPABILITIES, *HEALTH_CAPABILITIES[self._driver.health_api]]
        return pb.NodeGetCapabilitiesResponse(capabilities=[pb.NodeServiceCapability(rpc=_Rpc(type=one)) for one in found])

    @rpc
    def NodeGetInfo(self, request: pb.NodeGetInfoRequest, context: grpc.ServicerContext) -> pb.NodeGetInfoResponse:
        topology = pb.Topology(segments=self._driver.topology)
        return pb.NodeGetInfoResponse(
            node_id=self._driver.node, max_volumes_per_node=self._driver.max_volumes, accessible_topology=topology
        )

    # --- stage --------------------------------------------------------------------------------------------------------------

    @rpc
    def NodeStageVolume(self, request: pb.NodeStageVolumeRequest, context: grpc.ServicerContext) -> pb.NodeStageVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.HasField("volume_capability"):
            raise invalid("volume_capability is missing")
        with self._root.place(request.staging_target_path, "staging_target_path") as place:
            found = self._volumes.find(request.volume_id)
            block = rules.check_capability(request.volume_capability, of_block=found.block)
            mode = request.volume_capability.access_mode.mode
            with self._locks.alone(found.lock, f"path {place.path}"):
                claim(self._volumes, found, self._driver.node, self._driver.boot_id, exclusive=mode in rules.EXCLUSIVE)
                flags, whole = ([], []) if block else rules.split_flags(request.volume_capability.mount.mount_flags)
                alone = mode in rules.EXCLUSIVE and not found.path  # other directories of the volume may be on other nodes
                mount = self._volume_mounts.enter(found.volume, whole, shared=not alone and self._volumes.sharable(found.volume))
                if block:
                    self._stage_block(found, mount, mode)
                else:
                    self._stage_mount(found, mount, place, [*flags, "ro"] if mode in rules.READERS else flags)
        return pb.NodeStageVolumeResponse()

    def _stage_mount(self, found: FoundVolume, mount: MountEntry, place: KubeletPath, flags: list[str]) -> None:
        place.make_directory()
        staging_paths.move_below(place)
        place.check_empty(but=staging_paths.NAME)
        with place.below(staging_paths.NAME) as below:
            if not targets.settled(below, found, mount, flags, "staged"):
                self._bind_staged(found, mount, below, flags)

    def _bind_staged(self, found: FoundVolume, mount: MountEntry, place: KubeletPath, flags: list[str]) -> None:
        place.make_directory()
        place.check_empty()
        source = self._volume_mounts.open_path(mount, found.path, make=_directory_of(found))
        try:
            if not stat.S_ISDIR(os.fstat(source).st_mode):
                raise precondition(f"{found.handle} is a file; only a directory can be mounted as a file system")
            _ask_consistency(source, found.settings.get("consistency", ""))
            targets.bind_at(source, place, flags)
        finally:
            os.close(source)

    def _stage_block(self, found: FoundVolume, mount: MountEntry, mode: int) -> None:
        try:
            self._blocks.stage(found, mount, mode)
        except CsiError as err:
            if err.status == "FAILED_PRECONDITION":  # kubelet takes it for not staged, and asks for no unstage
                with contextlib.suppress(Error, OSError):
                    self._unstage(found)
            raise

    @rpc
    def NodeUnstageVolume(self, request: pb.NodeUnstageVolumeRequest, context: grpc.ServicerContext) -> pb.NodeUnstageVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        found = self._known(request.volume_id)
        lock = [found.lock] if found else []
        try:
            with (
                self._root.place(request.staging_target_path, "staging_target_path") as place,
                self._locks.alone(*lock, f"path {place.path}"),
            ):
                self._clear_staging(place, found)
                self._unstage(found)
        except CsiError as err:
            if err.status != "NOT_FOUND":
                raise
            with self._locks.alone(*lock):
                self._unstage(found)
        return pb.NodeUnstageVolumeResponse()

    def _clear_staging(self, place: KubeletPath, found: FoundVolume | None) -> None:
        self._unmount(place, found)  # where earlier builds bound the volume
        if place.kind() != stat.S_IFDIR:
            return
        with place.below(staging_paths.NAME) as below:
            self._unmount(below, found)
            if below.kind() == stat.S_IFDIR:
                below.remove()
        place.remove()

    def _unstage(self, found: FoundVolume | None) -> None:
        """Removes the loop device, the volume mount and the claim when nothing of the volume is mounted any more."""
        if found is None or found.inline_node:
            return
        mount = self._volume_mounts.entry(found.volume)
        if mount is None and found.block is not False:  # without it a device over a file there would not be found
            mount = self._volume_mounts.entered(found.volume) if self._volume_mounts.comes_back(found.volume) else None
            mount = mount or self._volume_mounts.entry(found.volume)  # it may have come back between the two questions
        if mount is not None:
            for name in blocks.of_file(block_file(found, mount)) if found.block is not False else ():
                if published(name):
                    raise precondition(f"{found.handle} is still published on this node")
                blocks.detach(name)
            if found.block:
                self._blocks.detach_dead(found, mount)
        there = self._volume_mounts.mounted(found.volume)
        if there is not None and any(entry.root == targets.root_of(found) for entry in self._volume_mounts.used(there.device, there.dir)):
            return
        end = EndClaims(self._driver.node, found.volume.volume, found.path, "unstaged")
        if self._is_taken(found):  # it cannot be used here any more, and its mount cannot be flushed before that is known
            self._volumes.propose(end)
        self._volume_mounts.leave(found.volume)
        self._volumes.propose(end)

    def _is_taken(self, found: FoundVolume) -> bool:
        """True if the claim of this node was fenced: it was away, and another node may have taken the volume."""
        claims = self._volumes.claims(found.volume.volume)
        return any((one.node, one.path) == (self._driver.node, found.path) and one.fenced for one in claims)

    def _known(self, handle: str) -> FoundVolume | None:
        try:
            return self._volumes.find_any(handle)
        except CsiError as err:
            if err.status != "NOT_FOUND" and not err.status.startswith("INVALID"):
                raise
            return None

    # --- publish ------------------------------------------------------------------------------------------------------------

    @rpc
    def NodePublishVolume(self, request: pb.NodePublishVolumeRequest, context: grpc.ServicerContext) -> pb.NodePublishVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.HasField("volume_capability"):
            raise invalid("volume_capability is missing")
        with self._root.place(request.target_path, "target_path") as place:
            if request.volume_context.get(EPHEMERAL) == "true":
                self._inline.publish(request, place)
                return pb.NodePublishVolumeResponse()
            if not request.staging_target_path:
                raise precondition("staging_target_path is missing; a volume must be staged before it is published")
            found = self._volumes.find(request.volume_id)
            block = rules.check_capability(request.volume_capability, of_block=found.block)
            with self._locks.alone(found.lock, f"path {place.path}"):
                mount = self._volume_mounts.entered(found.volume)
                if mount is None:
                    raise precondition(f"{found.handle} is not staged on this node")
                if block:
                    self._blocks.publish(found, mount, place, request.volume_capability.access_mode.mode)
                else:
                    self._publish_mount(request, found, mount, place)
        return pb.NodePublishVolumeResponse()

    def _publish_mount(self, request: pb.NodePublishVolumeRequest, found: FoundVolume, mount: MountEntry, place: KubeletPath) -> None:
        mode = request.volume_capability.access_mode.mode
        flags, _ = rules.split_flags(request.volume_capability.mount.mount_flags)
        flags = [*flags, "ro"] if request.readonly or mode in rules.READERS else flags
        with (
            self._root.place(request.staging_target_path, "staging_target_path") as asked,
            staging_paths.staged_at(asked) as staging,
        ):
            staged = staging.mounted()
            if staged is None or (staged.device, staged.root) != (mount.device, targets.root_of(found)):
                raise precondition(f"{found.handle} is not staged at {asked.path}")
            if targets.settled(place, found, mount, flags, "published"):
                return
            if mode in rules.ONE_TARGET:
                self._refuse_second(found, mount, staging.path)
            place.make_directory()
            place.check_empty()
            source = staging.open()
            try:
                targets.bind_at(source, place, flags)
            finally:
                os.close(source)

    def _refuse_second(self, found: FoundVolume, mount: MountEntry, staging: str) -> None:
        plugins = os.path.realpath(self._driver.kubelet_dir / "plugins")  # where kubelet stages; pods are elsewhere
        used = [entry.dir for entry in self._volume_mounts.used(mount.device, mount.dir) if entry.root == targets.root_of(found)]
        others = [place for place in used if place != staging and not place.startswith(f"{plugins}/")]
        if others:
            raise precondition(f"{found.handle} is published at {others[0]} already; its access mode allows one target")

    @rpc
    def NodeUnpublishVolume(self, request: pb.NodeUnpublishVolumeRequest, context: grpc.ServicerContext) -> pb.NodeUnpublishVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        found = self._known(request.volume_id)
        try:
            lock = [found.lock] if found else []
            with self._root.place(request.target_path, "target_path") as place, self._locks.alone(*lock, f"path {place.path}"):
                self._unmount(place, found)
                place.remove()
        except CsiError as err:
            if err.status != "NOT_FOUND":
                raise
        if found is not None and found.inline_node:
            with self._locks.alone(found.lock):
                self._inline.remove(found, "unpublished")
        return pb.NodeUnpublishVolumeResponse()

    def _unmount(self, place: KubeletPath, found: FoundVolume | None) -> None:
        """Unmounts all mounts of the volume at a place; a mount that is not ours, or of another volume, is refused."""
        while (entry := place.mounted()) is not None:
            if entry.fstype == mount_syscalls.FSTYPE:
                if found is not None and entry.source != found.volume.name:
                    raise precondition(f"{place.path} has volume {entry.source} mounted, not {found.handle}; it was not unmounted")
                place.umount(detach=self._is_dead(place, entry, found))
            else:
                self._blocks.check_target(place, entry, found)
                place.umount()

    def _is_dead(self, place: KubeletPath, entry: MountEntry, found: FoundVolume | None) -> bool:
        """True for a dead mount.  A mount that is served is not probed: one whose session was taken away would not answer."""
        mount = self._volume_mounts.entry(found.volume) if found is not None else None
        return (mount is None or entry.device != mount.device) and is_dead(place.path)

    def _published(self, found: FoundVolume, path: str) -> MountEntry:
        """The volume mount of a volume that is mounted at a path.  Raises CsiError NOT_FOUND if it is not mounted there."""
        mount = self._volume_mounts.entry(found.volume)
        try:
            with self._root.place(path, "volume_path") as place:
                if mount is not None and self._is_there(place, mount, found):
                    return mount
        except CsiError as err:  # a path where no volume can be: nothing is mounted there
            if err.status not in ("INVALID_ARGUMENT", "NOT_FOUND"):
                raise
        raise not_found(f"{found.handle} is not mounted at {path}")

    def _is_there(self, place: KubeletPath, mount: MountEntry, found: FoundVolume) -> bool:
        entry = place.mounted() or mount_syscalls.topmost(f"{place.path}/{staging_paths.NAME}")
        file = block_file(found, mount)
        if entry is None:  # at the staging path of a block volume nothing is mounted
            return place.kind() == stat.S_IFDIR and found.block is not False and bool(blocks.of_file(file))
        if entry.fstype == mount_syscalls.FSTYPE:
            return (entry.device, entry.root) == (mount.device, targets.root_of(found))
        return any(entry.root == f"/{name}" for name in blocks.of_file(file))

    # --- the rest -----------------------------------------------------------------------------------------------------------

    @rpc
    def NodeExpandVolume(self, request: pb.NodeExpandVolumeRequest, context: grpc.ServicerContext) -> pb.NodeExpandVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.volume_path:
            raise invalid("volume_path is missing")
        found = self._volumes.find(request.volume_id)
        if request.HasField("volume_capability"):
            rules.check_capability(request.volume_capability, of_block=found.block)
        with self._locks.alone(found.lock):
            mount = self._published(found, request.volume_path)
            size = found.record.capacity if found.record else self._volumes.statfs(found.volume.volume).bytes_total
            if found.block:
                size = self._blocks.allocate(mount, size)
                for name in blocks.of_file(block_file(found, mount)):
                    blocks.resize(name)
        return pb.NodeExpandVolumeResponse(capacity_bytes=size)

    # --- figures and health -------------------------------------------------------------------------------------------------
    # Figures come from the metadata service, not from statfs(2) on the mount: a mount whose worker is being replaced would let
    # kubelet's request wait, and every figure of the node with it.

    @rpc
    def NodeGetVolumeStats(self, request: pb.NodeGetVolumeStatsRequest, context: grpc.ServicerContext) -> pb.NodeGetVolumeStatsResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.volume_path:
            raise invalid("volume_path is missing")
        found = self._volumes.find_any(request.volume_id)
        self._published(found, request.volume_path)
        response = pb.NodeGetVolumeStatsResponse()
        if found.block and found.record is not None:
            response.usage.add(total=found.record.capacity, unit=_BYTES)
        else:
            stat_of = self._volumes.statfs(found.volume.volume)
            used, inodes = found.volume.used_bytes, found.volume.used_inodes
            response.usage.add(available=stat_of.bytes_writable, total=stat_of.bytes_total, used=used, unit=_BYTES)
            response.usage.add(available=max(stat_of.inodes_free, 0), total=stat_of.inodes_total, used=inodes, unit=_INODES)
        if self._driver.health_api == "1.12":
            response.volume_condition.CopyFrom(condition(self._health.of(found.volume), "the volume is mounted"))
        return response

    @rpc
    def NodeGetVolumeHealth(self, request: pb.NodeGetVolumeHealthRequest, context: grpc.ServicerContext) -> pb.NodeGetVolumeHealthResponse:
        rules.check_name(request.volume_id, "volume_id")
        found = self._volumes.find_any(request.volume_id)
        health = pb.VolumeHealth(volume_id=request.volume_id, health_statuses=self._health.of(found.volume))
        if self._volume_mounts.entry(found.volume) is None:
            health.health_statuses.add(status=pb.INACCESSIBLE, reason="NotServed", message="the volume's mount on this node is not served")
        return pb.NodeGetVolumeHealthResponse(volume_health=health)

    @rpc
    def NodeGetStorageHealth(
        self, request: pb.NodeGetStorageHealthRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetStorageHealthResponse:
        """Answers only if the metadata does; otherwise the call fails with UNAVAILABLE, which says the same."""
        response = pb.NodeGetStorageHealthResponse()
        if words := self._health.facts().of_storage():
            response.backend_health.add(status=pb.STORAGE_DEGRADED, reason="Damage", message=words)
        return response


def _directory_of(found: FoundVolume) -> rules.WantedVolume | None:
    """The attributes of the directory that stands for a volume of this driver; None for one that people made themselves."""
    if found.record is None or not found.path:
        return None
    return rules.read_parameters(found.settings, {}, block=False)


def _ask_consistency(directory: int, asked: str) -> None:
    """Sets the consistency that new files in the directory inherit.  An attribute, not a mount option: volumes of one mount may differ."""
    path, name = f"/proc/self/fd/{directory}", consistency.XATTR.decode()
    try:
        there = os.getxattr(path, name).decode()
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise
        there = "strict"
    if asked and asked != there:
        os.setxattr(path, name, asked.encode())
