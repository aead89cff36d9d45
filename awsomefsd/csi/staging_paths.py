"""A staged volume is bound to a directory below the staging path, never to the staging path itself.

kubelet asks for no NodeUnstage while another mount shows the same root of the same superblock as its staging path (GetDeviceMountRefs,
HasMountRefs).  The volume mount is such a mount, and so is the staging path of another handle of the volume: both would keep each other
staged for ever.  At a path where nothing is mounted, kubelet finds no such mount.

Earlier builds bound the volume to the staging path itself; these binds are moved.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from awsomefsd.base.errors import Error
from awsomefsd.csi import rules
from awsomefsd.csi.kubelet_paths import KubeletDirectory, KubeletPath, attach, copy_mount
from awsomefsd.csi.volume_locks import VolumeLocks
from awsomefsd.keeper import mount_syscalls

logger = logging.getLogger(__name__)
NAME = "volume"  # of the directory below a staging path
_STAGING, _LAST = "plugins/kubernetes.io/csi", "/globalmount"  # the staging paths of kubelet


@contextlib.contextmanager
def staged_at(place: KubeletPath) -> Iterator[KubeletPath]:
    """Yields the path where the volume of a staging path is bound, if it is staged."""
    if place.mounted() is not None or place.kind() != stat.S_IFDIR:  # bound there by an earlier build; or not staged
        yield place
        return
    with place.below(NAME) as below:
        yield below


def move_below(place: KubeletPath) -> None:
    """Moves the bind of an earlier build from the staging path to the directory below it; without one it does nothing.

    The caller holds the lock of the path.  If the process dies in between, nothing is staged there until kubelet asks again, as it does
    when it is started.  Raises CsiError and OSError.
    """
    entry = place.mounted()
    if entry is None or entry.fstype != mount_syscalls.FSTYPE:
        return
    source = place.open()
    try:
        tree = copy_mount(source, [flag for flag in entry.options.split(",") if flag in rules.BIND_FLAGS])
    finally:
        os.close(source)
    try:
        place.umount(detach=True)
        with place.below(NAME) as below:
            below.make_directory()
            target = below.open()
            try:
                attach(tree, target)
            finally:
                os.close(target)
    finally:
        os.close(tree)
    logger.info("staged volume moved below its staging path, so that kubelet can unstage it", extra={"path": place.path})


def move_all(kubelet: Path, locks: VolumeLocks) -> bool:
    """Moves the binds of earlier builds at all staging paths of kubelet.  Returns False if one could not be moved yet; blocks."""
    done, real = True, os.path.realpath(kubelet)
    root = KubeletDirectory(kubelet)
    for entry in mount_syscalls.mounts():
        if entry.fstype == mount_syscalls.FSTYPE and entry.dir.startswith(f"{real}/{_STAGING}/") and entry.dir.endswith(_LAST):
            try:
                with root.place(entry.dir, "staging path") as place, locks.alone(f"path {place.path}"):
                    move_below(place)
            except (Error, OSError) as err:
                logger.warning("a staged volume cannot be moved yet; the daemon tries again", extra={"path": entry.dir, "reason": str(err)})
                done = False
    return done
