"""The node's half: a volume comes to a staging path, and from there to the targets of pods.

Stage: the claim of this node is taken (an entry of the log), the volume is mounted at its home, and the whole of it or a directory is
bound to the staging path; for a block volume a loop device is put over its file instead.  Publish binds that to a target.  Every step looks
first at what is there, so a call that died half way is simply made again.  Unpublish and Unstage go by the mount table alone: they unmount
what is ours and remove the empty directory or file that is left, and refuse anything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

import grpc

from awsomefsd import consistency
from awsomefsd.csi import blocks, node_questions, rules
from awsomefsd.csi.busy import Busy
from awsomefsd.csi.controller import claim
from awsomefsd.csi.edge import Figures, rpc
from awsomefsd.csi.errors import CsiError, invalid, precondition
from awsomefsd.csi.homes import Homes
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.pb import csi_pb2_grpc
from awsomefsd.csi.places import Place, Root, bind, effective, open_beneath
from awsomefsd.csi.settings import Driver
from awsomefsd.csi.volumes import BLOCK_FILE, Found, Volumes
from awsomefsd.fuse import mount_syscall
from awsomefsd.fuse.mount_syscall import MountEntry
from awsomefsd.meta.commands import EndClaims
from awsomefsd.mounts import is_dead

_Rpc = pb.NodeServiceCapability.RPC
CAPABILITIES = [_Rpc.STAGE_UNSTAGE_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.EXPAND_VOLUME, _Rpc.SINGLE_NODE_MULTI_WRITER]
HEALTH_CAPABILITIES = {"1.12": [_Rpc.VOLUME_CONDITION], "1.13": [_Rpc.GET_VOLUME_HEALTH, _Rpc.GET_STORAGE_HEALTH], "off": []}


class Node(csi_pb2_grpc.NodeServicer):
    def __init__(self, driver: Driver, volumes: Volumes, homes: Homes, busy: Busy, figures: Figures) -> None:
        self._driver = driver
        self._volumes = volumes
        self._homes = homes
        self._busy = busy
        self._figures = figures
        self._root = Root(driver.kubelet_dir)
        self._questions = node_questions.Questions(driver, volumes, homes, self._root)

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
            with self._busy.alone(found.lock, f"path {place.path}"):
                claim(self._volumes, found, self._driver.node, self._driver.boot_id, exclusive=mode in rules.EXCLUSIVE)
                flags, whole = ([], []) if block else rules.split_flags(request.volume_capability.mount.mount_flags)
                alone = mode in rules.EXCLUSIVE and not found.path  # other directories of the volume may be on other nodes
                home = self._homes.enter(found.volume, whole, shared=not alone and self._volumes.sharable(found.volume))
                if block:
                    self._stage_block(found, home, read_only=mode in rules.READERS)
                else:
                    self._stage_mount(found, home, place, [*flags, "ro"] if mode in rules.READERS else flags)
        return pb.NodeStageVolumeResponse()

    def _stage_mount(self, found: Found, home: MountEntry, place: Place, flags: list[str]) -> None:
        if self._settled(place, found, home, flags, "staged"):
            return
        place.make_directory()
        place.check_empty()
        source = self._homes.open_path(home, found.path, make=_directory_of(found))
        try:
            if not stat.S_ISDIR(os.fstat(source).st_mode):
                raise precondition(f"{found.handle} is a file: a file is a block volume")
            _ask_consistency(source, found.settings.get("consistency", ""))
            _bind(source, place, flags)
        finally:
            os.close(source)

    def _settled(self, place: Place, found: Found, home: MountEntry, flags: list[str], what: str) -> bool:
        """Whether the right thing is mounted at a place already.  A dead mount of ours is cleared away, anything else is refused."""
        while (entry := place.mounted()) is not None:
            if entry.fstype != mount_syscall.FSTYPE:
                raise precondition(f"{place.path} has a {entry.fstype} of somebody else mounted")
            if entry.device != home.device and is_dead(place.path):
                place.umount(detach=True)
                continue
            if (entry.device, entry.root) != (home.device, _root_of(found)):
                raise CsiError("ALREADY_EXISTS", f"{place.path} has {entry.source}{entry.root} mounted, not {found.handle}")
            if effective(entry.options.split(",")) & _TOLD != effective(flags) & _TOLD:
                raise CsiError("ALREADY_EXISTS", f"{found.handle} is {what} at {place.path} with options {entry.options}")
            return True
        return False

    def _stage_block(self, found: Found, home: MountEntry, *, read_only: bool) -> None:
        if found.record is not None:
            self._make_block_file(home, found.record.capacity)
        path = f"{home.dir}/{_file_of(found)}"
        names = blocks.of_file(path)
        if names:
            return
        directory = os.open(home.dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = open_beneath(directory, _file_of(found), os.O_RDONLY if read_only else os.O_RDWR)
        except OSError as err:
            raise precondition(f"{_file_of(found)} of volume {found.volume.name} cannot be opened: {err.strerror}") from err
        finally:
            os.close(directory)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise precondition(f"{_file_of(found)} of volume {found.volume.name} is no file: a block volume is one")
            blocks.attach(file, read_only=read_only)
        finally:
            os.close(file)

    def _make_block_file(self, home: MountEntry, size: int) -> int:
        """Space for all of it is kept from now on; what is there already stays."""
        directory = os.open(home.dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = os.open(BLOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                there = os.fstat(file).st_size
                if there < size:
                    os.posix_fallocate(file, there, size - there)
                    os.fsync(file)
                return max(size, there)
            except OSError as err:
                raise CsiError("RESOURCE_EXHAUSTED", f"no room for {size} bytes: {err.strerror}") from err
            finally:
                os.close(file)
        finally:
            os.close(directory)

    @rpc
    def NodeUnstageVolume(self, request: pb.NodeUnstageVolumeRequest, context: grpc.ServicerContext) -> pb.NodeUnstageVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        found = self._known(request.volume_id)
        lock = [found.lock] if found else []
        try:
            with (
                self._root.place(request.staging_target_path, "staging_target_path") as place,
                self._busy.alone(*lock, f"path {place.path}"),
            ):
                self._unmount(place, found)
                with contextlib.suppress(FileNotFoundError):
                    if place.kind() == stat.S_IFDIR:
                        place.remove()
                self._unstage(found)
        except CsiError as err:
            if err.status != "NOT_FOUND":
                raise
            with self._busy.alone(*lock):
                self._unstage(found)
        return pb.NodeUnstageVolumeResponse()

    def _unstage(self, found: Found | None) -> None:
        """The loop device, the home and the claim go when nothing of the volume is mounted any more."""
        if found is None:
            return
        home = self._homes.entry(found.volume)
        if home is not None:
            for name in blocks.of_file(f"{home.dir}/{_file_of(found)}") if found.block is not False else ():
                if _published_blocks(name):
                    raise precondition(f"{found.handle} is still published on this node")
                blocks.detach(name)
        there = self._homes.mounted(found.volume)
        if there is not None and any(entry.root == _root_of(found) for entry in self._homes.used(there.device, there.dir)):
            return
        end = EndClaims(self._driver.node, found.volume.volume, found.path, "unstaged")
        if self._is_taken(found):  # nobody reaches it here any more, and its mount cannot be flushed before that is known
            self._volumes.propose(end)
        self._homes.leave(found.volume)
        self._volumes.propose(end)

    def _is_taken(self, found: Found) -> bool:
        """This node was away, and another one may have what it had."""
        claims = self._volumes.claims(found.volume.volume)
        return any((one.node, one.path) == (self._driver.node, found.path) and one.fenced for one in claims)

    def _known(self, handle: str) -> Found | None:
        try:
            return self._volumes.find(handle)
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
            if not request.staging_target_path:
                raise precondition("staging_target_path is missing: a volume is staged first")
            found = self._volumes.find(request.volume_id)
            block = rules.check_capability(request.volume_capability, of_block=found.block)
            with self._busy.alone(found.lock, f"path {place.path}"):
                home = self._homes.entered(found.volume)
                if home is None:
                    raise precondition(f"{found.handle} is not staged on this node")
                if block:
                    self._publish_block(request, found, home, place)
                else:
                    self._publish_mount(request, found, home, place)
        return pb.NodePublishVolumeResponse()

    def _publish_mount(self, request: pb.NodePublishVolumeRequest, found: Found, home: MountEntry, place: Place) -> None:
        mode = request.volume_capability.access_mode.mode
        flags, _ = rules.split_flags(request.volume_capability.mount.mount_flags)
        flags = [*flags, "ro"] if request.readonly or mode in rules.READERS else flags
        with self._root.place(request.staging_target_path, "staging_target_path") as staging:
            staged = staging.mounted()
            if staged is None or (staged.device, staged.root) != (home.device, _root_of(found)):
                raise precondition(f"{found.handle} is not staged at {staging.path}")
            if self._settled(place, found, home, flags, "published"):
                return
            if mode in rules.ONE_TARGET:
                self._refuse_second(found, home, staging.path)
            place.make_directory()
            place.check_empty()
            source = staging.open()
            try:
                _bind(source, place, flags)
            finally:
                os.close(source)

    def _refuse_second(self, found: Found, home: MountEntry, staging: str) -> None:
        plugins = os.path.realpath(self._driver.kubelet_dir / "plugins")  # where kubelet stages; pods are elsewhere
        used = [entry.dir for entry in self._homes.used(home.device, home.dir) if entry.root == _root_of(found)]
        others = [place for place in used if place != staging and not place.startswith(f"{plugins}/")]
        if others:
            raise precondition(f"{found.handle} is published at {others[0]} already, and its access mode allows one target")

    def _publish_block(self, request: pb.NodePublishVolumeRequest, found: Found, home: MountEntry, place: Place) -> None:
        mode = request.volume_capability.access_mode.mode
        names = blocks.of_file(f"{home.dir}/{_file_of(found)}")
        if not names:
            raise precondition(f"{found.handle} is not staged on this node")
        if request.readonly and mode not in rules.READERS:
            raise precondition("a block volume is read-only by its access mode: the read-only flag of a mount does not hold for devices")
        entry = place.mounted()
        if entry is not None:
            if blocks.backing_of(_device_at(place)) != f"{home.dir}/{_file_of(found)}":
                raise CsiError("ALREADY_EXISTS", f"{place.path} has something else mounted")
            return
        if mode in rules.ONE_TARGET and (others := _published_blocks(names[0])):
            raise precondition(f"{found.handle} is published at {others[0]} already, and its access mode allows one target")
        place.make_file()
        if os.lstat(place.name, dir_fd=place.parent).st_size:
            raise precondition(f"{place.path} is a file with content; nothing is mounted over it")
        source = os.open(f"/dev/{names[0]}", os.O_PATH | os.O_CLOEXEC)
        try:
            _bind(source, place, [])
        finally:
            os.close(source)

    @rpc
    def NodeUnpublishVolume(self, request: pb.NodeUnpublishVolumeRequest, context: grpc.ServicerContext) -> pb.NodeUnpublishVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        found = self._known(request.volume_id)
        try:
            lock = [found.lock] if found else []
            with self._root.place(request.target_path, "target_path") as place, self._busy.alone(*lock, f"path {place.path}"):
                self._unmount(place, found)
                place.remove()
        except CsiError as err:
            if err.status != "NOT_FOUND":
                raise
        return pb.NodeUnpublishVolumeResponse()

    def _unmount(self, place: Place, found: Found | None) -> None:
        """All mounts of ours at a place; what is not ours, or another volume's, is refused."""
        while (entry := place.mounted()) is not None:
            if entry.fstype == mount_syscall.FSTYPE:
                if found is not None and entry.source != found.volume.name:
                    raise precondition(f"{place.path} has volume {entry.source} mounted, not {found.handle}; it was left alone")
                place.umount(detach=self._is_dead(place, entry, found))
            elif blocks.backing_of(_device_at(place)).startswith(self._homes.directory + "/") or (
                found is not None and (home := self._homes.entry(found.volume)) and self._is_file_of(place, home, found)
            ):
                place.umount()
            else:
                raise precondition(f"{place.path} has a {entry.fstype} of somebody else mounted; it was left alone")

    def _is_dead(self, place: Place, entry: MountEntry, found: Found | None) -> bool:
        """A mount that is served is not asked: one whose session was taken away would not answer."""
        home = self._homes.entry(found.volume) if found is not None else None
        return (home is None or entry.device != home.device) and is_dead(place.path)

    def _is_file_of(self, place: Place, home: MountEntry, found: Found) -> bool:
        return blocks.backing_of(_device_at(place)) == f"{home.dir}/{_file_of(found)}"

    # --- the rest -----------------------------------------------------------------------------------------------------------

    @rpc
    def NodeExpandVolume(self, request: pb.NodeExpandVolumeRequest, context: grpc.ServicerContext) -> pb.NodeExpandVolumeResponse:
        rules.check_name(request.volume_id, "volume_id")
        if not request.volume_path:
            raise invalid("volume_path is missing")
        found = self._volumes.find(request.volume_id)
        if request.HasField("volume_capability"):
            rules.check_capability(request.volume_capability, of_block=found.block)
        with self._busy.alone(found.lock):
            home = self._questions.published(found, request.volume_path, request.staging_target_path)
            size = found.record.capacity if found.record else self._volumes.statfs(found.volume.volume).bytes_total
            if found.block:
                size = self._make_block_file(home, size)
                for name in blocks.of_file(f"{home.dir}/{_file_of(found)}"):
                    blocks.resize(name)
        return pb.NodeExpandVolumeResponse(capacity_bytes=size)

    @rpc
    def NodeGetVolumeStats(self, request: pb.NodeGetVolumeStatsRequest, context: grpc.ServicerContext) -> pb.NodeGetVolumeStatsResponse:
        return self._questions.stats(request)

    @rpc
    def NodeGetVolumeHealth(self, request: pb.NodeGetVolumeHealthRequest, context: grpc.ServicerContext) -> pb.NodeGetVolumeHealthResponse:
        return self._questions.volume_health(request)

    @rpc
    def NodeGetStorageHealth(
        self, request: pb.NodeGetStorageHealthRequest, context: grpc.ServicerContext
    ) -> pb.NodeGetStorageHealthResponse:
        return self._questions.storage_health()


_TOLD = {"ro", "nosuid", "nodev", "noexec"}  # as the mount table names them


def _root_of(found: Found) -> str:
    return "/" + found.path


def _file_of(found: Found) -> str:
    """The file of a block volume: its own, or the one that a handle names."""
    return BLOCK_FILE if found.record is not None else found.path or BLOCK_FILE


def _directory_of(found: Found) -> rules.Wanted | None:
    """How the directory is made that stands for a volume; people make theirs themselves."""
    if found.record is None or not found.path:
        return None
    return rules.read_parameters(found.settings, {}, block=False, name=found.record.name)


def _ask_consistency(directory: int, asked: str) -> None:
    """What is made in it from now on inherits it.  An attribute and no mount option: volumes of one mount may ask for different things."""
    path, name = f"/proc/self/fd/{directory}", consistency.XATTR.decode()
    try:
        there = os.getxattr(path, name).decode()
    except OSError as err:
        if err.errno != errno.ENODATA:
            raise
        there = "strict"
    if asked and asked != there:
        os.setxattr(path, name, asked.encode())


def _bind(source: int, place: Place, flags: list[str]) -> None:
    target = place.open()
    try:
        bind(source, target, flags)
    finally:
        os.close(target)


def _device_at(place: Place) -> int:
    try:
        return os.lstat(place.name, dir_fd=place.parent).st_rdev
    except OSError:
        return 0


def _published_blocks(name: str) -> list[str]:
    """Where a loop device is bound to."""
    return [entry.dir for entry in mount_syscall.mounts() if entry.root == f"/{name}" and entry.dir != f"/dev/{name}"]
