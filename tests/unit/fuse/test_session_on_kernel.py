"""The session against the kernel: ordinary use at the oldest and the newest protocol, and workers that are killed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import signal
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from awsomefsd.base.limits import FUSE_SLOTS
from awsomefsd.fuse import abi
from awsomefsd.fuse.negotiate import BACKGROUND_REQUESTS_MAX
from awsomefsd.keeper.mount_syscalls import umount
from tests.conftest import missing_for_mounts
from tests.unit.fuse.fuse_server import LIMIT_S, Served, in_process, run

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(missing_for_mounts()), reason=missing_for_mounts() or "-")]

MIB = 1 << 20
Mount = Callable[..., Served]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    served: list[Served] = []

    def make(**options: object) -> Served:
        directory = tmp_path / f"mnt{len(served)}"
        directory.mkdir()
        served.append(Served(directory, **options))
        served[-1].start()
        return served[-1]

    yield make
    for one in served:
        one.close()


def use_as_programs_do(top: Path, seed: int) -> None:
    (top / "dir").mkdir(mode=0o750)
    assert stat.S_IMODE((top / "dir").stat().st_mode) == 0o750
    path = top / "dir" / "file"
    content = random.Random(seed).randbytes(2 * MIB + 4097)
    path.write_bytes(content)
    assert path.read_bytes() == content and path.stat().st_size == len(content)
    with open(path, "r+b") as file:
        file.seek(MIB)
        file.write(b"patched")
        file.flush()
        os.fsync(file.fileno())
        file.truncate(MIB + 100)
    assert path.read_bytes() == (content[:MIB] + b"patched" + content[MIB + 7 :])[: MIB + 100]
    os.chmod(path, 0o4755)
    os.utime(path, ns=(-1_500_000_000, 1_234_567_890_123_456_789))
    found = path.stat()
    assert found.st_atime_ns == -1_500_000_000 and found.st_mtime_ns == 1_234_567_890_123_456_789
    assert stat.S_IMODE(found.st_mode) == 0o4755
    (top / "link").symlink_to("dir/file")
    assert os.readlink(top / "link") == "dir/file" and (top / "link").stat().st_ino == found.st_ino
    os.link(path, top / "hard")
    assert (top / "hard").stat().st_nlink == 2
    os.rename(top / "hard", top / "dir" / "renamed")
    os.mkfifo(top / "fifo")
    assert stat.S_ISFIFO((top / "fifo").stat().st_mode)
    assert {"dir", "fifo", "link"} <= set(os.listdir(top))
    os.setxattr(path, "user.colour", b"blue" * 1000)
    assert os.getxattr(path, "user.colour") == b"blue" * 1000 and os.listxattr(path) == ["user.colour"]
    os.removexattr(path, "user.colour")
    with pytest.raises(OSError) as missing:
        os.getxattr(path, "user.colour")
    assert missing.value.errno == errno.ENODATA
    figures = os.statvfs(top)
    assert figures.f_blocks * figures.f_frsize == 1 << 30 and figures.f_ffree == 500
    with pytest.raises(OSError) as full:
        os.rmdir(top / "dir")
    assert full.value.errno == errno.ENOTEMPTY
    os.unlink(top / "dir" / "renamed")
    os.unlink(path)
    os.rmdir(top / "dir")
    assert not (top / "dir").exists()


@pytest.mark.parametrize("pins", ["minor=34", "resend=off", ""])
def test_ordinary_use(mount: Mount, pins: str, seed: int) -> None:
    served = mount(pins=pins)
    run(use_as_programs_do, served.directory, seed)
    facts = served.say("facts")
    flags, minor = facts["negotiated"]["flags"], facts["negotiated"]["minor"]
    if pins == "minor=34":
        assert minor == 34 and flags >> 31 == 0 and not flags & abi.INIT_EXT
    elif minor >= 40:
        assert bool(flags & abi.HAS_RESEND) == (pins == "")
    assert flags & abi.SETXATTR_EXT and flags & abi.AUTO_INVAL_DATA and not flags & abi.WRITEBACK_CACHE
    assert facts["counters"]["fuse_replies_failed"] == 0 and facts["counters"]["fuse_create"] >= 1


def test_large_directory_is_listed_once_each(mount: Mount) -> None:
    served = mount()

    def use() -> None:
        names = {f"name-{index:04}-{'x' * (index % 60)}" for index in range(700)}
        for name in names:
            (served.directory / name).touch()
        entries = list(os.scandir(served.directory))
        assert len(entries) == 702 and {entry.name for entry in entries} == names | {"wait", "sub"}
        assert all(entry.stat().st_size == 0 for entry in entries if entry.name in names)

    run(use)


def test_a_bug_of_ours_is_eio_and_the_mount_goes_on(mount: Mount) -> None:
    served = mount()

    def use() -> int:
        path = served.directory / "boom"
        path.touch()
        with pytest.raises(OSError) as bug:
            path.unlink()
        (served.directory / "after").touch()
        return int(bug.value.errno or 0)

    assert run(use) == errno.EIO


def test_waiting_requests_are_parked_and_others_go_on(mount: Mount, seed: int) -> None:
    """More of them than there are readers."""
    served = mount()
    reads = [in_process(read_uncached, served.directory / "wait") for _ in range(5)]
    made = in_process(os.mkdir, served.directory / "sub" / "late")  # it locks its parent
    served.await_fact(lambda facts: facts["parked"] == 6)
    run(use_as_programs_do, served.directory, seed)
    assert not made.done()
    served.say("gate")
    assert [read.result(LIMIT_S) for read in reads] == [b"0123456789"] * 5
    made.result(LIMIT_S)
    served.await_fact(lambda facts: facts["parked"] == 0)


def read_uncached(path: Path) -> bytes:
    """Without the page cache, so that each caller's read is a request of its own."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> int:
    with open(path, "r+b", buffering=0) as file:
        return file.write(data)


@pytest.mark.parametrize("killed", [False, True])
def test_waiting_writes_hold_up_no_other_request(mount: Mount, killed: bool) -> None:
    """More of them than there are slots, and a death of the worker between: others are answered, and no byte is another's."""
    many = 2 * FUSE_SLOTS
    served = mount(late_files=many)
    files = {served.directory / f"wait{n}": b"%d" % n * 10_000 for n in range(many)}
    writes = [in_process(write_file, path, data) for path, data in files.items()]
    served.await_fact(lambda facts: facts["parked"] == many)
    if killed:
        served.start(served.kill())
    run((served.directory / "another").touch)
    run((served.directory / "another").unlink)
    facts = served.say("facts")
    assert facts["parked"] == many and facts["counters"]["fuse_slots_kept"] == 0
    served.say("gate")
    assert [one.result(LIMIT_S) for one in writes] == [10_000] * many
    assert [run(path.read_bytes) for path in files] == [*files.values()]


def write_many(paths: list[Path]) -> int:
    """As many threads as there are files, each in one write(2)."""
    with ThreadPoolExecutor(len(paths)) as pool:
        return sum(pool.map(lambda path: write_file(path, b"x"), paths))


def test_the_kernel_bounds_no_writes_that_programs_wait_for(mount: Mount) -> None:
    """max_background is for requests that nobody waits for, so no value of it keeps waiting writes within the park area."""
    many = BACKGROUND_REQUESTS_MAX + 6
    served = mount(late_files=many)
    written = in_process(write_many, [served.directory / f"wait{n}" for n in range(many)])
    served.await_fact(lambda facts: facts["parked"] == many)
    run((served.directory / "another").touch)
    served.say("gate")
    assert written.result(LIMIT_S) == many


def wait_for_lock(path: Path) -> str:
    """The test's signal must interrupt flock(2), which Python would begin again if the handler did not raise."""

    def handler(number: int, frame: object) -> None:
        raise InterruptedError

    signal.signal(signal.SIGUSR1, handler)
    with open(path, "r+b") as holder, open(path, "r+b") as other:
        fcntl.flock(holder, fcntl.LOCK_EX)
        try:
            fcntl.flock(other, fcntl.LOCK_EX)
        except InterruptedError:
            return "interrupted"
    return "locked"


def test_lock_wait_ends_with_eintr_by_signal(mount: Mount) -> None:
    served = mount()
    caller = in_process(wait_for_lock, served.directory / "wait")
    served.await_fact(lambda facts: facts["waiting"] and facts["parked"] == 1)
    os.kill(caller.pid, signal.SIGUSR1)
    assert caller.result(LIMIT_S) == "interrupted"
    facts = served.await_fact(lambda facts: facts["parked"] == 0)  # the memory of a request is freed when its caller goes on already
    assert len(facts["interrupted"]) >= 1


def make_once(path: Path, restart: bool) -> tuple[int, int, int]:
    """(what mkdir(2) returned, errno, how often the handler of the test's signal ran).  Without Python's own repetition after EINTR."""
    ran: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, _frame: ran.append(number))
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.set_errno(0)  # a call that works leaves what an earlier one of the test's own process has left
    result = ctypes.CDLL(None, use_errno=True).mkdir(os.fsencode(path), 0o755)
    return result, ctypes.get_errno(), len(ran)


@pytest.mark.parametrize("restart", [False, True])
def test_a_signal_with_a_handler_does_not_end_a_request(mount: Mount, restart: bool) -> None:
    """As on a local disk, where no program expects EINTR of a file, whatever SA_RESTART says."""
    served = mount()
    caller = in_process(make_once, served.directory / "sub" / "late", restart)
    served.await_fact(lambda facts: facts["parked"] == 1)
    os.kill(caller.pid, signal.SIGALRM)
    served.await_fact(lambda facts: facts["interrupted"])
    assert not caller.done()
    served.say("gate")
    assert caller.result(LIMIT_S) == (0, 0, 1)


@pytest.mark.parametrize("first", [None, signal.SIGALRM])
@pytest.mark.parametrize("fatal", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_caller_does_not_wait_for_its_request(mount: Mount, first: int | None, fatal: int) -> None:
    """The kernel tells of the first signal only; the request itself goes on, and its answer is nobody's."""
    served = mount()
    caller = in_process(make_once, served.directory / "sub" / "late", False)
    served.await_fact(lambda facts: facts["parked"] == 1)
    if first is not None:
        os.kill(caller.pid, first)
        served.await_fact(lambda facts: facts["interrupted"])
    os.kill(caller.pid, fatal)
    with pytest.raises(RuntimeError, match="the caller died"):
        caller.result(LIMIT_S)
    assert served.say("facts")["parked"] == 1
    served.say("gate")
    facts = served.await_fact(lambda facts: facts["parked"] == 0)
    assert facts["counters"]["fuse_replies_unwanted"] >= 1 and facts["counters"]["fuse_replies_failed"] == 0


@pytest.mark.parametrize("pins", ["resend=off", "", "minor=34"])
def test_killed_while_executing(mount: Mount, pins: str, seed: int) -> None:
    """The request that was executing at the SIGKILL is executed by the successor, once, and its caller gets the result."""
    served = mount(pins=pins)
    made = in_process(os.mkdir, served.directory / "kill-1")
    assert served.ended() == signal.SIGKILL
    served.start(signal.SIGKILL)
    made.result(LIMIT_S)
    facts = served.say("facts")
    assert [name for name, _ in facts["executed"]] == ["kill-1"] and facts["replied"] == [facts["executed"][0][1]]
    assert not facts["inherited"]
    run(use_as_programs_do, served.directory, seed)


@pytest.mark.parametrize("pins", ["resend=off", ""])
def test_killed_while_parked(mount: Mount, pins: str) -> None:
    """Waiting requests outlive three workers and are answered by the fourth, whichever id the kernel knows them by by then."""
    served = mount(pins=pins)
    read = in_process(read_uncached, served.directory / "wait")
    made = in_process(os.mkdir, served.directory / "sub" / "late")  # it locks its parent
    for _ in range(3):
        served.await_fact(lambda facts: facts["parked"] == 2 and facts["waiting"])
        served.start(served.kill())
        run((served.directory / "new").mkdir)  # others are served
    facts = served.await_fact(lambda facts: facts["parked"] == 2)
    assert facts["inherited"] == (pins == "" and facts["negotiated"]["flags"] & abi.HAS_RESEND != 0)
    served.say("gate")
    assert read.result(LIMIT_S) == b"0123456789"
    made.result(LIMIT_S)
    facts = served.await_fact(lambda facts: facts["parked"] == 0)
    assert [name for name, _ in facts["executed"]] == ["new", "late"] and not facts["inherited"]
    resent = pins == "" and facts["negotiated"]["flags"] & abi.HAS_RESEND != 0
    assert facts["counters"]["fuse_replies_unwanted"] == (2 if resent else 0)  # after RESEND the kernel knows them by another id only


def test_killed_while_a_write_waits(mount: Mount) -> None:
    """It stays parked; the successor's readers go on."""
    served = mount()

    def write() -> int:
        with open(served.directory / "wait", "r+b", buffering=0) as file:
            return file.write(b"abc" * 1000)

    written = in_process(write)
    served.await_fact(lambda facts: facts["waiting"])
    served.start(served.kill())
    run((served.directory / "another").touch)
    assert not written.done()
    served.say("gate")
    assert written.result(LIMIT_S) == 3000


@pytest.mark.parametrize("pins", ["resend=off", ""])
def test_kills_under_load(mount: Mount, tmp_path: Path, pins: str) -> None:
    """Nothing fails, nothing hangs: several callers, a new worker every 100 ms or so."""
    served = mount(pins=pins)
    stop = tmp_path / "stop"

    def load() -> int:
        count = 0
        while not stop.exists():
            os.stat(served.directory / "wait")
            os.statvfs(served.directory)
            assert len(os.listdir(served.directory)) >= 1
            count += 3
        return count

    callers = [in_process(load) for _ in range(3)]
    for _ in range(8):
        served.start(served.kill())
    stop.touch()
    assert min(caller.result(LIMIT_S) for caller in callers) > 0


@pytest.mark.parametrize("pins", ["resend=off", ""])
def test_poison_request_is_answered_eio(mount: Mount, pins: str) -> None:
    """One that kills its worker by SIGSEGV twice, alone, would kill every successor."""
    served = mount(pins=pins)
    made = in_process(os.mkdir, served.directory / "segv-9")
    assert served.ended() == signal.SIGSEGV
    with pytest.raises(ValueError, match="Expecting value"):  # it dies in its takeover
        served.start(signal.SIGSEGV)
    assert served.ended() == signal.SIGSEGV
    served.start(signal.SIGSEGV)
    with pytest.raises(OSError) as answer:
        made.result(LIMIT_S)
    assert answer.value.errno == errno.EIO
    run((served.directory / "fine").touch)


def test_sigkill_from_outside_is_no_proof_of_poison(mount: Mount) -> None:
    served = mount()
    made = in_process(os.mkdir, served.directory / "kill-3")
    for _ in range(2):
        assert served.ended() == signal.SIGKILL
        with pytest.raises(ValueError, match="Expecting value"):
            served.start(signal.SIGKILL)
    assert served.ended() == signal.SIGKILL
    served.start(signal.SIGKILL)
    made.result(LIMIT_S)


def test_readers_end_when_unmounted(mount: Mount) -> None:
    served = mount()
    run((served.directory / "file").touch)
    umount(str(served.directory))
    served.await_fact(lambda facts: facts["ended"])
