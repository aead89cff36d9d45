"""What a killed program had asked for changes no bytes behind its end: another one may have written and synced them since."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.sockets import readable
from awsomefsd.fuse import abi, control_area, killed_callers, parked_requests, slots
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.session import Session
from awsomefsd.meta.api import commands as c
from tests.rigs.mount_without_kernel import BIG, After, Rig, rig, until

KILLED = 77


class Kernel:
    """One end of a socket pair, and a session of the rig's filesystem at the other."""

    def __init__(self, r: Rig) -> None:
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(60)
        sizes = control_area.CONTROL_BYTES, slots.required_bytes(2), parked_requests.required_bytes(1 << 22)
        memory = [bytearray(size) for size in sizes]
        self.session = Session(
            self._theirs.fileno(), r.vfs, control_area.ControlArea(memory[0], fresh=True), slots.SlotArea(memory[1], 2, fresh=True),
            parked_requests.ParkArea(memory[2], fresh=True, recall_bytes=0), fresh=True,
        )  # fmt: skip
        self.session.start()

    def ask(self, opcode: int, unique: int, ino: int, body: bytes) -> None:
        self.ours.send(abi.IN_HEADER.pack(40 + len(body), opcode, unique, ino, 0, 0, KILLED, 0, 0) + body)

    def kill(self, unique: int) -> None:
        self.ask(Opcode.INTERRUPT, unique + 1, 0, abi.INTERRUPT_IN.pack(unique))

    def answer(self) -> tuple[int, int]:
        _, error, unique = abi.OUT_HEADER.unpack_from(self.ours.recv(1 << 20))
        return unique, -error

    def is_silent(self) -> bool:
        return not readable([self.ours.fileno()], 0)

    def close(self) -> None:
        self.ours.shutdown(socket.SHUT_RDWR)
        assert self.session.wait(60)
        self.ours.close()
        self._theirs.close()


@pytest.fixture
def r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(killed_callers, "is_being_killed", lambda tid: tid == KILLED)
    with rig(tmp_path) as made:
        yield made


def held(r: Rig, kind: type) -> list[After]:
    """The first command of this kind goes out when it is released."""
    found: list[After] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, kind) and not found:
            found.append(After(r.worker.client.propose(command, unique)))
            return found[0]
        return None

    gate = r.gate()
    gate.on_propose = on_propose
    r.mount.buffered.reservation._proposer = gate
    return found


def setattr_size(size: int) -> bytes:
    return abi.SETATTR_IN.pack(abi.FATTR_SIZE, 0, 0, size, *[0] * 12)


def write_at(fh: int, offset: int, data: bytes) -> bytes:
    return abi.WRITE_IN.pack(fh, offset, len(data), 0, 0, os.O_RDWR, 0) + data


def killed_while_it_waits(kernel: Kernel, unique: int, waits: list[After]) -> bool:
    """The caller of a request that waits is killed; returns whether it was let go, and its program may be started anew."""
    until(lambda: waits and waits[0].begun.is_set() and unique in kernel.session._waiting)
    kernel.session._killed.signalled(kernel.session._waiting[unique])
    return not kernel.is_silent()


def test_a_write_whose_caller_was_killed_is_not_laid_over_what_was_synced_since(r: Rig) -> None:
    ino, fh = r.create(b"journal")
    r.write(ino, fh, 0, bytes(BIG))
    r.fsync(ino, fh)
    waits = held(r, c.Reserve)
    r.mount.buffered.reservation.set_left(BIG)
    kernel = Kernel(r)
    try:
        kernel.ask(Opcode.WRITE, 1 << 20, ino, write_at(fh, 0, b"old" * BIG))
        if killed_while_it_waits(kernel, 1 << 20, waits):
            assert kernel.answer() == (1 << 20, errno.EINTR)
            r.write(ino, fh, 0, b"new")  # of the program that was started in its place
            r.fsync(ino, fh)
            waits[0].release()
            until(lambda: not kernel.session._waiting)
            assert r.read(ino, fh, 0, 3) == b"new", "a dead program's write came behind an fsync that has returned"
        else:
            waits[0].release()
            assert kernel.answer() == (1 << 20, 0)
    finally:
        waits[0].release()
        kernel.close()


def test_a_truncation_whose_caller_was_killed_takes_nothing_that_was_written_since(r: Rig) -> None:
    ino, fh = r.create(b"log")
    r.write(ino, fh, 0, bytes(BIG))
    waits = held(r, c.Commit)
    flushed = r.begin("fsync", ino, fh, False)
    until(lambda: waits and waits[0].begun.is_set())
    kernel = Kernel(r)
    try:
        kernel.ask(Opcode.SETATTR, 1 << 20, ino, setattr_size(0))
        if killed_while_it_waits(kernel, 1 << 20, waits):
            assert kernel.answer() == (1 << 20, errno.EINTR)
            r.write(ino, fh, BIG, b"new")
            synced = r.begin("fsync", ino, fh, False)
            waits[0].release()
            flushed.result()
            synced.result()
            until(lambda: not kernel.session._waiting)
            assert r.read(ino, fh, BIG, 3) == b"new", "fsync has returned, and its bytes are gone"
        else:
            waits[0].release()
            flushed.result()
            assert kernel.answer() == (1 << 20, 0)
    finally:
        waits[0].release()
        kernel.close()
