"""Decoders of what lies on disks and in shared memory.

Almost every format ends in a checksum, which random bytes never pass.  So each target takes a first byte that says whether the checksum is
made right again after the mutation: behind a right one the decoder must still hold against everything.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from crc32c import crc32c

from awsomefsd.base.codec import Sealed, seal
from awsomefsd.base.errors import Corrupt, FormatTooNew, FsError, NotFound, Refused
from awsomefsd.io.device import superblock
from awsomefsd.io.device.checksum import block_count
from awsomefsd.io.segment import footer as segment
from awsomefsd.io.segment import frame
from awsomefsd.meta.api import acl
from awsomefsd.meta.log import format
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.replica.store import IDENTITY
from awsomefsd.meta.state import rows
from awsomefsd.meta.voter import ports
from awsomefsd.repl.cursor import CURSOR
from tests.fuzz.target import Target
from tests.unit.worker.test_shared_memory_formats import AREAS, read_all

UUID = "12345678-1234-5678-1234-567812345678"
CLUSTER, NODE, INCARNATION = b"c" * 16, b"n" * 16, b"i" * 16
SEALED = {name: value for name, value in vars(rows).items() if isinstance(value, Sealed)} | {"CURSOR": CURSOR, "IDENTITY": IDENTITY}


def resealed(raw: bytes, at: int, checksum: Callable[[memoryview], int]) -> bytes:
    """The bytes with their checksum at `at` made right."""
    fixed = bytearray(raw)
    struct.pack_into("<I", fixed, at, checksum(memoryview(fixed)))
    return bytes(fixed)


# --- superblock ---------------------------------------------------------------------------------------------------------
def superblock_seeds() -> list[bytes]:
    block = superblock.pack(superblock.Superblock(UUID, UUID, 64 << 20, 1 << 20, 62, 5))
    return [b"\0" + block, b"\1" + block]


def superblock_run() -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        block = data[1:].ljust(superblock.SUPERBLOCK_BYTES, b"\0")[: superblock.SUPERBLOCK_BYTES]
        if data[0] & 1:
            block = resealed(block, superblock._CRC_AT, lambda view: crc32c(view[: superblock._CRC_AT]))
        try:
            found = superblock.unpack(block)
        except (NotFound, Corrupt, FormatTooNew):
            return
        assert found.first_segment_offset + found.segments * found.segment_bytes <= found.device_bytes
        assert superblock.unpack(superblock.pack(found)) == found

    return run


# --- frame and footer ---------------------------------------------------------------------------------------------------
def _frame(stored: int) -> frame.Frame:
    checksums = [7] * block_count(stored)
    return frame.Frame(1, 5, 0, 3, 1, 9, stored, stored, frame.header_bytes_of(stored), 77, checksums, 0, 0, 0)


def _header(stored: int) -> bytes:
    made = _frame(stored)
    raw = bytearray(made.header_bytes)
    frame.pack_header(made, memoryview(raw))
    return bytes(raw)


def frame_seeds() -> list[bytes]:
    checks = [segment.checks_of(_frame(5000), 0), segment.checks_of(_frame(9), 8192)]
    footer = bytes(segment.pack_footer(3, 1, 20_000, checks))[:400]
    return [bytes([mode]) + raw for mode, raw in ((0, _header(9)), (1, _header(9)), (1, _header(1 << 20)), (2, footer), (3, footer))]


def frame_run() -> Callable[[bytes], None]:
    def header(raw: bytes, good: bool) -> None:
        if good and len(raw) >= frame._FIXED.size:
            length = frame._FIXED.unpack_from(raw)[5]
            if frame._FIXED.size <= length <= len(raw):
                raw = resealed(raw, frame._CRC_AT, lambda view: frame._header_checksum(view[:length]))
        found = frame.unpack_header(raw)
        assert len(found.checksums) == block_count(found.stored_bytes)

    def footer(raw: bytes, good: bool) -> None:
        if good and len(raw) >= segment._HEADER.size:
            frames, checksums = segment._HEADER.unpack_from(raw)[7:9]
            if segment._HEADER.size + segment._ENTRY.size * frames + 4 * checksums <= len(raw):
                raw = resealed(raw, segment._CRC_AT, lambda view: segment._checksum(view, frames, checksums))
        table = segment.unpack_footer(raw, 3, 1)
        for checks in table:
            assert table.find(checks.frame_offset) is not None and len(checks.checksums) == block_count(checks.stored_bytes)

    def run(data: bytes) -> None:
        try:
            (footer if data[0] & 2 else header)(data[1:], bool(data[0] & 1))
        except (Corrupt, FormatTooNew):
            pass

    return run


# --- journal --------------------------------------------------------------------------------------------------------------
class MemoryDisk:
    """A journal's directory in memory; implements meta.disk.Disk."""

    def __init__(self, files: dict[str, bytearray]) -> None:
        self.files = files
        self._open: dict[int, bytearray] = {}

    def open(self, path: str, flags: int) -> int:
        name = os.path.basename(path)
        if flags & os.O_TRUNC or name not in self.files:
            self.files[name] = bytearray()
        self._open[len(self._open)] = self.files[name]
        return len(self._open) - 1

    def close(self, fd: int) -> None:
        pass

    def size(self, fd: int) -> int:
        return len(self._open[fd])

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._open[fd][offset : offset + length])

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        file = self._open[fd]
        file.extend(bytes(max(0, offset + len(data) - len(file))))
        file[offset : offset + len(data)] = data

    def fdatasync(self, fd: int) -> None:
        pass

    def sync_directory(self, path: str) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        self.files[os.path.basename(new)] = self.files.pop(os.path.basename(old))

    def unlink(self, path: str) -> None:
        del self.files[os.path.basename(path)]

    def names(self, directory: str) -> list[str]:
        return list(self.files)

    def lock(self, directory: str) -> int:
        return -1  # nobody else knows these files

    def beside(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None


FILE_BYTES = 16_384
ENTRIES = [b"entry %d " % number * 5 for number in range(6)]


def _journal(files: dict[str, bytearray], create: bool) -> Journal:
    return Journal.open("/journal", CLUSTER, NODE, create=create, disk=MemoryDisk(files), file_bytes=FILE_BYTES, incarnation=INCARNATION)


def _journal_files() -> dict[str, bytearray]:
    files: dict[str, bytearray] = {}
    journal = _journal(files, True)
    journal.set_hard_state(1, NODE)
    for entry in ENTRIES[:4]:
        journal.append(1, [entry])
        journal.sync()
    journal.truncate_after(3)
    journal.set_hard_state(2, b"")
    journal.append(2, ENTRIES[4:])
    journal.sync()
    journal.close()
    return {name: file for name, file in files.items() if name.endswith(".journal")}


def journal_seeds() -> list[bytes]:
    block, seed = format.pack_header(format.FileHeader(CLUSTER, NODE, INCARNATION, 1, 1))
    record = format.pack_record(seed, 0, 0, format.ENTRY, 1, 1, b"payload of an entry")
    patches = struct.pack("<HB", 4100, 1) + struct.pack("<HB", 4200, 255)
    return [b"\0" + block, b"\1" + record, b"\2" + patches]


def journal_run() -> Callable[[bytes], None]:
    """0: a header, 1: a record, 2: a whole journal with bytes changed (offset u16, xor u8): it opens as a prefix or not at all."""
    good = _journal_files()
    _, seed = format.pack_header(format.FileHeader(CLUSTER, NODE, INCARNATION, 1, 1))
    kept = [ENTRIES[0], ENTRIES[1], ENTRIES[2], ENTRIES[4], ENTRIES[5]]

    def whole(patches: bytes) -> None:
        files = {name: bytearray(file) for name, file in good.items()}
        file = next(iter(files.values()))
        for offset, change in struct.iter_unpack("<HB", patches[: len(patches) // 3 * 3]):
            file[offset % len(file)] ^= change
        journal = _journal(files, False)
        try:
            entries = journal.read(1)
            assert entries in (kept[: len(entries)], ENTRIES[: len(entries)]), "an entry that was never written"
        finally:
            journal.close()

    def run(data: bytes) -> None:
        try:
            if data[0] % 3 == 0:
                format.unpack_header(data[1:], "fuzz")
            elif data[0] % 3 == 1:
                format.unpack_record(data[1:], 0, seed, 0)
                format.proof_of_damage(data[1:], 0, seed)
            else:
                whole(data[1:])
        except (Corrupt, FormatTooNew, Refused):
            pass

    return run


# --- values ---------------------------------------------------------------------------------------------------------------
def values_seeds() -> list[bytes]:
    table = [*SEALED.values()]
    body = rows.VOLUME.dumps(rows.VolumeRow(1, "u", "vol", 0, 0))
    access = acl.pack([(1, 6, 0xFFFFFFFF), (2, 7, 1000), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)])
    seeds = [bytes([0, at]) + body for at in range(len(table))]
    seeds += [bytes([1, at]) + b"\x92\x01\x02" for at in range(len(table))]
    return [*seeds, b"\2\0" + access, b"\3\0" + ports.pack_note(ports.AppliedAt(1, 1))]


def values_run() -> Callable[[bytes], None]:
    """0: any bytes as a row, 1: with the seal made right, 2: an ACL, 3: the note of a snapshot."""
    table = [*SEALED.values()]

    def run(data: bytes) -> None:
        if len(data) < 2:
            return
        kind, which, body = data[0] % 4, table[data[1] % len(table)], data[2:]
        try:
            if kind == 0:
                which.loads(body)
            elif kind == 1:
                value = which.loads(seal(which.schema, body))
                assert which.loads(which.dumps(value)) == value
            elif kind == 2:
                entries = acl.parse(body)
                assert acl.parse(acl.pack(entries)) == entries
                if entries:
                    acl.inherited(entries, 0o666)
                    acl.with_mode(entries, 0o751)
            else:
                ports.unpack_note(body)
        except (Corrupt, FormatTooNew, FsError):
            pass

    return run


# --- shared memory ----------------------------------------------------------------------------------------------------------
def memory_seeds() -> list[bytes]:
    return [bytes([at]) + struct.pack("<I8s", 64, b"\xff" * 8) for at in range(len(AREAS))]


def memory_run() -> Callable[[bytes], None]:
    """The first byte names an area; the rest changes eight bytes of it at an offset, again and again.  A successor reads it all."""
    good = {name: make() for name, (make, _check) in AREAS.items()}
    names = [*AREAS]

    def run(data: bytes) -> None:
        name = names[data[0] % len(names)]
        mem = bytearray(good[name])
        for offset, value in struct.iter_unpack("<I8s", data[1 : 1 + (len(data) - 1) // 12 * 12]):
            at = offset % (len(mem) - 8)
            mem[at : at + 8] = value
        try:
            read_all(name, mem)
        except (Corrupt, FormatTooNew):
            pass

    return run


TARGETS = [
    Target("superblock", superblock_seeds, superblock_run),
    Target("frame", frame_seeds, frame_run),
    Target("journal", journal_seeds, journal_run),
    Target("values", values_seeds, values_run),
    Target("shared memory", memory_seeds, memory_run),
]
