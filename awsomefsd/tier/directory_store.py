"""A directory as a store: what a PUT has acknowledged survives a power cut.

An object is written to a file of its own name under `tmp/`, fsynced, linked to its name, and the directory is fsynced; new directories on
the way are fsynced into theirs first.  So an object is there whole or not at all, and nothing is replaced: a link to a name that exists
fails, and the bytes there are compared instead.  What a crash leaves under `tmp/` is removed when it is a day old; what has another name
than ours stays, for the directory that somebody names may be one with a `tmp/` of its own.

Every name is opened from the descriptor of the root, part by part, and no symbolic link is followed: what somebody else puts into the
directory leads nowhere.

A directory may be on a network filesystem whose calls do not come back.  So each request runs on a thread of its own, and whoever waits for
it leaves at the deadline; no more than STUCK_MAX threads may be left behind, and until one of them is back the store is down at once.  What
was put and left behind cannot be linked any more: its memory is the caller's again.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from awsomefsd.io.device.checksum import Bytes
from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, StoreDown, StoreError, StoreForeign, StoreRefused, StoreSlow
from awsomefsd.tier.store import CHUNK_BYTES, Suffix, Tries, check_name, deadline_s
from awsomefsd.tier.store_url import DIRECTORY, StoreUrl

STUCK_MAX = 8
INTERRUPTED_S = 10  # for a call whose caller was interrupted
DURABLE_MAX = 4_096  # directories that are remembered
TEMPORARY = "tmp"
TEMPORARY_KEPT_S = 24 * 3_600
_OURS = re.compile(r"[0-9a-f]{32}")  # names under `tmp/`
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_REFUSED = {
    errno.EACCES: "this process may not do that there",
    errno.EPERM: "this process may not do that there, or the filesystem knows no hard links",
    errno.EROFS: "the filesystem is read only",
    errno.ENOSPC: "the filesystem is full",
    errno.EDQUOT: "the quota is used up",
    errno.EOPNOTSUPP: "the filesystem knows no hard links",
    errno.EMLINK: "the filesystem takes no more links",
    errno.ENOTDIR: "what should be a directory is something else",
    errno.ELOOP: "a symbolic link is in the way",
}

Answer = TypeVar("Answer")


class _Call:
    """A request on its thread.  After `commit` it has its effect, whoever waits for it or not; left before that, it has none."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.left = False

    def commit(self) -> None:
        with self._lock:
            if self.left:
                raise StoreSlow("was left behind")


class DirectoryStore:
    """A directory; see `store.ObjectStore`.  `seconds_for` bytes is the deadline of a request."""

    def __init__(self, url: StoreUrl, tries: Tries | None = None, seconds_for: Callable[[int], float] = deadline_s) -> None:
        assert url.kind == DIRECTORY
        self.url = str(url)
        self._root = url.place
        self._tries = tries or Tries()
        self._seconds_for = seconds_for
        self._lock = threading.Lock()
        self._durable: set[str] = set()  # directories that were fsynced into theirs
        self._left_behind = 0  # calls that have not come back and for which nobody waits

    def read(self, name: str, start: int, length: int) -> Iterator[Bytes]:
        assert start >= 0 and length > 0
        return self._tries.read(lambda skipped: self._read(name, start + skipped, length - skipped), length)

    def suffix(self, name: str, length: int) -> Suffix:
        def last(_call: _Call) -> Suffix:
            with self._opened(name) as fd:
                size = os.fstat(fd).st_size
                return Suffix(_read_exactly(fd, max(0, size - length), min(length, size)), size)

        return self._tries.run(lambda: self._bounded(last, name, length), length)

    def whole(self, name: str, bytes_max: int) -> bytes:
        def all_of_it(_call: _Call) -> bytes:
            with self._opened(name) as fd:
                size = os.fstat(fd).st_size
                if size > bytes_max:
                    raise ObjectDamaged(f"has more than {bytes_max} bytes")
                return _read_exactly(fd, 0, size)

        return self._tries.run(lambda: self._bounded(all_of_it, name, bytes_max), bytes_max)

    def put(self, name: str, body: Bytes) -> None:
        self._tries.run(lambda: self._bounded(lambda call: self._put(call, name, body), name, len(body)), len(body))

    def delete(self, name: str) -> None:
        def remove(_call: _Call) -> None:
            with self._root_directory() as root:
                try:
                    with _parent(root, name) as (parent, last):
                        os.unlink(last, dir_fd=parent)
                        os.fsync(parent)
                except FileNotFoundError:
                    pass

        self._tries.run(lambda: self._bounded(remove, name, 0), 0)

    def headers(self, _name: str) -> dict[str, str]:
        return {}

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _read(self, name: str, start: int, length: int) -> Iterator[Bytes]:
        for at in range(start, start + length, CHUNK_BYTES):
            size = min(CHUNK_BYTES, start + length - at)

            def part(_call: _Call, at: int = at, size: int = size) -> bytes:
                with self._opened(name) as fd:
                    return _read_exactly(fd, at, size)

            yield self._bounded(part, name, size)

    def _put(self, call: _Call, name: str, body: Bytes) -> None:
        with self._root_directory() as root:
            temporary = f"{TEMPORARY}/{secrets.token_hex(16)}"
            with _parent(root, temporary, self._durable) as (room, random_name):
                _remove_old(room)
                fd = os.open(random_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=room)
                try:
                    try:
                        _write(fd, body)
                        os.fsync(fd)
                    finally:
                        os.close(fd)
                    with _parent(root, name, self._durable) as (parent, last):
                        call.commit()
                        self._link(room, random_name, parent, last, body)
                        os.fsync(parent)
                finally:
                    with suppress(OSError):
                        os.unlink(random_name, dir_fd=room)

    def _link(self, room: int, random_name: str, parent: int, last: str, body: Bytes) -> None:
        try:
            os.link(random_name, last, src_dir_fd=room, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if os.fstat(fd).st_size != len(body) or _read_exactly(fd, 0, len(body)) != body:
                    raise ObjectDamaged("is there already with another content; a name is never written twice") from None
                os.fsync(fd)
            finally:
                os.close(fd)

    @contextmanager
    def _root_directory(self) -> Iterator[int]:
        try:
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreDown(f"there is no directory {self._root}; is its filesystem mounted?") from None
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        with self._root_directory() as root:
            try:
                with _parent(root, name) as (parent, last):
                    fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
            except FileNotFoundError:
                raise ObjectMissing("is not there") from None
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise StoreForeign("something else is where an object should be")
                yield fd
            finally:
                os.close(fd)

    def _bounded(self, work: Callable[[_Call], Answer], name: str, length: int) -> Answer:
        """Returns what `work` returns, on a thread of its own.  Raises StoreError, and StoreSlow at the deadline."""
        what = f"{self.url}: {check_name(name)}"
        with self._lock:
            if self._left_behind >= STUCK_MAX:
                raise StoreDown(f"{what}: {STUCK_MAX} earlier calls to this filesystem have not come back")
        call, done = _Call(self._lock), threading.Event()
        answers: list[Answer] = []
        wrong: list[Exception] = []

        def run() -> None:
            try:
                answers.append(work(call))
            except Exception as err:
                wrong.append(err)
            finally:
                with self._lock:
                    self._left_behind -= call.left
                    done.set()

        thread = threading.Thread(target=run, name="directory store", daemon=True)
        try:
            thread.start()
            ended = done.wait(self._seconds_for(length))
        except RuntimeError:
            raise  # no thread can be started
        except BaseException:  # a signal: whoever removes what was put now must find all of it
            self._leave(call, done)
            done.wait(INTERRUPTED_S)
            raise
        if not ended and self._leave(call, done):
            raise StoreSlow(f"{what}: no end within {self._seconds_for(length):.0f} s")
        if wrong:
            raise _sorted(wrong[0], what) from None
        return answers[0]

    def _leave(self, call: _Call, done: threading.Event) -> bool:
        with self._lock:
            if not done.is_set():
                call.left = True
                self._left_behind += 1
        return call.left


def _sorted(err: Exception, what: str) -> Exception:
    if isinstance(err, StoreError):
        return type(err)(f"{what}: {err}")
    if not isinstance(err, OSError):
        return err
    if err.errno in _REFUSED:
        return StoreRefused(f"{what}: {err.strerror}; {_REFUSED[err.errno]}")
    return StoreDown(f"{what}: {err.strerror or err}")


@contextmanager
def _parent(root: int, name: str, durable: set[str] | None = None) -> Iterator[tuple[int, str]]:
    """Gives the descriptor of the directory that holds `name`, and the last part.

    Given `durable`, the set of directories of which this process knows that they outlive a power cut, missing ones are made, durably.
    """
    *parts, last = name.split("/")
    fd = os.dup(root)
    try:
        for depth, part in enumerate(parts, start=1):
            if durable is not None:
                _make(part, fd, "/".join(parts[:depth]), durable)
            below = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, last
    finally:
        os.close(fd)


def _make(part: str, fd: int, path: str, durable: set[str]) -> None:
    try:
        os.mkdir(part, 0o700, dir_fd=fd)
    except FileExistsError:
        if path in durable:
            return
    os.fsync(fd)  # also for one that somebody else has made just now
    if len(durable) >= DURABLE_MAX:
        durable.clear()
    durable.add(path)


def _write(fd: int, body: Bytes) -> None:
    view = memoryview(body).cast("B")
    while view:
        view = view[os.write(fd, view[: 8 * CHUNK_BYTES]) :]


def _read_exactly(fd: int, start: int, length: int) -> bytes:
    raw = bytearray()
    while len(raw) < length:
        part = os.pread(fd, length - len(raw), start + len(raw))
        if not part:
            raise ObjectDamaged(f"ends after {start + len(raw)} bytes instead of {start + length}")
        raw += part
    return bytes(raw)


def _remove_old(room: int) -> None:
    """Removes what crashes have left."""
    before = time.time() - TEMPORARY_KEPT_S
    with os.scandir(room) as entries:
        for entry in entries:
            with suppress(OSError):
                if _OURS.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < before:
                    os.unlink(entry.name, dir_fd=room)
