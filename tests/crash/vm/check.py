"""What a power cut has left: the filesystem with the state directory recovers, the node opens, its check is clean, the files are as
told.

In this process, without a mount: the journal is replayed into the state store as the daemon does it at its start, and files are read
through the reader that workers use, from the image of the device.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from awsomefsd.base import identity
from awsomefsd.base.limits import READDIR_ENTRIES_MAX
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import read_superblock
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.replica import Replica
from tests.crash.vm import workload

END = 1 << 62
Ask = Callable[[Any], Any]


def files_of(ask: Ask, device: Device, volume: int, folder: int) -> workload.Files:
    found: workload.Files = {}
    for entry in ask(m.ReadDir(volume, folder, 0, READDIR_ENTRIES_MAX, False)).entries:
        if entry.name in (b".", b".."):
            continue
        attr = ask(m.GetAttr(volume, entry.ino)).attr
        if stat.S_ISREG(attr.mode) and not entry.name.startswith(b"loose"):
            found[entry.name.decode()] = _content(ask, device, volume, entry.ino, attr.size)
    return found


def _content(ask: Ask, device: Device, volume: int, ino: int, size: int) -> bytes:
    layout = ask(m.GetLayout(volume, ino, 0, END))
    if layout.inline is not None:
        return bytes(layout.inline.ljust(size, b"\0"))
    content = bytearray(size)
    places = {info.segment: info for info in layout.segments}
    reader = SegmentReader({info.device: device for info in layout.segments}, places.__getitem__)
    for extent in layout.extents:
        buffer = aligned_buffer(extent.length)
        reader.read(extent, volume, ino, 0, extent.length, buffer)
        content[extent.file_offset : extent.file_offset + extent.length] = buffer
    return bytes(content)


def faults(state: Path, image: Path, volume: str, wrong: Callable[[int, workload.Files], list[str]], programs: int) -> list[str]:
    """What is wrong with a state directory and its device; [] if nothing."""
    node = identity.load(state)
    replica = Replica.open_single(state / "meta", node.cluster, node.node, Machine)
    try:
        replica.machine.flush()
        said = [f"fsck: {fault}" for fault in check(replica.store)]

        def ask(body: Any) -> Any:
            reply = answer(replica.machine, body)
            if isinstance(reply, m.Failed):
                raise OSError(reply.errno, f"{body}: {reply.detail}")
            return reply

        number = next(row.volume for row in ask(m.GetVolumes("")).volumes if row.name == volume)
        with Device.open(image, read_only=True) as device:
            read_superblock(device, node.cluster)
            for program in range(programs):
                folder = ask(m.Lookup(number, ROOT_INO, str(program).encode())).attr.ino
                said += [f"program {program}: {row}" for row in wrong(program, files_of(ask, device, number, folder))]
    finally:
        replica.close()
    return said
