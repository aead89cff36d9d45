"""The volume mount: the one mount of a volume on this node, which all staging paths and targets of the volume are binds of.

A volume is mounted once on a node (decision 1).  The driver mounts it on a directory of its own below kubelet's plugins directory, unless
it is mounted elsewhere already: then that mount is used, and it stays when the driver is done with it.  A volume is mounted with
`shared` where other nodes may have it at the same time.  A shared mount also serves callers that need the volume for one node; the other
way round is refused.  A mount of the driver is unmounted when the kernel's mount table shows no other mount of the same superblock, and no
loop device has a file in it.  Each volume is a superblock of its own, as SELinux labels want it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

from awsomefsd.base.errors import NotFound
from awsomefsd.base.types import VolumeInfo
from awsomefsd.config import mount_options
from awsomefsd.csi import blocks, kubelet_paths, rules
from awsomefsd.csi.errors import CsiError, precondition
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.mount_syscalls import MountEntry
from awsomefsd.node.mounts import DEAD, DETACHED, SERVING, Mounts, MountView

BACK_S = 5.0


class VolumeMounts:
    """The mounts of volumes on this node.  Any thread may call; the caller holds the lock of the volume (volume_locks.py)."""

    def __init__(self, directory: Path, mounts: Mounts) -> None:
        self._directory = directory
        self._mounts = mounts

    @property
    def directory(self) -> str:
        return os.path.realpath(self._directory)

    def place_of(self, volume: VolumeInfo) -> str:
        return f"{self.directory}/{volume.uuid}"

    def entry(self, volume: VolumeInfo) -> MountEntry | None:
        """Returns the volume mount in the kernel's mount table; None if the volume is not mounted, or its mount is not served."""
        view = self._mounts.of_volume(volume.volume)
        found = mount_syscalls.topmost(view.directory) if view is not None and view.state == SERVING else None
        return found if found is not None and found.fstype == mount_syscalls.FSTYPE else None

    def comes_back(self, volume: VolumeInfo) -> bool:
        """Returns True if the volume mount is not served, or not known to be, at this moment only: its worker is exchanged, say."""
        view = self._mounts.of_volume(volume.volume)
        return view is not None and view.state not in (SERVING, DEAD, DETACHED)

    def mounted(self, volume: VolumeInfo) -> MountEntry | None:
        """Returns the volume mount in the kernel's mount table, served or not; None if the volume is not mounted."""
        view = self._mounts.of_volume(volume.volume)
        found = mount_syscalls.topmost(view.directory if view is not None else self.place_of(volume))
        return found if found is not None and found.fstype == mount_syscalls.FSTYPE else None

    def enter(self, volume: VolumeInfo, options: list[str], *, shared: bool) -> MountEntry:
        """Returns the volume mount, mounted now if it was not.  Blocks.

        Raises CsiError FAILED_PRECONDITION if it has other options, UNAVAILABLE if it is not served now, and what Mounts.mount raises.
        """
        options = [*options, "shared"] if shared else options
        view = self._mounts.of_volume(volume.volume)
        if view is not None:
            return self._present(volume, view, options)
        directory = Path(self.place_of(volume))
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        self._mounts.mount(volume.name, str(directory), options)
        found = mount_syscalls.topmost(str(directory))
        if found is None:
            raise CsiError("UNAVAILABLE", f"volume {volume.name} was unmounted while it was being mounted; try again")
        return found

    def _present(self, volume: VolumeInfo, view: MountView, options: list[str]) -> MountEntry:
        ours = view.directory == self.place_of(volume)
        there, wanted = mount_options.parse(list(view.options)), mount_options.parse(options)
        if ours and (replace(there, shared=False) != replace(wanted, shared=False) or wanted.shared > there.shared):
            has, asked = " ".join(view.options) or "none", " ".join(options) or "none"
            raise precondition(f"volume {volume.name} is mounted on this node with options {has}; the request asks for {asked}")
        return self._serving(volume, view)

    def _serving(self, volume: VolumeInfo, view: MountView) -> MountEntry:
        deadline = time.monotonic() + BACK_S  # it may be about to come back after its processes were killed
        while (found := self.entry(volume)) is None:
            if time.monotonic() > deadline:
                raise CsiError("UNAVAILABLE", f"the mount of volume {volume.name} at {view.directory} is {view.state}; try again")
            time.sleep(0.05)
        return found

    def entered(self, volume: VolumeInfo) -> MountEntry | None:
        """Returns the volume mount, or None.  Blocks up to BACK_S; raises CsiError: UNAVAILABLE if it is there but not served now."""
        view = self._mounts.of_volume(volume.volume)
        return None if view is None else self._serving(volume, view)

    def used(self, device: str, but: str) -> list[MountEntry]:
        """Returns all mounts of a superblock except the one at `but`."""
        return [entry for entry in mount_syscalls.mounts() if entry.device == device and entry.dir != but]

    def leave(self, volume: VolumeInfo) -> None:
        """Unmounts the volume if the mount is the driver's and nothing uses it any more.

        Blocks for the flush.  Raises CsiError UNAVAILABLE if it could not be flushed, and what Mounts.umount raises.
        """
        place = self.place_of(volume)
        entry = mount_syscalls.topmost(place)
        if entry is not None and entry.fstype == mount_syscalls.FSTYPE:
            if self.used(entry.device, place) or blocks.below(place, entry.device):
                return
            try:
                done = self._mounts.umount(place, force=False)
            except NotFound:
                mount_syscalls.umount(place)
            else:
                if not done.flushed:
                    raise CsiError("UNAVAILABLE", f"volume {volume.name} could not be flushed; see `awsomefsd status`")
        with contextlib.suppress(FileNotFoundError):
            try:
                os.rmdir(place)
            except OSError as err:
                if err.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise

    # --- files of the volume ------------------------------------------------------------------------------------------------

    def open_of_host(self, volume: VolumeInfo, mount: MountEntry) -> int:
        """Returns a descriptor (O_PATH) of the volume's root through the mount that its worker sees: the host's.

        What is opened from it holds no mount of the driver's container.  Raises CsiError UNAVAILABLE, and OSError.
        """
        view = self._mounts.of_volume(volume.volume)
        if view is None or not view.worker_pid:
            raise CsiError("UNAVAILABLE", f"the mount of volume {volume.name} at {mount.dir} is not served now; try again")
        try:
            return os.open(f"/proc/{view.worker_pid}/root{mount.dir}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError) as err:
            raise CsiError("UNAVAILABLE", f"the worker of volume {volume.name} is just being replaced; try again") from err

    def open_path(self, mount: MountEntry, path: str, *, make: rules.WantedVolume | None = None) -> int:
        """Returns a descriptor (O_PATH) of a directory or file in the volume, through no symlink; a directory is made if `make` says how.

        Raises CsiError FAILED_PRECONDITION if there is none, and OSError.
        """
        root = os.open(mount.dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not path:
                return os.dup(root)
            if make is not None:
                _make_directories(root, path, make)
            return kubelet_paths.open_beneath(root, path)
        except OSError as err:
            if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise precondition(f"{path} is not a directory or file of volume {mount.source}") from err
            raise
        finally:
            os.close(root)

    def remove_directory(self, volume: VolumeInfo, path: str, *, shared: bool) -> None:
        """Removes a directory of the volume with all its content; does nothing if it does not exist.  Blocks; raises CsiError."""
        head, _, name = path.rpartition("/")
        mount = self.enter(volume, [], shared=shared)
        try:
            root = os.open(mount.dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                parent = kubelet_paths.open_beneath(root, head or ".", os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                return
            finally:
                os.close(root)
            try:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                    raise precondition(f"{path} of volume {volume.name} is not a directory; it was not removed")
                shutil.rmtree(name, dir_fd=parent)  # follows no symlink, not even one that is planted meanwhile
            except FileNotFoundError:
                return
            finally:
                os.close(parent)
        finally:
            self.leave(volume)


def _make_directories(root: int, path: str, wanted: rules.WantedVolume) -> None:
    """Makes the directories of a path; only the last one gets the wanted owner and mode."""
    parts = path.split("/")
    at = os.dup(root)
    try:
        for number, part in enumerate(parts):
            try:
                os.mkdir(part, 0o755, dir_fd=at)
                made = True
            except FileExistsError:
                made = False
            below = kubelet_paths.open_beneath(at, part, os.O_RDONLY | os.O_DIRECTORY)
            os.close(at)
            at = below
            if made and number == len(parts) - 1:
                os.fchown(at, wanted.uid, wanted.gid)
                os.fchmod(at, wanted.mode)
    finally:
        os.close(at)
