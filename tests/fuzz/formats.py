"""Decoders of what lies on disks, in shared memory, and in the records that bulk data goes in.

Almost every format ends in a checksum, which random bytes never pass.  So each target takes a first byte that says whether the checksum is
made right again after the mutation: behind a right one the decoder must still hold against everything.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from uuid import UUID as ObjectUuid

from crc32c import crc32c

from awsomefsd.base.codec import Sealed, seal
from awsomefsd.base.errors import Corrupt, FormatTooNew, FsError, NotFound, ProtocolError, Refused
from awsomefsd.io.device import superblock
from awsomefsd.io.device.checksum import block_checksums, block_count, seed_of
from awsomefsd.io.pool import bay_findings, bay_walk
from awsomefsd.io.segment import footer as segment
from awsomefsd.io.segment import frame
from awsomefsd.io.transport import link, messages, records
from awsomefsd.io.transport import seal as seals
from awsomefsd.meta.api import acl
from awsomefsd.meta.log import format
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.replica.store import IDENTITY
from awsomefsd.meta.state import rows
from awsomefsd.meta.voter import ports
from awsomefsd.repl.cursor import CURSOR
from awsomefsd.tier import object_format, segment_object, store_secret
from awsomefsd.tier.credentials import Credentials
from awsomefsd.tier.names import BatchName, EraName, PieceName, SegmentName, parse
from awsomefsd.tier.sealing import LogSeal
from tests.fuzz.target import Target
from tests.rigs.segments_in_memory import a_segment
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


# --- records of segment servers ---------------------------------------------------------------------------------------------
KEYS = [seals.keys_of(bytes(32), bytes(32), UUID, UUID, dialled=dialled) for dialled in (True, False)]
MESSAGES = [
    messages.BulkHello(1, UUID, 7, 2),
    messages.BulkWelcome(1, b"s" * 16, [messages.ServedDevice(1, 9, 1 << 20)]),
    messages.Verified(1, 2),
    messages.CopyOrder(9, [messages.CopySource(f"{UUID}@a:1", 1, 2)], 5),
    messages.Copied(True, b"d" * 16, 1, 1, 1, [messages.Wrong(4096, "header")]),
]


class Fed:
    """A socket that has some bytes and then ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def setblocking(self, _flag: bool) -> None:
        pass

    def recv_into(self, into: memoryview) -> int:
        part, self._data = self._data[: len(into)], self._data[len(into) :]
        into[: len(part)] = part
        return len(part)


def segment_records_seeds() -> list[bytes]:
    every = [records.BulkRecord(kind, 1, body_bytes=4096 * (kind in (records.Kind.APPEND, records.Kind.BYTES))) for kind in records.Kind]
    seeds = [bytes([mode]) + records.pack(record) for record in every if record.kind != records.Kind.READ for mode in (0, 1, 2)]
    seeds.append(b"\0" + records.pack(records.BulkRecord(records.Kind.READ, 1, value=4096)))
    return [*seeds, *(bytes([3 + at]) + messages.dumps(message) for at, message in enumerate(MESSAGES))]


def segment_records_run() -> Callable[[bytes], None]:
    """0: a header, 1: a plain stream, 2: a sealed stream whose first record has a good seal, 3 and above: bodies of small records."""
    into = memoryview(bytearray(link.SEALED_BODY_BYTES_MAX))

    def sealed(data: bytes) -> bytes:
        body = data[records.HEADER_BYTES :]
        header = bytearray(data[: records.HEADER_BYTES].ljust(records.HEADER_BYTES, b"\0"))
        struct.pack_into("<I", header, 12, len(body))
        return bytes(header) + bytes(seals.Seal(KEYS[0].sending).seal(bytes(header), body)) + data

    def stream(data: bytes, keys: seals.Keys | None) -> None:
        made = link.BulkLink(Fed(data), keys)
        for _ in range(64):
            record = made.receive()
            assert records.unpack(records.pack(record)) == record
            if record.body_bytes:
                assert len(made.receive_body(record, into)) == record.body_bytes

    def run(data: bytes) -> None:
        mode, body = data[0] % (3 + len(MESSAGES)), data[1:]
        try:
            if mode == 0:
                record = records.unpack(body[: records.HEADER_BYTES])
                assert records.pack(record) == body[: records.HEADER_BYTES]
            elif mode < 3:
                stream(sealed(body) if mode == 2 else body, KEYS[1] if mode == 2 else None)
            else:
                kind = type(MESSAGES[mode - 3])
                found = messages.loads(body, kind)
                assert messages.loads(messages._encode(found), kind) == found
        except (ProtocolError, ConnectionResetError):
            pass

    link.wait_for = lambda *_args: None  # in this process: a socket that is fed has all that it will ever have
    return run


# --- what bays hold -------------------------------------------------------------------------------------------------------
def bay_seeds() -> list[bytes]:
    def whole(sequence: int, data: bytes) -> bytes:
        checksums = block_checksums(data, seed_of(3, 1, sequence))
        made = frame.Frame(1, 5, 0, 3, 1, sequence, len(data), len(data), frame.header_bytes_of(len(data)), 77, checksums, 0, 0, 0)
        raw = bytearray(frame.align_up(made.header_bytes + len(data), frame.FRAME_ALIGN))
        frame.pack_header(made, memoryview(raw))
        raw[made.header_bytes : made.header_bytes + len(data)] = data
        return bytes(raw)

    first, second = whole(1, b"a" * 300), whole(2, b"b" * 9)
    checks = [segment.checks_of(frame.unpack_header(raw), at) for raw, at in ((first, 0), (second, len(first)))]
    footer = bytes(segment.pack_footer(3, 1, 4_096, checks))[:300]
    return [bytes([mode]) + first + second + (footer if mode & 1 else b"") for mode in range(8)]


def bay_run() -> Callable[[bytes], None]:
    """Bit 0: the last part is a footer, bit 1: the header at the start has a good checksum, bit 2: the ends only."""

    def run(data: bytes) -> None:
        mode, raw = data[0], data[1:]
        if mode & 2 and len(raw) >= frame._FIXED.size:
            length = frame._FIXED.unpack_from(raw)[5]
            if frame._FIXED.size <= length <= len(raw):
                raw = resealed(raw, frame._CRC_AT, lambda view: frame._header_checksum(view[:length]))
        at = len(raw) * 4 // 7 if mode & 1 else len(raw)
        body = raw[:at].ljust(8_192, b"\0") + raw[at:].ljust(4_096 if mode & 1 else 0, b"\0")
        extent = bay_walk.BayExtent(3, 1, len(body), 8_192 if mode & 1 else 0)
        found = bay_findings.verify(
            extent, lambda offset, length: memoryview(body)[offset : offset + length], bay_findings.Findings(), ends_only=bool(mode & 4)
        )  # fmt: skip
        assert found.frames <= len(body) // 64 and len(found.wrong) <= found.wrong_count <= len(body) // 64 + 2
        messages.loads(messages.dumps(found), messages.Verified)

    return run


# --- objects of a store ---------------------------------------------------------------------------------------------------
OBJECT = SegmentName(ObjectUuid(UUID), ObjectUuid(UUID), 3, 1)
SECRET = bytes(32)
FIXED: list[tuple[Callable[[bytes], object], Callable[..., bytes], int]] = [
    (object_format.unpack_marker, object_format.pack_marker, object_format.MARKER_BYTES),
    (object_format.unpack_era, object_format.pack_era, object_format.ERA_BYTES),
    (object_format.unpack_trailer, object_format.pack_trailer, object_format.TRAILER_BYTES),
    (object_format.unpack_log_header, object_format.pack_log_header, object_format.LOG_HEADER_BYTES),
]


def object_seeds() -> list[bytes]:
    cluster = ObjectUuid(UUID)
    data, _ = a_segment(random.Random(1), OBJECT, sizes=(9, 300))
    fixed = [
        object_format.pack_marker(object_format.Marker(cluster, 7)),
        object_format.pack_era(object_format.Era(2, cluster, cluster, cluster, 1, 9, 7)),
        object_format.pack_trailer(object_format.Trailer(cluster, cluster, 3, 1, 700, 4_096, 4_096, 7, bytes(16))),
        object_format.pack_log_header(object_format.LogHeader(cluster, cluster, object_format.BATCH, 0, bytes(12))),
    ]
    parts = [bytes([at, good]) + raw for at, raw in enumerate(fixed) for good in (0, 1)]
    names = [EraName(cluster, 1), OBJECT, PieceName(cluster, cluster, 1, bytes(16), 0), BatchName(cluster, cluster, 1, 0)]
    log = LogSeal(SECRET, cluster, cluster).seal("name", object_format.BATCH, b"body")
    secrets = [store_secret.StoreSecret(Credentials("AK", "secret", "token"), SECRET, 1), store_secret.StoreSecret(None, SECRET, 1)]
    veiled = [store_secret.veil(secret, bytes(store_secret.NONCE_BYTES)) for secret in secrets]
    named = [b"\4\0" + str(name).encode() for name in names]
    return [*parts, *named, b"\5\0" + data[:600], b"\5\1" + data[:600], b"\6\0" + log, *(b"\7\0" + raw for raw in veiled)]


def object_run() -> Callable[[bytes], None]:
    """0 to 3: a fixed part (second byte: its checksum is made right), 4: a name, 5: what a segment holds, 6: a sealed part of the log,

    7: the secret of a store.
    """
    log = LogSeal(SECRET, ObjectUuid(UUID), ObjectUuid(UUID))

    def fixed(which: int, raw: bytes, good: bool) -> None:
        unpack, pack, size = FIXED[which]
        raw = raw.ljust(size, b"\0")[:size]
        if good:
            raw = resealed(raw, size - 4, lambda view: crc32c(view[: size - 4]))
        found = unpack(raw)
        assert unpack(pack(found)) == found

    def segment_of(raw: bytes, good: bool) -> None:
        if good and len(raw) >= frame._FIXED.size:
            length = frame._FIXED.unpack_from(raw)[5]
            if frame._FIXED.size <= length <= len(raw):
                raw = resealed(raw, frame._CRC_AT, lambda view: frame._header_checksum(view[:length]))
        content = segment_object.content_of(memoryview(raw), 3, 1, 61_440 * good)
        buffer = bytearray(raw) + bytes(segment_object.room_for(len(raw), content) - len(raw))
        made = segment_object.finish(memoryview(buffer), len(raw), content, OBJECT, 1)
        segment_object.judge_whole(memoryview(buffer)[:made], OBJECT)

    def secret_of(raw: bytes, good: bool) -> None:
        if good:  # its checksum is made right
            body = store_secret._masked(raw[:16], raw[16:])[4:]
            raw = raw[:16] + store_secret._masked(raw[:16], struct.pack("<I", crc32c(body)) + body)
        found = store_secret.unveil(raw)
        assert store_secret.unveil(store_secret.veil(found)) == found

    def run(data: bytes) -> None:
        if len(data) < 2:
            return
        kind, good, raw = data[0] % 8, bool(data[1] & 1), data[2:]
        try:
            if kind < len(FIXED):
                fixed(kind, raw, good)
            elif kind == 4:
                assert str(parse(text := raw.decode(errors="surrogateescape"))) == text
            elif kind == 5:
                segment_of(raw, good)
            elif kind == 7:
                secret_of(raw, good)
            else:
                assert log.open("name", raw) == (object_format.BATCH, b"body"), "a body that was never sealed"
        except (Corrupt, FormatTooNew):
            pass

    return run


TARGETS = [
    Target("superblock", superblock_seeds, superblock_run),
    Target("frame", frame_seeds, frame_run),
    Target("journal", journal_seeds, journal_run),
    Target("values", values_seeds, values_run),
    Target("shared memory", memory_seeds, memory_run),
    Target("bays", bay_seeds, bay_run),
    Target("objects", object_seeds, object_run),
    Target("segment records", segment_records_seeds, segment_records_run),
]
