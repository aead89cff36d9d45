"""A target, like the place below a staging path, shows a bind of a volume mount; the kernel's mount table says of which."""

from __future__ import annotations

import os

from awsomefsd.csi.errors import CsiError, precondition
from awsomefsd.csi.kubelet_paths import KubeletPath, bind, effective
from awsomefsd.csi.volumes import FoundVolume
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.mount_syscalls import MountEntry
from awsomefsd.node.mounts import is_dead

_FLAGS_SHOWN = {"ro", "nosuid", "nodev", "noexec"}  # as the mount table names them


def root_of(found: FoundVolume) -> str:
    """Returns the root that the mount table shows for binds of a volume or directory."""
    return "/" + found.path


def settled(place: KubeletPath, found: FoundVolume, mount: MountEntry, flags: list[str], what: str) -> bool:
    """Returns True if the volume is mounted at the place already.  A dead mount of ours is unmounted; anything else raises CsiError."""
    while (entry := place.mounted()) is not None:
        if entry.fstype != mount_syscalls.FSTYPE:
            raise precondition(f"{place.path} has a foreign {entry.fstype} file system mounted")
        if entry.device != mount.device and is_dead(place.path):
            place.umount(detach=True)
            continue
        if (entry.device, entry.root) != (mount.device, root_of(found)):
            raise CsiError("ALREADY_EXISTS", f"{place.path} has {entry.source}{entry.root} mounted, not {found.handle}")
        if effective(entry.options.split(",")) & _FLAGS_SHOWN != effective(flags) & _FLAGS_SHOWN:
            raise CsiError("ALREADY_EXISTS", f"{found.handle} is {what} at {place.path} with options {entry.options}")
        return True
    return False


def bind_at(source: int, place: KubeletPath, flags: list[str]) -> None:
    """Binds an open directory to a place, with mount flags of its own.  Raises CsiError and OSError."""
    target = place.open()
    try:
        bind(source, target, flags)
    finally:
        os.close(target)
