"""Block volumes: one file of a volume behind a loop device on each node that has it staged (blocks.py), bound to targets like a volume.

A volume for many nodes is mounted with `shared` on each, and every node has a device of its own over the one file.  What a node has written
is seen by the others because nothing is kept above the file but what an application itself keeps: the pages of the device, unless it opens
that with O_DIRECT.  So a device without direct I/O to the file is refused there, and all devices have sectors of the same size.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from awsomefsd.base import consistency
from awsomefsd.csi import blocks, rules
from awsomefsd.csi.errors import CsiError, precondition
from awsomefsd.csi.kubelet_paths import KubeletPath, bind, open_beneath
from awsomefsd.csi.volume_locks import WAIT_S
from awsomefsd.csi.volume_mounts import VolumeMounts
from awsomefsd.csi.volumes import BLOCK_FILE, DriverVolumes, FoundVolume
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.mount_syscalls import MountEntry


class BlockVolumes:
    """The files of block volumes, their devices and targets on this node.  Any thread may call; the caller holds the lock of the volume."""

    def __init__(self, volumes: DriverVolumes, volume_mounts: VolumeMounts) -> None:
        self._volumes = volumes
        self._volume_mounts = volume_mounts

    def stage(self, found: FoundVolume, mount: MountEntry, mode: int) -> None:
        """Puts a device over the file of the volume, which is allocated first; one that is there stays.  Blocks.

        Raises CsiError: FAILED_PRECONDITION where several nodes may have it and the kernel has no direct I/O, and those of `allocate`.
        """
        if found.record is not None:
            self.allocate(mount, found.record.capacity)
        if mode not in rules.EXCLUSIVE:
            _check_strict(f"{mount.dir}/{_file_of(found)}")
        self.detach_dead(found, mount)
        made = [] if (names := blocks.of_file(block_file(found, mount))) else [self._attach(found, mount, read_only=mode in rules.READERS)]
        if mode in rules.EXCLUSIVE:
            return
        try:
            for name in names or made:
                blocks.check_coherent(name)
        except CsiError:
            for name in made:
                blocks.detach(name)
            raise

    def _attach(self, found: FoundVolume, mount: MountEntry, *, read_only: bool) -> str:
        directory = self._volume_mounts.open_of_host(found.volume, mount)
        try:
            file = open_beneath(directory, _file_of(found), os.O_RDONLY if read_only else os.O_RDWR)
        except OSError as err:
            raise precondition(f"{_file_of(found)} of volume {found.volume.name} cannot be opened: {err.strerror}") from err
        finally:
            os.close(directory)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise precondition(f"{_file_of(found)} of volume {found.volume.name} is not a file, as the image of a block volume must be")
            return blocks.attach(file, read_only=read_only)
        finally:
            os.close(file)

    def allocate(self, mount: MountEntry, size: int) -> int:
        """Allocates the whole file of a block volume; existing content stays.  Returns its size in bytes.

        One node at a time, under a lock that all nodes see: the one that comes second finds the file allocated.
        """
        directory = os.open(mount.dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = os.open(BLOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                _lock_file(file)
                if (there := os.fstat(file).st_size) < size:
                    _allocate(file, there, size)
                return max(size, there)
            finally:
                os.close(file)
        finally:
            os.close(directory)

    def detach_dead(self, found: FoundVolume, mount: MountEntry) -> None:
        """Detaches the devices of mounts whose processes have all died, where no pod has them any more."""
        for name in blocks.dead(block_file(found, mount)):
            if not published(name):
                blocks.detach(name)

    def publish(self, found: FoundVolume, mount: MountEntry, place: KubeletPath, mode: int) -> None:
        """Binds the device of a staged volume to a target.  Raises CsiError: FAILED_PRECONDITION, ALREADY_EXISTS."""
        names = blocks.of_file(block_file(found, mount))
        if not names:
            raise precondition(f"{found.handle} is not staged on this node")
        entry = place.mounted()
        if entry is not None:
            if entry.root not in {f"/{name}" for name in names}:
                raise CsiError("ALREADY_EXISTS", f"{place.path} has another file system mounted")
            return
        if mode in rules.ONE_TARGET and (others := published(names[0])):
            raise precondition(f"{found.handle} is published at {others[0]} already; its access mode allows one target")
        place.make_file()
        if os.lstat(place.name, dir_fd=place.parent).st_size:
            raise precondition(f"{place.path} is a file with content, so nothing is mounted there; remove it")
        source = os.open(f"/dev/{names[0]}", os.O_PATH | os.O_CLOEXEC)
        try:
            target = place.open()
            try:
                bind(source, target, [])
            finally:
                os.close(target)
        finally:
            os.close(source)

    def check_target(self, place: KubeletPath, entry: MountEntry, found: FoundVolume | None) -> None:
        """Raises FAILED_PRECONDITION unless the device at a place is over the file of the volume, or somebody has taken its file away.

        One of a volume that is not known is: over a file of no volume that is.
        """
        device = _device_at(place)
        path, directory = blocks.backing_of(device), self._volume_mounts.directory
        below = path.startswith(f"{directory}/")
        if found is not None and (blocks.is_over(device, self._known_file(found)) or blocks.is_empty(device)):
            return
        if not below and path != f"/{BLOCK_FILE}":
            raise precondition(f"{place.path} has a foreign {entry.fstype} file system mounted; it was not unmounted")
        owner = path.removeprefix(f"{directory}/").partition("/")[0] if below else ""
        if found is not None or any(owner == volume.uuid for volume in self._volumes.every()):
            raise precondition(f"{place.path} is the device of another volume; it was not unmounted")

    def _known_file(self, found: FoundVolume) -> blocks.BlockFile:
        """The file of a block volume, also of one that is not mounted any more."""
        mount = self._volume_mounts.mounted(found.volume)
        place = self._volume_mounts.place_of(found.volume)
        return block_file(found, mount) if mount is not None else blocks.BlockFile(place, "", _file_of(found))


def _file_of(found: FoundVolume) -> str:
    """The file of a block volume: its own, or the one that a handle names."""
    return BLOCK_FILE if found.record is not None else found.path or BLOCK_FILE


def block_file(found: FoundVolume, mount: MountEntry) -> blocks.BlockFile:
    return blocks.BlockFile(mount.dir, mount.device, _file_of(found))


def _allocate(file: int, there: int, size: int) -> None:
    try:
        os.posix_fallocate(file, there, size - there)
        os.fsync(file)
    except OSError as err:
        raise CsiError("RESOURCE_EXHAUSTED", f"no space for {size} bytes: {err.strerror}") from err


def _check_strict(path: str) -> None:
    """Raises FAILED_PRECONDITION for a file that may show old bytes on one node after another has written."""
    try:
        there = os.getxattr(path, consistency.XATTR, follow_symlinks=False).decode()
    except OSError:  # it has none, or is not there: opening it says so
        return
    if there != "strict":
        raise precondition(f"{path} has consistency {there}; a block volume of several nodes needs strict")


def _lock_file(file: int) -> None:
    """Locks an open file until it is closed; blocks up to WAIT_S.  Raises CsiError ABORTED while another node has the lock."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CsiError("ABORTED", "another node is allocating the volume's space; try again") from None
        time.sleep(0.02)


def _device_at(place: KubeletPath) -> int:
    try:
        return os.lstat(place.name, dir_fd=place.parent).st_rdev
    except OSError:
        return 0


def published(name: str) -> list[str]:
    """Returns the paths that a loop device is bound to."""
    return [entry.dir for entry in mount_syscalls.mounts() if entry.root == f"/{name}" and entry.dir != f"/dev/{name}"]
