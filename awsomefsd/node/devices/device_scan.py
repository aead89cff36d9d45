"""The search for devices of the cluster among the block devices of this machine, by their superblocks alone.

Nothing is written, and only superblocks are read.  Each device is read by a thread of its own with a deadline.  A path that hangs (its
target is gone) costs one such thread until it answers; it is left out meanwhile, and the others are found all the same.

A device that is not ours, or that this node must not use, comes with the reason: of another cluster, of a newer format, smaller than it
was, damaged, unknown to the cluster, or two media with one superblock (one is a copy, and it is not known which of them is meant).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Container, Iterable

from msgspec import Struct

from awsomefsd.base.errors import Error, NotFound
from awsomefsd.base.limits import DEVICE_PROBE_MS_MAX
from awsomefsd.io.device.block_devices import FoundDevice, block_devices
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import UNWRITABLE, first_copy, read_superblock
from awsomefsd.meta.api.messages.devices import NO_ANSWER, NO_LOOK

OK = "ok"
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # of this process or machine, not of the device
_SILENT = (errno.ENXIO, errno.ENOMEDIUM, errno.ENODEV, errno.ENOENT, errno.EACCES, errno.EPERM)  # nothing there to read


class Looked(Struct, frozen=True):
    """One device as it was read.  `verdict`: OK, or the reason why it is not used.  `bytes`: its present size."""

    path: str
    uuid: str
    bytes: int
    verdict: str
    serial: str = ""
    era: int = 0


Look = Callable[[str, str], Looked | None]


class Prober:
    """Reads the superblock of one device in bounded time.  Thread-safe."""

    def __init__(self, cluster: str, patience_ms: int = DEVICE_PROBE_MS_MAX, look: Look | None = None) -> None:
        self._cluster = cluster
        self._patience_s = patience_ms / 1_000
        self._look = look or looked
        self._hanging: dict[str, threading.Thread] = {}

    def probe(self, path: str) -> Looked | None:
        """Returns what is at `path`, or None if it is no device of a cluster.

        Blocks for `patience_ms` at most; raises no error of the device.
        """
        before = self._hanging.get(path)
        if before is not None and before.is_alive():
            return Looked(path, "", 0, NO_ANSWER)
        found: list[Looked | None] = []
        thread = threading.Thread(target=lambda: found.append(self._look(path, self._cluster)), name="device-probe", daemon=True)
        thread.start()
        thread.join(self._patience_s)
        if thread.is_alive():
            self._hanging[path] = thread
            return Looked(path, "", 0, NO_ANSWER)
        self._hanging.pop(path, None)
        return found[0] if found else None


def looked(path: str, cluster: str) -> Looked | None:
    """Reads the superblock at `path`; returns None for what is no device of a cluster.  Blocks for as long as the device does."""
    uuid, size = "", 0
    try:
        with Device.open(path, read_only=True) as device:
            size = device.bytes
            first = first_copy(device)
            uuid = first.device_uuid if first is not None else ""
            superblock = read_superblock(device, cluster)
    except NotFound:
        return None
    except OSError as err:
        if err.errno in _SHORT:
            return Looked(path, uuid, size, f"{NO_LOOK}: {err.strerror}")
        return None if err.errno in _SILENT else Looked(path, uuid, size, f"cannot be read: {err.strerror}")
    except Error as err:
        return Looked(path, uuid, size, str(err))
    if not superblock.writable:
        return Looked(path, superblock.device_uuid, size, UNWRITABLE)
    return Looked(path, superblock.device_uuid, size, OK, era=superblock.era)


def scan(
    prober: Prober, known: Container[str], extra: Iterable[str] = (), listing: Callable[..., list[FoundDevice]] = block_devices
) -> list[Looked]:
    """Returns every device with a superblock of a cluster, and every path that does not answer.

    `known`: UUIDs of the devices of this cluster.  Blocks for the devices that hang, one after the other.
    """
    found = []
    for one in listing(extra):
        seen = prober.probe(one.path)
        if seen is None:
            continue
        if seen.verdict == OK and seen.uuid not in known:
            seen = Looked(seen.path, seen.uuid, seen.bytes, "the cluster does not know it, or not any more; `awsomefsd device add` adds it")
        found.append(Looked(seen.path, seen.uuid, seen.bytes, seen.verdict, one.serial, seen.era))
    return _without_copies(found)


def _without_copies(found: list[Looked]) -> list[Looked]:
    """Leaves the first of several paths to one medium, and marks all of several media with one superblock as copies."""
    media: dict[str, set[str]] = {}
    for one in found:
        if one.verdict == OK and one.serial:
            media.setdefault(one.uuid, set()).add(one.serial)
    listing: list[Looked] = []
    taken: set[str] = set()
    for one in found:
        if one.verdict == OK and len(media.get(one.uuid, ())) > 1:
            words = "two devices have this superblock, so one is a copy of the other; remove the copy"
            listing.append(Looked(one.path, one.uuid, one.bytes, words, one.serial))
        elif one.verdict != OK or one.uuid not in taken:
            taken.add(one.uuid)
            listing.append(one)
    return listing
