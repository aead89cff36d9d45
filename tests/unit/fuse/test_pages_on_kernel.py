"""What the kernel does with the size of a file whose pages it keeps: the facts on which decision 382 stands.

The test is the server: it takes each request and answers it when it wants to, so nothing here depends on the time that something takes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base.types import Attr
from awsomefsd.fuse import abi
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.negotiate import Overrides, agree, pack_init, read_offer
from awsomefsd.keeper.mount_syscalls import MNT_DETACH, mount_fuse, topmost, umount
from tests.conftest import missing_for_mounts
from tests.unit.fuse.fuse_server import LIMIT_S, MNT_FORCE, Caller, in_process

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(missing_for_mounts()), reason=missing_for_mounts() or "-")]
INO, BLOCK = 2, 4096
ROOT_NS = 3_600_000_000_000
AT_FDCWD, AT_EMPTY_PATH, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC, STATX_SIZE, STATX_SIZE_AT = -100, 0x1000, 0x2000, 0x4000, 0x200, 40
HANDLE = struct.Struct("=IiIII")  # struct file_handle of FUSE: 12 bytes, FILEID_INO64_GEN, node id, generation
FILEID_INO64_GEN = 0x81
_libc = ctypes.CDLL(None, use_errno=True)


def kernel_size(directory: Path, flags: int) -> int:
    """statx(2) of the file by its number: no lookup, no open."""
    os.chdir(directory)
    handle = ctypes.create_string_buffer(HANDLE.pack(12, FILEID_INO64_GEN, INO >> 32, INO & 0xFFFFFFFF, 0))
    fd = _libc.open_by_handle_at(AT_FDCWD, handle, os.O_PATH | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    found = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", AT_EMPTY_PATH | flags, STATX_SIZE, found):
        raise OSError(ctypes.get_errno(), "statx")
    return int(struct.unpack_from("<Q", found, STATX_SIZE_AT)[0])


class Hand:
    """One file, open with pages; every request is taken and answered by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount_fuse(self.fd, str(directory), "test", ["nosuid", "nodev"], "default_permissions,allow_other")
        self.size = BLOCK
        self._buffer = bytearray(abi.HEAD_BYTES + (1 << 20) + 4096)
        unique, body = self.take(Opcode.INIT)
        self.write(pack_init(unique, agree(read_offer(memoryview(body)), Overrides(resend=False))))

    def write(self, message: bytes) -> None:
        os.write(self.fd, message)

    def _next(self, opening: bool = False) -> tuple[Opcode, int, bytes] | None:
        """Takes one request; None: it had no answer, or one that means nothing here."""
        length = os.readv(self.fd, [self._buffer])
        _, opcode, unique, node, *_ = abi.IN_HEADER.unpack_from(self._buffer)
        if opcode in (Opcode.FLUSH, Opcode.RELEASE):
            self.write(abi.pack_error(unique, 0))
        elif node == abi.ROOT_ID and opcode == Opcode.GETATTR:
            self.write(abi.pack_attr(unique, Attr(node, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 1, 1, 1, 1), ROOT_NS))
        elif opening and opcode == Opcode.GETATTR:  # may this caller open it?
            self.tell(unique)
        elif opcode not in abi.WITHOUT_REPLY:
            return Opcode(opcode), unique, bytes(self._buffer[40:length])
        return None

    def take(self, expected: Opcode) -> tuple[int, bytes]:
        """The next request that the test has to answer."""
        while True:
            assert select.select([self.fd], [], [], LIMIT_S)[0], f"no {expected.name} has come"
            request = self._next(expected == Opcode.OPEN)
            if request is not None:
                assert request[0] == expected, request
                return request[1:]

    def attr(self) -> Attr:
        return Attr(INO, stat.S_IFREG | 0o644, 1, 0, 0, 0, self.size, 0, 1, 1, 1, 1)

    def opened(self, call: Callable[[int], object], flags: int = abi.FOPEN_KEEP_CACHE) -> Caller:
        """`call(descriptor)` in another process, which has opened the file."""
        caller = in_process(_with_file, self.directory / "f", call)
        self.write(abi.pack_entry(self.take(Opcode.LOOKUP)[0], self.attr(), 0, 0))
        self.write(abi.pack_open(self.take(Opcode.OPEN)[0], 7, flags))
        return caller

    def tell(self, unique: int) -> None:
        """Answers a GETATTR with the size that there is now, and no time to keep it."""
        self.write(abi.pack_attr(unique, self.attr(), 0))

    def result(self, caller: Caller) -> object:
        """What the call gave; what its process asks when it ends is answered."""
        deadline = time.monotonic() + LIMIT_S
        while not caller.done():
            assert time.monotonic() < deadline
            if select.select([self.fd], [], [], 0.01)[0]:
                request = self._next()
                assert request is None, request
        return caller.result(0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            umount(str(self.directory), MNT_FORCE)  # aborts the connection, and is EBUSY where a caller has the file open
        if topmost(str(self.directory)) is not None:
            umount(str(self.directory), MNT_DETACH)
        os.close(self.fd)


def _with_file(path: Path, call: Callable[[int], object]) -> object:
    return call(os.open(path, os.O_RDONLY))


def at_end(fd: int) -> bytes:
    """Reads from where the end was at the open."""
    return os.pread(fd, 9, BLOCK)


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Hand]:
    (tmp_path / "mnt").mkdir()
    one = Hand(tmp_path / "mnt")
    yield one
    one.close()


def reads_beside(hand: Hand) -> None:
    """Another reader is told the size of before, and takes it."""
    other = hand.opened(at_end)
    hand.tell(hand.take(Opcode.GETATTR)[0])
    assert hand.result(other) == b""


def invalidates(hand: Hand) -> None:
    hand.write(abi.pack_inval_inode(INO, -1, 0))


@pytest.mark.parametrize("between", [invalidates, reads_beside])
def test_an_answer_is_lost_if_anything_moves_the_version_before_it_is_taken(hand: Hand, between: Callable[[Hand], None]) -> None:
    """A read(2) that began behind a completed change, and was told the new size, ends at the size of before."""
    reader = hand.opened(at_end)
    unique, _ = hand.take(Opcode.GETATTR)
    between(hand)
    hand.size = 2 * BLOCK
    hand.tell(unique)
    assert hand.result(reader) == b"", "this kernel takes it: decision 382 has to be looked at again"


def end_of(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def test_the_end_that_lseek_finds_is_lost_in_the_same_way(hand: Hand) -> None:
    """Also of files that are open for direct I/O: docs/KNOWN-ISSUES.md."""
    seeker = hand.opened(end_of, flags=abi.FOPEN_DIRECT_IO)
    unique, _ = hand.take(Opcode.GETATTR)
    invalidates(hand)
    hand.size = 2 * BLOCK
    hand.tell(unique)
    assert hand.result(seeker) == BLOCK


def test_what_was_taken_once_stays_whichever_answers_are_lost(hand: Hand) -> None:
    """So nobody may be told a new state before the kernel is known to have it."""
    reader = hand.opened(at_end)
    unique, _ = hand.take(Opcode.GETATTR)
    hand.size = 2 * BLOCK
    looker = in_process(kernel_size, hand.directory, AT_STATX_FORCE_SYNC)
    hand.tell(hand.take(Opcode.GETATTR)[0])
    assert hand.result(looker) == 2 * BLOCK
    hand.write(abi.pack_inval_inode(INO, -1, 0))
    hand.tell(unique)
    read, body = hand.take(Opcode.READ)
    hand.write(abi.pack_bytes(read, b"n" * min(BLOCK, abi.READ_IN.unpack_from(body)[2])))
    assert hand.result(reader) == b"n" * 9


def known_size(hand: Hand) -> object:
    return hand.result(in_process(kernel_size, hand.directory, AT_STATX_DONT_SYNC))


def test_the_size_that_the_kernel_has_is_seen_without_a_request(hand: Hand) -> None:
    """`result` would show a request."""
    reader = hand.opened(at_end)
    unique, _ = hand.take(Opcode.GETATTR)
    hand.size = 2 * BLOCK
    assert known_size(hand) == BLOCK
    hand.write(abi.pack_inval_inode(INO, 0, 0))
    assert known_size(hand) == BLOCK, "attributes that were forgotten are not asked for"
    hand.tell(unique)
    hand.result(reader)
    assert known_size(hand) == BLOCK, "the answer was lost, and that can be seen"


def test_who_looks_cannot_be_killed_before_it_is_answered(hand: Hand) -> None:
    """A worker that looks at its own mount would not end by SIGKILL, and its successor begins when it has ended."""
    hand.opened(os.fstat)
    unique, _ = hand.take(Opcode.GETATTR)
    looker = in_process(kernel_size, hand.directory, AT_STATX_FORCE_SYNC)
    look, _ = hand.take(Opcode.GETATTR)
    os.kill(looker.pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_S
    while not _sleeps_for_good(looker.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not looker.done()
    hand.tell(look)
    with pytest.raises(RuntimeError, match="the caller died"):
        hand.result(looker)
    hand.tell(unique)


def _sleeps_for_good(pid: int) -> bool:
    """It has the signal, and waits in the kernel where no signal ends the wait."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "D"
