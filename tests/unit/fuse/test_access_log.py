"""The access log of a mount: who is told what, and that nothing is kept for those who ask no more."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.id_map import IdMap
from awsomefsd.fuse import abi
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.access_log import (
    ANSWER_BYTES_MAX,
    ENTRIES_MAX,
    IOCTL_DIR,
    IOCTL_IN,
    IOCTL_OUT,
    READERS_MAX,
    TAKE,
    WATCHED_S,
    AccessLog,
    LogPage,
    decode_answer,
    name_of,
)  # fmt: skip
from awsomefsd.vfs.api.context import Context
from awsomefsd.vfs.ops.id_mapping import MappedIds
from tests.unit.fuse.dict_filesystem import DictFs
from tests.unit.fuse.test_session import Kernel, mkdir, request


class Clock:
    now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


def take(log: AccessLog, caller: int = 1) -> LogPage:
    return decode_answer(log.take((caller, 1)))


def note(log: AccessLog, name: bytes = b"name", ino: int = 7) -> None:
    ctx = Context(1000, 100, 77, 2)
    ctx.nodeid = ino
    log.note(Opcode.LOOKUP, name, ctx, None, FsError(errno.ENOENT))


def test_each_reader_gets_what_ends_after_its_first_call() -> None:
    log = AccessLog(now_ns=Clock())
    note(log)
    assert take(log) == LogPage()
    note(log, b"one")
    assert take(log, 2) == LogPage()
    note(log, b"two")
    (one, two), (only,) = take(log).entries, take(log, 2).entries
    assert (one.name, two.name, only.name) == (b"one", b"two", b"two")
    assert (one.operation, one.ino, one.found, one.uid, one.pid, one.errno) == ("lookup", 7, 0, 1000, 77, errno.ENOENT)
    assert take(log) == LogPage()


def test_who_asks_no_more_is_forgotten_by_the_next_request() -> None:
    clock = Clock()
    log = AccessLog(now_ns=clock)
    take(log)
    clock.now_ns += WATCHED_S * abi.NSEC
    note(log)
    assert log.readers
    clock.now_ns += 1
    note(log)
    assert not log.readers, "so that requests cost nothing again"


def test_there_is_a_bound_of_readers_and_the_dead_make_room() -> None:
    clock = Clock()
    log = AccessLog(now_ns=clock)
    for caller in range(READERS_MAX):
        take(log, caller)
    with pytest.raises(FsError) as refused:
        take(log, READERS_MAX)
    assert refused.value.errno == errno.EBUSY
    take(log, 0)
    clock.now_ns += WATCHED_S * abi.NSEC + 1
    take(log, READERS_MAX)
    assert list(log.readers) == [(READERS_MAX, 1)]


def test_an_answer_fits_and_what_does_not_fit_waits_or_is_counted_as_lost() -> None:
    log = AccessLog(now_ns=Clock())
    take(log)
    for number in range(ENTRIES_MAX + 5):
        note(log, b"%0255d" % number, (1 << 63) - 1)
    names, lost, more = [], 0, True
    while more:
        raw = log.take((1, 1))
        assert len(raw) <= ANSWER_BYTES_MAX
        answer = decode_answer(raw)
        assert answer.entries or not answer.more
        names += [int(one.name) for one in answer.entries]
        lost, more = lost + answer.lost, answer.more
    assert names == list(range(ENTRIES_MAX)) and lost == 5


def test_names_are_read_where_each_kind_has_them() -> None:
    two = b"old\0new\0"
    for opcode, body in {
        Opcode.LOOKUP: b"old\0", Opcode.UNLINK: b"old\0", Opcode.RMDIR: b"old\0", Opcode.SYMLINK: two, Opcode.RENAME: bytes(8) + two,
        Opcode.RENAME2: bytes(16) + two, Opcode.MKDIR: bytes(8) + b"old\0", Opcode.CREATE: bytes(16) + b"old\0",
        Opcode.MKNOD: bytes(16) + b"old\0", Opcode.LINK: bytes(8) + b"old\0",
    }.items():  # fmt: skip
        assert name_of(opcode, memoryview(request(opcode, 2, 1, body))) == b"old", opcode
        assert name_of(opcode, memoryview(b"")) == b"", "its memory was freed"
    assert name_of(Opcode.READ, memoryview(request(Opcode.READ, 2, 1, b"old\0"))) == b""
    assert len(name_of(Opcode.LOOKUP, memoryview(request(Opcode.LOOKUP, 2, 1, b"x" * 5000)))) == 256


def ioctl(unique: int, *, command: int = TAKE, flags: int = IOCTL_DIR, uid: int = 0, pid: int = 5, ino: int = 1, handle: int = 1) -> bytes:
    body = IOCTL_IN.pack(handle, flags, command, 0, 0, ANSWER_BYTES_MAX)
    return abi.IN_HEADER.pack(40 + len(body), Opcode.IOCTL, unique, ino, uid, 0, pid, 0, 0) + body


class Asked:
    """A session, and what it answers."""

    def __init__(self, **options: Any) -> None:
        self.kernel = Kernel()
        self.session = self.kernel.session(DictFs(), **options)

    def __call__(self, raw: bytes) -> tuple[int, int, bytes]:
        self.kernel.ours.send(raw)
        assert self.session.read_one(self.session.slots[0])
        return self.kernel.answer()

    def taken(self, unique: int, **fields: Any) -> LogPage:
        _, error, body = self(ioctl(unique, **fields))
        length, *rest = IOCTL_OUT.unpack_from(body)
        assert error == 0 and rest == [0, 0, 0] and length == len(body) - IOCTL_OUT.size
        return decode_answer(body[IOCTL_OUT.size :])


def test_a_session_tells_by_an_ioctl_of_a_directory() -> None:
    asked = Asked()
    asked(mkdir(b"before", 2))
    assert asked.taken(4) == LogPage()
    asked(mkdir(b"one", 6))
    asked(mkdir(b"one", 8))
    asked(request(Opcode.STATFS, 10))
    made, again, statfs = asked.taken(12).entries
    assert (made.operation, made.ino, made.name, made.uid, made.pid, made.errno) == ("mkdir", 1, b"one", 1000, 77, 0)
    assert made.found > 1 and made.took_ns > 0
    assert (again.name, again.errno, again.found) == (b"one", errno.EEXIST, 0)
    assert (statfs.operation, statfs.name, statfs.found) == ("statfs", b"", 0)
    assert asked.taken(14) == LogPage(), "the questions themselves are not told"


def test_only_root_may_ask_and_only_this_of_a_directory() -> None:
    asked = Asked()
    for raw, number in (
        (ioctl(2, uid=1000), errno.EPERM), (ioctl(10, ino=2), errno.EPERM),
        (ioctl(4, command=TAKE + 1), errno.ENOTTY), (ioctl(6, flags=0), errno.ENOTTY),
        (request(Opcode.IOCTL, 8, 1, b"short"), errno.ENOTTY),
    ):  # fmt: skip
        assert asked(raw)[1] in (number, -number)
    assert not asked.session._access_log.readers


def test_two_of_another_namespace_of_processes_are_two() -> None:
    asked = Asked()
    for handle in (1, 2):
        assert asked.taken(2 * handle, pid=0, handle=handle) == LogPage()
    asked(mkdir(b"one", 6))
    assert [len(asked.taken(6 + 2 * handle, pid=0, handle=handle).entries) for handle in (1, 2)] == [1, 1]


def test_what_is_wrong_with_measuring_ends_no_request(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The reply is out and the memory free then: another one, or a second release, would be another request's."""
    asked = Asked()
    asked.taken(2)
    monkeypatch.setattr(asked.session._access_log, "note", lambda *_: 1 / 0)
    assert asked(mkdir(b"one", 6))[1] == 0 and "not counted" in caplog.text
    assert asked(mkdir(b"two", 8))[1] == 0


def test_nobody_may_ask_where_root_is_somebody_else() -> None:
    """Root of a container, say: it does not see the names of directories that are closed to it."""
    assert MappedIds().root_is_root and MappedIds(users=IdMap(((1000, 2000, 10),))).root_is_root is False
    assert not MappedIds(root_squash=True).root_is_root and MappedIds(check_all=True).root_is_root
    asked = Asked(tells_root=False)
    assert asked(ioctl(2))[1] in (errno.EPERM, -errno.EPERM)
