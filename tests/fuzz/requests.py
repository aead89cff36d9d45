"""Decoders of what comes over sockets and from the kernel, with what is done on the strength of it."""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from awsomefsd.base.errors import Corrupt, Error, FormatTooNew, ProtocolError
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.fuse import abi, handlers
from awsomefsd.fuse.abi import Opcode
from awsomefsd.keeper import wire
from awsomefsd.keeper.mount import checked_spec
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.bounds import check
from awsomefsd.meta.check.check import check as fsck
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.server.connections import decode_request
from awsomefsd.meta.voter import peer_messages
from awsomefsd.vfs.api.context import Context
from tests.fuzz.target import Target
from tests.rigs.machine_driver import Drive
from tests.rigs.mount_without_kernel import LIMIT_S, Rig, Started
from tests.unit.meta.server.test_service import every_body
from tests.unit.meta.test_golden_encodings import COMMANDS

FSCK_EVERY = 256  # accepted commands
ANEW_EVERY = 4_096
FUSE_ANEW_EVERY = 8_192
_command = msgspec.msgpack.Decoder(c.AnyCommand).decode
_encode = msgspec.msgpack.Encoder().encode
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


# --- commands ---------------------------------------------------------------------------------------------------------------
def command_seeds() -> list[bytes]:
    return [bytes([at % 2]) + _encode(command) for at, command in enumerate(COMMANDS)]


def _state() -> Drive:
    drive = Drive(segments=16)
    drive.make_volume()
    drive.open()
    directory = drive.mkdir(b"d")
    file = drive.create(b"f", directory)
    (segment,) = drive.lease()
    drive.write(segment, file, 0, 10_000)
    drive.create(b"g")
    return drive


def command_run() -> Callable[[bytes], None]:
    """What a client may propose is applied without an exception, and leaves a state that fsck calls clean.  The state goes on growing."""
    drive, applied = _state(), 0

    def run(data: bytes) -> None:
        nonlocal drive, applied
        try:
            command = _command(data[1:])
            check(m.Propose(HOST_UNIQUE, 0, 0, [], command))
        except (*_BAD, ProtocolError):
            return
        if type(command) in (*c.UNPROPOSED_COMMANDS, c.Init):  # no client may propose these
            return
        raised = type(command) is c.RaiseLevel and command.target > LEVEL  # its build could not go on
        if raised or command.level_needed() > LEVEL:  # the leader refuses it
            return
        own = {} if data[0] & 1 else {"session": 0, "epoch": 0, "mount": 0}
        drive.apply(command, **own)
        applied += 1
        if applied % FSCK_EVERY == 0:
            drive.machine.flush()
            faults = fsck(drive.txn)
            assert not faults, f"faults after accepted commands: {faults[:5]}; the last of them: {drive.entries[-FSCK_EVERY:]}"
        if applied % ANEW_EVERY == 0 or type(command) in (c.EndSession, c.DeleteVolume, c.OpenSession):
            drive = _state()

    return run


# --- frames of sockets --------------------------------------------------------------------------------------------------------
def frames_seeds() -> list[bytes]:
    bodies = [b"\0" + frame(_encode(m.RequestEnvelope(at, body))) for at, body in enumerate(every_body())]
    words = {"op": "mount", "mount": "ab", "dir": "/d", "memfds": {"control": 1}, "options": ["ro"], "config": {"x": [1, None]}}
    hello = _encode(peer_messages.PeerHello(*[value_of(kind) for kind in typed(peer_messages.PeerHello)]))
    return [*bodies, b"\1" + json.dumps(words).encode(), b"\2" + hello, b"\3\x98\x01\x01\xa1a\xa1b\x02\x03\x04\x05"]


def typed(struct_type: type[msgspec.Struct]) -> list[Any]:
    return [field.type for field in msgspec.structs.fields(struct_type)]


def value_of(kind: Any) -> Any:
    return {int: 1, str: "n", bytes: b"i" * 16, list: []}.get(kind, 0)


def frames_run() -> Callable[[bytes], None]:
    """0: a stream to the metadata service, each good request answered from a state; 1: keeper, 2: greeting, 3: message between voters."""
    drive = _state()

    def stream(data: bytes) -> None:
        reader = FrameReader()
        for body in [*reader.feed(data[: len(data) // 2]), *reader.feed(data[len(data) // 2 :])]:
            request = decode_request(body)
            check(request.body)
            answer(drive.machine, request.body)

    def run(data: bytes) -> None:
        kind, body = data[0] % 4, data[1:]
        try:
            if kind == 0:
                stream(body)
            elif kind == 1:
                checked_spec(wire.decode(body))
            elif kind == 2:
                peer_messages.decode_greeting(body)
            else:
                peer_messages.decode_message(body)
        except (ProtocolError, Corrupt, FormatTooNew, Error):
            pass

    return run


# --- FUSE -----------------------------------------------------------------------------------------------------------------------
FLAGS = abi.SETXATTR_EXT
INODES = [1, 2, 3, 4, 5, 6, 0, 1 << 63, 99]


def fuse_seeds() -> list[bytes]:
    def request(opcode: int, nodeid: int, body: bytes = b"") -> bytes:
        return bytes([opcode, nodeid]) + body

    return [
        *(request(opcode, 0, b"name\0") for opcode in (Opcode.LOOKUP, Opcode.UNLINK, Opcode.RMDIR)),
        request(Opcode.MKDIR, 0, struct.pack("<II", 0o755, 0) + b"dir\0"),
        request(Opcode.MKNOD, 0, struct.pack("<IIII", 0o100644, 0, 0, 0) + b"node\0"),
        request(Opcode.CREATE, 0, struct.pack("<IIII", 2, 0o644, 0, 0) + b"file\0"),
        request(Opcode.SYMLINK, 0, b"link\0target\0"), request(Opcode.LINK, 0, struct.pack("<Q", 2) + b"hard\0"),
        request(Opcode.RENAME2, 0, abi.RENAME2_IN.pack(1, 0, 0) + b"name\0other\0"),
        request(Opcode.OPEN, 1, struct.pack("<II", 2, 0)), request(Opcode.GETATTR, 1, bytes(16)),
        request(Opcode.READ, 1, struct.pack("<QQIIQII", 1, 0, 4096, 0, 0, 0, 0)),
        request(Opcode.WRITE, 1, abi.WRITE_IN.pack(1, 0, 4, 0, 0, 0, 0) + b"data"),
        request(Opcode.SETATTR, 1, abi.SETATTR_IN.pack(8, *[0] * 15)),
        request(Opcode.SETXATTR, 1, struct.pack("<IIII", 1, 0, 0, 0) + b"user.n\0v"),
        request(Opcode.GETXATTR, 1, struct.pack("<II", 100, 0) + b"user.n\0"), request(Opcode.LISTXATTR, 1, struct.pack("<II", 100, 0)),
        request(Opcode.FALLOCATE, 1, struct.pack("<QQQII", 1, 0, 8192, 0, 0)), request(Opcode.LSEEK, 1, struct.pack("<QQII", 1, 0, 3, 0)),
        request(Opcode.COPY_FILE_RANGE, 1, struct.pack("<QQQQQQQ", 1, 0, 2, 1, 4096, 100, 0)),
        request(Opcode.SETLK, 1, struct.pack("<QQQQIIII", 1, 7, 0, 9, 1, 5, 0, 0)),
        request(Opcode.READDIR, 0, struct.pack("<QQIIQII", 1, 0, 999, 0, 0, 0, 0)),
        request(Opcode.READDIRPLUS, 0, struct.pack("<QQIIQII", 1, 0, 999, 0, 0, 0, 0)), request(Opcode.OPENDIR, 0, bytes(8)),
        request(Opcode.BATCH_FORGET, 0, struct.pack("<IIQQ", 1, 0, 2, 1)),
        request(Opcode.TMPFILE, 0, struct.pack("<IIII", 2, 0o600, 0, 0) + b"#\0"),
        request(Opcode.READDIRPLUS, 77, bytes(10) + b"\1\x22" + bytes(7) + b"\1" + bytes(6) + b"\x81\x83" + bytes(14)),
        # a handle nobody has
    ]  # fmt: skip


def _mounted() -> Rig:
    rig = Rig(Path(tempfile.mkdtemp(prefix="afs-fuzz-")))
    rig.start()
    return rig


def fuse_run() -> Callable[[bytes], None]:
    """opcode u8, inode by place u8, body: through the handlers' table into a real vfs over a real metadata service.  Files stay open and
    the device fills, so there is a new one every FUSE_ANEW_EVERY inputs."""
    rig = _mounted()
    rows = handlers.table(FLAGS)
    failures = handlers.Failures()
    count, runs = 1, 0

    def run(data: bytes) -> None:
        nonlocal count, rig, runs
        if len(data) < 2:
            return
        runs += 1
        if runs % FUSE_ANEW_EVERY == 0:
            rig.close()
            shutil.rmtree(rig.directory)
            rig = _mounted()
            gc.collect()
        opcode = data[0] % len(rows)
        if opcode == Opcode.SETLKW:  # one caller: a lock in its own way would wait for ever
            opcode = int(Opcode.SETLK)
        call, encode, _stored = rows[opcode]
        count += 2
        ctx = Context(0, 0, 4242, count)
        body = memoryview(bytearray(data[2:]))
        try:
            started = Started(call(rig.vfs, ctx, INODES[data[1] % len(INODES)], body))
            if not started.ended.wait(LIMIT_S):
                faulthandler.dump_traceback()
                raise AssertionError(f"opcode {opcode} does not end: {started.op}")
            result = started.result()
            if encode is not None:
                encode(rig.vfs, ctx, result)
        except (Error, struct.error) as err:
            failures.reply(rig.vfs, opcode, ctx, err)
            if not isinstance(err, (ProtocolError, struct.error)) and err.errno == errno.EIO:
                raise AssertionError("EIO without a fault") from err
        rig.vfs.replied(ctx.unique)

    return run


TARGETS = [
    Target("commands", command_seeds, command_run),
    Target("frames", frames_seeds, frames_run),
    Target("FUSE requests", fuse_seeds, fuse_run),
]
