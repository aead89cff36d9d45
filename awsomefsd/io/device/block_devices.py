"""The block devices of this machine, each once, under the name that lasts longest.

A device that is a part of something else (a path of a multipath device, a member of RAID or LVM) has a holder in /sys, and is left out:
only the device above it is to be used.  Names: /dev/mapper/NAME of the device mapper, else the first of /dev/disk/by-id, else /dev/NAME.
`serial` identifies the medium, as far as the kernel knows it: two devices with the same serial are two ways to the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from awsomefsd.base.limits import SCAN_DEVICES_MAX

SYS = Path("/sys/block")
DEV = Path("/dev")
_NEVER = ("ram", "zram", "fd", "sr", "nbd")  # they keep nothing, or are slow to ask; an nbd device is added by its path
_SERIALS = ("device/wwid", "wwid", "device/serial", "serial", "dm/uuid", "loop/backing_file")


class FoundDevice(NamedTuple):
    path: str
    serial: str


def block_devices(extra: Iterable[str] = (), sys: Path = SYS, dev: Path = DEV) -> list[FoundDevice]:
    """Returns the usable block devices, those of the device mapper first; `extra` paths last, and as they are.

    At most SCAN_DEVICES_MAX.
    """
    links = _by_id(dev)
    found = [one for entry in _entries(sys) if (one := _usable(entry, dev, links)) is not None]
    found.sort(key=lambda one: not one.path.startswith(f"{dev}/mapper/"))
    known = {os.path.realpath(one.path) for one in found}
    found += [FoundDevice(path, "") for path in extra if os.path.realpath(path) not in known and os.path.exists(path)]
    return found[:SCAN_DEVICES_MAX]


def names_of(path: str, dev: Path = DEV) -> list[str]:
    """Returns all names of a block device below /dev/disk/by-id."""
    return _by_id(dev).get(os.path.realpath(path), [])


def serial_of(path: str, sys: Path = SYS) -> str:
    """Returns the serial of a block device; "" for a file, and where the kernel has none."""
    name = os.path.basename(os.path.realpath(path)).replace("/", "!")
    entry = next((one for one in _entries(sys) if one.name == name), None)
    return _serial(entry) if entry is not None else ""


def _entries(sys: Path) -> Iterator[Path]:
    """Yields the entries of disks and partitions."""
    for disk in sorted(sys.glob("*")):
        yield disk
        yield from sorted(part.parent for part in disk.glob("*/partition"))


def _usable(entry: Path, dev: Path, links: dict[str, list[str]]) -> FoundDevice | None:
    if entry.name.startswith(_NEVER) or _text(entry / "size") in ("", "0"):
        return None
    if any((entry / "holders").glob("*")):
        return None
    plain = str(dev / entry.name.replace("!", "/"))
    mapper = _text(entry / "dm/name")
    if mapper and (dev / "mapper" / mapper).exists():
        return FoundDevice(str(dev / "mapper" / mapper), _serial(entry))
    if not os.path.exists(plain):
        return None
    return FoundDevice(next(iter(links.get(os.path.realpath(plain), [])), plain), _serial(entry))


def _serial(entry: Path) -> str:
    told = next((text for name in _SERIALS if (text := _text(entry / name))), "")
    if told:
        return told
    if (entry / "partition").exists() and (disk := _serial(entry.parent)):
        return f"{disk} part {_text(entry / 'partition')}"
    return ""


def _by_id(dev: Path) -> dict[str, list[str]]:
    links: dict[str, list[str]] = {}
    for link in sorted((dev / "disk/by-id").glob("*")):
        links.setdefault(os.path.realpath(link), []).append(str(link))
    return links


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
