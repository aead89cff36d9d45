"""Locks between processes on a mount: circles, interrupts, close and exit, and a worker that dies while others wait."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base.sockets import readable
from buildtools.nodes import await_true

pytestmark = pytest.mark.root
ANSWER_S = 60
WRITE_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)

# A process that does what it is told, a line at a time, and answers each with a line: "ok" or an errno's name.
PARTY = r"""
import errno, fcntl, os, signal, struct, sys, threading
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
files = {}
rang = []
signal.signal(signal.SIGUSR1, lambda *_: rang.append(1))
signal.siginterrupt(signal.SIGUSR1, False)
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGUSR2, stop)
def do(verb, name, start="0", length="0"):
    start, length = int(start), int(length)
    if verb == "open": files[name] = os.open(name, os.O_RDWR)
    elif verb == "close": os.close(files.pop(name))
    elif verb == "dup_close": os.close(os.dup(files[name]))
    elif verb == "reopen_close": os.close(os.open(name, os.O_RDWR))
    elif verb == "posix": fcntl.lockf(files[name], fcntl.LOCK_EX, length, start)
    elif verb == "posix_nb": fcntl.lockf(files[name], fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    elif verb == "posix_sh": fcntl.lockf(files[name], fcntl.LOCK_SH | fcntl.LOCK_NB, length, start)
    elif verb == "unlock": fcntl.lockf(files[name], fcntl.LOCK_UN, length, start)
    elif verb == "flock": fcntl.flock(files[name], fcntl.LOCK_EX)
    elif verb == "flock_nb": fcntl.flock(files[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif verb in ("ofd", "ofd_nb"):
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, start, length, 0)
        fcntl.fcntl(files[name], F_OFD_SETLKW if verb == "ofd" else F_OFD_SETLK, lock)
    elif verb == "rang": assert rang
    else: raise AssertionError(verb)
for line in sys.stdin:
    try:
        do(*line.rstrip("\n").split(" "))
        answer = "ok"
    except OSError as err: answer = errno.errorcode[err.errno]
    except Stop: answer = "stopped"
    print(answer, flush=True)
"""


class Party:
    def __init__(self, *files: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PARTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        for file in files:
            assert self.do("open", file) == "ok"

    def begin(self, verb: str, file: Path | str, *numbers: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join([verb, str(file), *map(str, numbers)]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        ready = readable([self.process.stdout.fileno()], ANSWER_S)
        return self.process.stdout.readline().strip() if ready else f"no answer within {ANSWER_S} s"

    def do(self, verb: str, file: Path | str, *numbers: int) -> str:
        self.begin(verb, file, *numbers)
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


# Python calls EDEADLK, the same number, EDEADLOCK.
Make = Callable[..., Party]


@pytest.fixture(scope="module", params=["", "shared"], ids=["exclusive", "shared"])
def node(make_node, request):
    """Where the mount holds its volume whole, the kernel keeps the locks; where it is shared, the cluster."""
    made = make_node(up=False)
    made.mount_options, made.shared = request.param, bool(request.param)
    made.up()
    return made


@pytest.fixture
def files(node, request) -> list[Path]:
    folder = node.mountpoint / "".join(c if c.isalnum() else "_" for c in request.node.name)[:80]
    folder.mkdir()
    paths = [folder / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(bytes(100))
    return paths


@pytest.fixture
def party() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def make(*files: Path) -> Party:
            made = Party(*files)
            stack.callback(made.end)
            return made

        yield make


def waiting_in_kernel(mountpoint: Path) -> int:
    """Locks of this filesystem that are waited for."""
    device = mountpoint.stat().st_dev
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(row[1] == "->" and row[6].startswith(f"{os.major(device):02x}:{os.minor(device):02x}:") for row in rows)


@pytest.fixture
def waiters(node) -> Callable[[int], None]:
    def now_waiting() -> int:
        return int(node.ask("status")["figures"]["lock_waiters"]) if node.mount_options else waiting_in_kernel(node.mountpoint)

    def until(count: int) -> None:
        deadline = time.monotonic() + ANSWER_S
        while (now := now_waiting()) != count:
            assert time.monotonic() < deadline, f"{now} wait, not {count}"
            time.sleep(0.02)

    return until


def is_pending(pid: int, number: int) -> bool:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) >> (number - 1) & 1)


# --- deadlocks ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("kill", [False, True], ids=["", "worker-killed"])
def test_edeadlk_across_files(node, files, party, waiters, parties, kill):
    """With a kill the waits that lead up to the circle are those that the successor has sent again."""
    all_of_them = [party(*files) for _ in range(parties)]
    for number, one in enumerate(all_of_them):
        assert one.do("posix", files[number], 0, 10) == "ok"
    for number, one in enumerate(all_of_them[:-1]):
        one.begin("posix", files[number + 1], 0, 10)
    waiters(parties - 1)
    if kill:
        node.replaced("worker", node.kill("worker")["worker"])
        assert (files[0]).stat().st_size == 100
        waiters(parties - 1)
    assert all_of_them[-1].do("posix", files[0], 0, 10) == "EDEADLOCK"
    assert all_of_them[-1].do("unlock", files[parties - 1], 0, 0) == "ok"
    for one in reversed(all_of_them[:-1]):
        assert one.answer() == "ok"
        one.end()


def test_edeadlk_in_one_file_and_not_for_other_ranges(files, party, waiters):
    one, two = party(files[0]), party(files[0])
    assert one.do("posix", files[0], 0, 10) == two.do("posix", files[0], 20, 10) == "ok"
    one.begin("posix", files[0], 20, 5)
    waiters(1)
    assert two.do("posix", files[0], 40, 10) == "ok"
    assert two.do("posix", files[0], 5, 1) == "EDEADLOCK"
    assert two.do("unlock", files[0], 20, 10) == "ok"
    assert one.answer() == "ok"


@pytest.mark.parametrize("kind", ["ofd", "flock"])
def test_other_kinds_wait_in_a_circle_as_on_linux(files, party, waiters, kind):
    """Nobody is refused; whoever gets tired ends its wait by a signal."""
    one, two = party(*files), party(*files)
    assert one.do(kind, files[0]) == two.do(kind, files[1]) == "ok"
    one.begin(kind, files[1])
    waiters(1)
    two.begin(kind, files[0])
    waiters(2)
    two.process.send_signal(12)
    assert two.answer() == "stopped"
    assert two.do("close", files[1]) == "ok"
    assert one.answer() == "ok"


# --- signals ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["posix", "ofd", "flock"])
def test_a_signal_with_sa_restart_waits_on_and_one_without_ends_it(files, party, waiters, kind):
    holder, waiter = party(files[0]), party(files[0])
    assert holder.do(kind, files[0]) == "ok"
    waiter.begin(kind, files[0])
    waiters(1)
    waiter.process.send_signal(signal.SIGUSR1)  # its handler was installed with SA_RESTART
    await_true("a delivered signal, so the wait was ended", lambda: not is_pending(waiter.process.pid, signal.SIGUSR1), ANSWER_S, 0.01)
    waiters(1)
    waiter.process.send_signal(12)
    assert waiter.answer() == "stopped"
    waiters(0)
    assert waiter.do("rang", "x") == "ok"
    waiter.begin(kind, files[0])
    waiters(1)
    holder.end()  # exit releases
    assert waiter.answer() == "ok"


def test_eintr_without_restart(files, party, waiters):
    """What a C program sees: fcntl returns EINTR (Python would try again, so the handler is one of C that does nothing: abs)."""
    code = (
        "import ctypes, errno, os, signal, struct, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "libc.signal.restype = ctypes.c_void_p\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "lock = struct.pack('hhqqi4x', 1, 0, 0, 10, 0)\n"
        "libc.signal(signal.SIGALRM, libc.abs); libc.siginterrupt(signal.SIGALRM, 1)\n"
        "libc.ualarm(200000, 200000)\n"  # again and again: the first one may come before the wait
        "print(libc.fcntl(fd, 7, lock), errno.errorcode.get(ctypes.get_errno()))\n"
    )
    holder = party(files[0])
    assert holder.do("posix", files[0]) == "ok"
    done = subprocess.run([sys.executable, "-c", code, str(files[0])], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "-1 EINTR\n"
    waiters(0)


# --- close and exit -----------------------------------------------------------------------------------------------------------
def test_any_close_of_the_file_ends_fcntl_locks_and_the_last_one_of_a_handle_the_others(files, party):
    a = files[0]
    holder, other = party(a), party(a)
    for kind, survivor in (("posix", False), ("ofd", True), ("flock", True)):
        probe = {"posix": "posix_nb", "ofd": "ofd_nb", "flock": "flock_nb"}[kind]
        for closing in ("dup_close", "reopen_close"):
            assert holder.do(kind, a) == "ok"
            assert other.do(probe, a) == "EAGAIN"
            assert holder.do(closing, a) == "ok"
            assert other.do(probe, a) == ("EAGAIN" if survivor else "ok"), (kind, closing)
            assert (holder.do("close", a), other.do("close", a)) == ("ok", "ok")
            assert (holder.do("open", a), other.do("open", a)) == ("ok", "ok")


def lock_by_handle(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, WRITE_LOCK)
    except BlockingIOError:
        return False
    return True


def eventually(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + ANSWER_S
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_of_an_open_file_ends_with_its_close(node, place, killed):
    """The kernel's RELEASE does not name such locks."""
    (place / "file").write_bytes(bytes(100))
    one = os.open(place / "file", os.O_RDWR)
    other = os.open(place / "file", os.O_RDWR)
    assert lock_by_handle(one)
    copy = os.dup(one)
    os.close(one)
    if killed:
        node.replaced("worker", node.kill("worker")["worker"])
    assert not lock_by_handle(other)  # the copy still is the same open file
    os.close(copy)
    assert eventually(lambda: lock_by_handle(other))
    os.close(other)


CLOSED = """
import fcntl, os, struct, sys, threading
F_OFD_GETLK, F_OFD_SETLK = 36, 37
path, how, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
asker = os.open(path, os.O_RDWR)
def asked(command):  # a process of its own: a lock of its process would be in no classic lock's way
    child = os.fork()
    if not child:
        found = fcntl.fcntl(os.open(path, os.O_RDWR), command, lock)
        os._exit(struct.unpack("hhqqi4x", found)[0] != fcntl.F_UNLCK)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for number in range(rounds):
    fd = os.open(path, os.O_RDWR)
    if how == "flock": fcntl.flock(fd, fcntl.LOCK_EX)
    else: fcntl.fcntl(fd, fcntl.F_SETLK if how == "posix" else F_OFD_SETLK, lock)
    closer = threading.Thread(target=os.close, args=(fd,))  # it shares the descriptors
    closer.start()
    closer.join()
    if how == "flock":
        fcntl.flock(asker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(asker, fcntl.LOCK_UN)
    else:
        assert not asked(F_OFD_GETLK), f"round {number}: it is locked"
        fcntl.fcntl(asker, F_OFD_SETLK, lock)
        fcntl.fcntl(asker, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 10, 0))
"""


@pytest.mark.parametrize("how", ["posix", "ofd", "flock"])
def test_a_file_closed_by_sharers_of_descriptors_is_not_locked(files, how):
    done = subprocess.run([sys.executable, "-c", CLOSED, files[0], how, "100"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_fcntl_and_open_file_description_locks_meet_and_flock_meets_neither(files, party):
    a = files[0]
    one, two = party(a), party(a)
    assert one.do("posix", a, 0, 10) == "ok"
    assert two.do("ofd_nb", a, 5, 10) == "EAGAIN" and two.do("ofd_nb", a, 10, 10) == "ok"
    assert one.do("posix_nb", a, 15, 1) == "EAGAIN" and one.do("flock_nb", a) == "ok"
    assert two.do("flock_nb", a) == "EAGAIN"
    assert one.do("ofd_nb", a, 0, 5) == "EAGAIN", "one's own fcntl lock is in the way of its open file description"


# --- a worker that dies ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["posix", "ofd", "flock"])
def test_locks_and_waits_outlive_the_worker(node, files, party, waiters, kind):
    holder, waiter, probe = party(files[0]), party(files[0]), party(files[0])
    assert holder.do(kind, files[0]) == "ok"
    waiter.begin(kind, files[0])
    waiters(1)
    for _ in range(2):
        node.replaced("worker", node.kill("worker")["worker"])
        assert probe.do(f"{kind}_nb", files[0]) == "EAGAIN"
        waiters(1)
    assert holder.do("close", files[0]) == "ok"
    assert waiter.answer() == "ok"
    assert probe.do(f"{kind}_nb", files[0]) == "EAGAIN", "now the waiter has it"
    waiter.end()
    deadline = time.monotonic() + ANSWER_S
    while (said := probe.do(f"{kind}_nb", files[0])) != "ok":
        assert said == "EAGAIN" and time.monotonic() < deadline
        time.sleep(0.02)


def test_a_wait_can_be_interrupted_after_the_worker_has_died(node, files, party, waiters):
    holder, waiter = party(files[0]), party(files[0])
    assert holder.do("posix", files[0]) == "ok"
    waiter.begin("posix", files[0])
    waiters(1)
    node.replaced("worker", node.kill("worker")["worker"])
    waiters(1)
    waiter.process.send_signal(12)
    assert waiter.answer() == "stopped"
    waiters(0)
