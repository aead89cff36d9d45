"""Inline volumes (CSI ephemeral volumes): written in a pod, made when kubelet publishes them, deleted with all their data with the pod.

kubelet asks for no stage and no CreateVolume.  The record of an inline volume has an id that follows from kubelet's handle, so that every
call finds it after any restart, and says which node it is of and where its target is.  Nobody else gets it: only this module takes such
a record (`DriverVolumes.find` refuses it), and the node's claim is exclusive.

Nothing is left behind: unpublish deletes, also after a restart of the driver or of the node, because it needs no mount for that.  kubelet
does not unpublish what failed to be published, so a publish that fails takes back what it has made.  What is left all the same (the
daemon was killed just then; kubelet's directory was deleted by hand) is found by `poll` of its node: kubelet has a directory of its own
around the target for as long as it knows of the volume.  The volumes of a node that was removed from the cluster are deleted by `poll` of
any other node.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.limits import CSI_PAGE_MAX
from awsomefsd.base.types import CsiVolumeInfo
from awsomefsd.csi import rules, targets
from awsomefsd.csi.controller import claim
from awsomefsd.csi.errors import CsiError, invalid, precondition
from awsomefsd.csi.kubelet_paths import KubeletPath
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import DriverSettings
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.csi.volume_mounts import VolumeMounts
from awsomefsd.csi.volumes import INLINE_NODE, INLINE_TARGET, DriverVolumes, FoundVolume, inline_id, is_uuid
from awsomefsd.meta.api.commands import DropCsiVolume, EndClaims, MakeCsiVolume

logger = logging.getLogger(__name__)
EPHEMERAL = "csi.storage.k8s.io/ephemeral"  # in the context that kubelet passes with podInfoOnMount
EVERY_S = 300.0  # between two looks for volumes that were left
_SAFE = ["nosuid", "nodev"]  # whoever may make pods chose mode and owner


class InlineVolumes:
    """The inline volumes of this node.  Any thread may call; `poll` is called by one."""

    def __init__(self, driver: DriverSettings, volumes: DriverVolumes, volume_mounts: VolumeMounts, locks: VolumeLocks) -> None:
        self._driver = driver
        self._volumes = volumes
        self._volume_mounts = volume_mounts
        self._locks = locks
        self._look_at_s = 0.0

    # --- publish and unpublish ----------------------------------------------------------------------------------------------

    def publish(self, request: pb.NodePublishVolumeRequest, place: KubeletPath) -> None:
        """Makes the volume of a pod if it is not there, and binds it to its target.  Blocks; raises CsiError, FsError, OSError."""
        handle = request.volume_id
        if is_uuid(handle):
            raise invalid("the volume_id of an inline volume is made by kubelet, and is no UUID")
        flags = self._flags(request)
        with self._locks.alone(f"volume {inline_id(handle)}", f"path {place.path}"):
            found = self._volumes.find_inline(handle)
            if found is not None and found.inline_node != self._driver.node:
                raise precondition(self._volumes.with_names(f"this inline volume is of a pod on node {found.inline_node}"))
            there = found.record.capacity if found is not None and found.record is not None else 0
            wanted, size = rules.read_inline(request.volume_context, max(self._driver.inline_max, there))
            settings = {**wanted.settings, INLINE_NODE: self._driver.node, INLINE_TARGET: place.path}
            made = found is None
            if found is None:
                found = self._make(handle, wanted, size, settings)
            elif found.settings != settings:
                raise CsiError("ALREADY_EXISTS", f"this inline volume has another target or other attributes: {found.settings}")
            try:
                self._bind(found, place, flags)
            except (Error, OSError):
                if made:  # kubelet may not unpublish it
                    with contextlib.suppress(Error, OSError):
                        self.remove(found, "it could not be published")
                raise

    def _flags(self, request: pb.NodePublishVolumeRequest) -> list[str]:
        if rules.check_capability(request.volume_capability):
            raise invalid("an inline volume is a file system, not a block device")
        if request.volume_capability.access_mode.mode not in rules.EXCLUSIVE:
            raise invalid("an inline volume is for one pod; ask for it with a SINGLE_NODE access mode")
        flags, whole = rules.split_flags(request.volume_capability.mount.mount_flags)
        if whole:
            raise invalid(f"mount option {whole[0]!r} is not for inline volumes; known are {', '.join(rules.BIND_FLAGS)}")
        return [*flags, *_SAFE, *(["ro"] if request.readonly else [])]

    def _make(self, handle: str, wanted: rules.WantedVolume, size: int, settings: dict[str, str]) -> FoundVolume:
        if not self._driver.inline:
            raise precondition(
                "inline volumes are switched off on this node: set csi.inline (chart: driver.inlineVolumes.enabled), "
                "or use a generic ephemeral volume, which needs nothing"
            )
        command = MakeCsiVolume(
            id=inline_id(handle),
            name=handle,
            capacity=size,
            block=False,
            settings=sorted(settings.items()),
            quota_bytes=size,
            quota_inodes=wanted.inodes,
            mode=wanted.mode,
            uid=wanted.uid,
            gid=wanted.gid,
            names=self._volumes.new_names(),
        )
        self._volumes.propose(command)
        logger.info("inline volume made", extra={"volume": command.id, "named": handle, "bytes": size})
        found = self._volumes.find_inline(handle)
        if found is None:
            raise CsiError("ABORTED", f"{handle} was deleted while it was being made; try again")
        return found

    def _bind(self, found: FoundVolume, place: KubeletPath, flags: list[str]) -> None:
        claim(self._volumes, found, self._driver.node, self._driver.boot_id, exclusive=True)
        mount = self._volume_mounts.enter(found.volume, [], shared=False)
        if targets.settled(place, found, mount, flags, "published"):
            return
        place.make_directory()
        place.check_empty()
        source = self._volume_mounts.open_path(mount, "")
        try:
            targets.bind_at(source, place, flags)
        finally:
            os.close(source)

    def remove(self, found: FoundVolume, why: str) -> None:
        """Deletes an inline volume with its data, if it is of this node.  The caller holds its lock.

        Raises CsiError: FAILED_PRECONDITION while it is mounted elsewhere than by the driver, UNAVAILABLE; and FsError.
        """
        assert found.record is not None
        if found.inline_node != self._driver.node:  # this machine had another identity then: it is left to `poll`
            return
        mount = self._volume_mounts.mounted(found.volume)
        if mount is not None and (used := self._volume_mounts.used(mount.device, mount.dir)):
            raise precondition(f"inline volume {found.handle} is still mounted at {used[0].dir}; it is deleted when it is not")
        self._volume_mounts.leave(found.volume)
        self._volumes.propose(EndClaims(self._driver.node, found.volume.volume, "", why))
        self._drop(found.record, why)

    def _drop(self, record: CsiVolumeInfo, why: str) -> None:
        try:
            self._volumes.propose(DropCsiVolume(record.id, True))
            logger.info("inline volume deleted", extra={"volume": record.id, "named": record.name, "reason": why})
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise

    # --- what was left ------------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Deletes what was left, at the first call and then every EVERY_S.  Blocks, and logs errors instead of raising."""
        now_s = time.monotonic()
        if now_s < self._look_at_s:
            return
        try:
            self._clear()
            self._look_at_s = now_s + EVERY_S
        except (Error, OSError) as err:
            logger.debug("inline volumes cannot be looked at yet; the daemon tries again", extra={"reason": str(err)})

    def _clear(self) -> None:
        nodes: set[str] = set()
        for record in self._records():
            node = dict(record.settings)[INLINE_NODE]
            try:
                if node == self._driver.node:
                    self._clear_own(record)
                    continue
                nodes = nodes or {*self._volumes.nodes(), *self._driver.voters}
                if node not in nodes:
                    self._drop(record, "its node was removed from the cluster")
            except (Error, OSError) as err:
                fields = {"volume": record.id, "named": record.name, "node": node, "reason": str(err)}
                logger.warning("an inline volume that was left cannot be deleted yet; the daemon tries again", extra=fields)

    def _records(self) -> list[CsiVolumeInfo]:
        found: list[CsiVolumeInfo] = []
        after = ""
        while rows := self._volumes.page(after, CSI_PAGE_MAX):
            found += [row for row in rows if dict(row.settings).get(INLINE_NODE)]
            after = rows[-1].id
            if len(rows) < CSI_PAGE_MAX:
                break
        return found

    def _clear_own(self, record: CsiVolumeInfo) -> None:
        if self._is_known(record):
            return
        with self._locks.alone(f"volume {record.id}"):
            found = self._volumes.find_inline(record.name)
            if found is not None and found.record is not None and not self._is_known(found.record):
                self.remove(found, "kubelet does not know it any more")

    def _is_known(self, record: CsiVolumeInfo) -> bool:
        """True if kubelet may still unpublish the volume, or publish it again: its directory of it is there, or kubelet's disk is not."""
        target = dict(record.settings).get(INLINE_TARGET, "")
        return not _is_gone(os.path.dirname(target)) or _is_gone(str(self._driver.kubelet_dir / "pods"))


def _is_gone(path: str) -> bool:
    """True if nothing is there.  A disk that cannot tell (EIO) is no proof: what is asked for decides over data."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
