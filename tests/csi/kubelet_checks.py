"""Checks of kubelet before it asks the driver, played: SearchMountPoints and HasMountRefs of Kubernetes 1.36.

It reads the mount table of the host.  Anything else than an empty answer keeps a volume staged, without an end.
"""

from __future__ import annotations

import os
from pathlib import Path

_PLUGINS = "/plugins/kubernetes.io/"


def device_mount_refs(place: Path) -> list[str]:
    """The other mounts of what is at a path: the same superblock (major:minor) and the same root, or the same directory of its host."""
    path = os.path.realpath(place)
    rows = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    within = [row for row in rows if path == row[4] or path.startswith(row[4].rstrip("/") + "/")]
    number, device, root, at = within[-1][0], within[-1][2], within[-1][3], within[-1][4]
    shown = os.path.join(root, path.removeprefix(at).strip("/")).rstrip("/") or "/"
    return [row[4] for row in rows if row[0] != number and (row[2], row[3]) == (device, shown)]


def has_mount_refs(place: Path, others: list[str]) -> bool:
    """True if kubelet leaves the volume staged because of these mounts."""
    path = str(place)
    wanted = path[path.index(_PLUGINS) :] if _PLUGINS in path else path
    return any(wanted not in other for other in others)
