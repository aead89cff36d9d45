"""Injects faults for tests: errors, short transfers, delays and a wrong clock at the seams of a running node.

AWSOMEFSD_FAULTS names a file of rules.  `__main__` imports this module only where that variable is set, and puts stand-ins in the place of
the modules that the seams use; without it nothing here is loaded and no path has a branch more.  The rules are read again when the file
has changed (checked every LOOK_S at most), so a fault begins and ends while everything runs.  Replace the file by a rename.

    device.write=EIO:5%            one write in twenty fails
    device.read=short:10%          a part is transferred
    journal.sync=delay:50ms:10%    it takes longer
    journal.sync=EIO:x1            the next one of each process
    device.write=hold              it waits until no rule holds it any more, and is done then, however late that is
    store.map=262144               the size of the map of a store that is opened
    clock=+86400                   CLOCK_REALTIME of our processes, in seconds off
    boot=2                         the node was booted again: another boot id, from the next start of its daemon on
    ask.Lookup.b=hold              the question for the name b waits in the worker

Seams: device.read, .write, .flush, ask.KIND and ask.KIND.NAME of a request (worker; delay and hold only); journal.open, .read, .write,
.sync, .rename, the same of spare (the journal's next file, which is prepared beside) and store.commit, store.full, store.grow (daemon; the
last: its map is not made larger in time, as while a copy is made); client.send, .receive (the worker's end of meta.sock) and service.send,
.receive (the daemon's).
An error on a socket also ends its connection, as any real one does.  Every fault that took effect is a line of FILE.hits, so that a test
can prove that its faults happened.  A held operation has a second line, `SEAM released PID`, when it goes on: a write of a zombie is one
that is released after its session has ended.  A held transfer goes with its process, as one that the kernel has not taken yet.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

VARIABLE = "AWSOMEFSD_FAULTS"
LOOK_S = 0.02
SHORT, DELAY, HOLD = "short", "delay", "hold"
BLOCK_BYTES = 4096  # short transfers of a device end between two blocks

log = logging.getLogger("awsomefsd.injection")


class Rule(NamedTuple):
    """One fault at one seam."""

    seam: str
    action: str  # name of an errno, SHORT, DELAY or HOLD
    probability: float = 1.0
    delay_s: float = 0.0
    times: int = 0  # at most; 0: for ever


def parse(text: str) -> tuple[list[Rule], dict[str, int]]:
    """Returns the rules, and the plain numbers by name.  Raises ValueError for a word that is neither."""
    rules: list[Rule] = []
    numbers: dict[str, int] = {}
    for word in text.replace("\n", ",").split(","):
        seam, equals, rest = word.strip().partition("=")
        if not seam:
            continue
        parts = rest.split(":")
        try:
            numbers[seam] = int(parts[0])
            continue
        except ValueError:
            pass
        if not equals or not (parts[0] in (SHORT, DELAY, HOLD) or hasattr(errno, parts[0])):
            raise ValueError(f"{VARIABLE}: {word!r} is no rule")
        rule = Rule(seam, parts[0])
        for part in parts[1:]:
            if part.endswith("%"):
                rule = rule._replace(probability=float(part[:-1]) / 100)
            elif part.endswith("ms"):
                rule = rule._replace(delay_s=float(part[:-2]) / 1000)
            elif part.startswith("x"):
                rule = rule._replace(times=int(part[1:]))
            else:
                raise ValueError(f"{VARIABLE}: {part!r} in {word!r} is no percentage, delay or count")
        rules.append(rule)
    return rules, numbers


class Faults:
    """The rules in force, of one file.  Any thread may ask."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._look = 0.0
        self._seen: tuple[int, int] = (0, 0)
        self._rules: list[Rule] = []
        self._used: dict[Rule, int] = {}
        self._dice = random.Random(os.urandom(8))
        self.numbers: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads the rules again if the file has changed and the last look was LOOK_S ago.

        A missing file has no rules; one that cannot be read changes nothing.
        """
        now = time.monotonic()
        if now < self._look:
            return
        with self._lock:  # no thread goes on by the old rules while the new ones are read
            if now < self._look:
                return
            try:
                status = os.stat(self._path)
                seen = status.st_ino, status.st_mtime_ns
                if seen != self._seen:
                    with open(self._path) as file:
                        self._rules, self.numbers = parse(file.read())
                    self._seen = seen
                    self._used.clear()
            except FileNotFoundError:
                self._rules, self.numbers, self._seen = [], {}, (0, 0)
            except (OSError, ValueError) as err:  # exhausted descriptors are a fault of the same test: the rules stay
                log.warning("rules not read: %s", err)
            self._look = now + LOOK_S

    def at(self, seam: str) -> str:
        """Sleeps as the rules say, then returns the errno's name or SHORT if the caller has to do that, else ""."""
        self.refresh()
        for rule in self._rules:
            if rule.seam != seam or self._dice.random() >= rule.probability:
                continue
            with self._lock:
                used = self._used.get(rule, 0)
                if rule.times and used >= rule.times:
                    continue
                self._used[rule] = used + 1
            self._tell(f"{seam} {rule.action} {os.getpid()}\n")
            if rule.action == HOLD:
                self._hold(seam)
            elif rule.action == DELAY:
                time.sleep(rule.delay_s)
            else:
                return rule.action
        return ""

    def _hold(self, seam: str) -> None:
        """Sleeps until the file has no such rule; its chance and its count say how many are held, not for how long."""
        while any(rule.seam == seam and rule.action == HOLD for rule in self._rules):
            time.sleep(LOOK_S)
            self.refresh()
        self._tell(f"{seam} released {os.getpid()}\n")

    def check(self, seam: str) -> bool:
        """Raises the OSError that the rules want; returns True for a short transfer.  Sleeps as `at`."""
        action = self.at(seam)
        if action in ("", SHORT):
            return bool(action)
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number), f"injected at {seam}")

    def _tell(self, line: str) -> None:
        try:
            fd = os.open(self._path + ".hits", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        os.write(fd, line.encode())
        os.close(fd)


def _part(buffers: Sequence[memoryview]) -> list[memoryview]:
    """Returns the first half of the buffers, in whole blocks; all of a single block."""
    wanted = max(sum(map(len, buffers)) // 2 // BLOCK_BYTES * BLOCK_BYTES, BLOCK_BYTES)
    found: list[memoryview] = []
    for buffer in buffers:
        if wanted <= 0:
            break
        found.append(buffer[:wanted])
        wanted -= len(found[-1])
    return found


class _Os:
    """The os module, but for calls at a seam."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class DeviceOs(_Os):
    """Stands in for os in io/device/device.py."""

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(fd, _part(buffers) if self._faults.check("device.read") else buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(fd, _part(buffers) if self._faults.check("device.write") else buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._faults.check("device.flush")
        os.fdatasync(fd)


class JournalOs(_Os):
    """Stands in for os in meta/log/disk.py.  The spare thread has seams of its own: a fault there does not end the journal."""

    def __init__(self, faults: Faults, spare_thread: str) -> None:
        super().__init__(faults)
        self._spare_thread = spare_thread

    def _check(self, what: str) -> bool:
        spare = threading.current_thread().name == self._spare_thread
        return self._faults.check(f"{'spare' if spare else 'journal'}.{what}")

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._check("open")
        return os.open(path, flags, mode)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, max(length // 2, 1) if self._check("read") else length, offset)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        return os.pwrite(fd, data[: max(len(data) // 2, 1)] if self._check("write") else data, offset)

    def fdatasync(self, fd: int) -> None:
        self._check("sync")
        os.fdatasync(fd)

    def rename(self, old: str, new: str) -> None:
        self._check("rename")
        os.rename(old, new)


class FaultySocket:
    """A connected socket whose transfers may be short or late, or end the connection."""

    def __init__(self, sock: socket.socket, faults: Faults, side: str) -> None:
        self._sock = sock
        self._faults = faults
        self._side = side

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def _check(self, what: str) -> bool:
        try:
            return self._faults.check(f"{self._side}.{what}")
        except OSError:
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        return self._sock.send(data[: max(len(data) // 2, 1)] if self._check("send") else data, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._sock.recv(min(size, 7) if self._check("receive") else size, flags)


def install(role: str) -> None:
    """Puts the stand-ins into this process ("worker", "run" or "doctor"; no other role has any), before anything of it begins.

    The doctor measures at the seam journal.sync, as the daemon's journal would.
    """
    path = os.environ[VARIABLE]
    if role not in ("worker", "run", "doctor"):
        return
    faults = Faults(path)
    _install_clock(faults)
    if role == "worker":
        _install_worker(faults)
    elif role == "doctor":
        from awsomefsd.meta.log import disk
        from awsomefsd.node.doctor import host

        setattr(host, "os", JournalOs(faults, disk.SPARE_THREAD))  # noqa: B010
    else:
        _install_daemon(faults)


def _install_clock(faults: Faults) -> None:
    real_ns = time.time_ns

    def time_ns() -> int:
        faults.refresh()
        return real_ns() + faults.numbers.get("clock", 0) * 1_000_000_000

    time.time_ns = time_ns


def _install_worker(faults: Faults) -> None:
    from awsomefsd.io.device import device
    from awsomefsd.meta.client import client
    from awsomefsd.meta.client.connection import connect as reach

    setattr(device, "os", DeviceOs(faults))  # noqa: B010  (mypy knows modules as they are written)
    init = client.MetaClient.__init__

    def begin(self: Any, *arguments: Any, connect: Any = reach, **keywords: Any) -> None:
        def faulty(place: str) -> Any:
            return FaultySocket(connect(place), faults, "client")

        init(self, *arguments, connect=faulty, **keywords)

    client.MetaClient.__init__ = begin  # type: ignore[method-assign]
    submit = client.MetaClient.submit

    def submit_late(self: Any, body: Any, *arguments: Any, **keywords: Any) -> None:
        subject = getattr(body, "command", body)
        name = getattr(subject, "name", b"")
        for seam in (f"ask.{type(subject).__name__}", f"ask.{type(subject).__name__}.{os.fsdecode(name)}"):
            faults.at(seam)
        submit(self, body, *arguments, **keywords)

    client.MetaClient.submit = submit_late  # type: ignore[method-assign]


def _install_daemon(faults: Faults) -> None:
    from awsomefsd.base import identity
    from awsomefsd.meta.log import disk
    from awsomefsd.meta.replica import store
    from awsomefsd.meta.server import connections

    boot = faults.numbers.get("boot", 0)
    if boot:
        booted = f"{identity.boot_id()}-{boot}"
        setattr(identity, "boot_id", lambda: booted)  # noqa: B010
    setattr(disk, "os", JournalOs(faults, disk.SPARE_THREAD))  # noqa: B010
    begin = connections.ClientConnection.__init__

    def begin_faulty(self: Any, owner: Any, sock: Any, *arguments: Any, **keywords: Any) -> None:
        begin(self, owner, FaultySocket(sock, faults, "service"), *arguments, **keywords)  # type: ignore[arg-type]

    connections.ClientConnection.__init__ = begin_faulty  # type: ignore[method-assign]
    _install_store(faults, store)


def _install_store(faults: Faults, store: Any) -> None:
    opened, write, grow_early = store.Store.open.__func__, store.Store.write, store.Store._grow_early

    def open_small(cls: Any, directory: Any, **keywords: Any) -> Any:
        if "store.map" in faults.numbers:
            keywords["map_bytes_min"] = faults.numbers["store.map"]
        return opened(cls, directory, **keywords)

    def write_or_fail(self: Any, rows: Any, beside: Any) -> None:
        faults.check("store.commit")
        if faults.at("store.full"):
            raise store.MapFull("injected")
        write(self, rows, beside)

    def grow_or_not(self: Any) -> None:
        if not faults.at("store.grow"):
            grow_early(self)

    store.Store.open = classmethod(open_small)
    store.Store._grow_early = grow_or_not
    store.Store.write = write_or_fail
