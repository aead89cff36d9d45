"""A mount without a kernel: the real worker over a real metadata service, a device in memory and shared memory that outlives `kill`.

Requests are calls of the vfs, each with its own FUSE unique; `call` runs its Steps to the end as the session does.  `kill` drops a worker
without a flush, and `start` builds its successor over the same memory with the code that a real one runs (worker/worker.py), the requests
given to
`repeat` first, as unanswered ones of the predecessor.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import GeneratorType
from typing import Any

import pytest

from awsomefsd.base.consistency import STRICT
from awsomefsd.base.errors import Error
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import INLINE_BYTES_MAX, OP_LOG_BYTES
from awsomefsd.base.shm import PAGE_BYTES, round_up
from awsomefsd.base.types import NAMES_DELEGATED, ROOT_INO, Attr, Dirent
from awsomefsd.base.wait import Errand, Payload, Signal, Task, Wait, block_on
from awsomefsd.fuse import control_area, parked_requests, slots
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.file import dirty_log, record_ring
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.session_events import IgnoredEvents
from awsomefsd.meta.replica.store import Store
from awsomefsd.vfs.api.context import Context, Opened, SetAttrIn
from awsomefsd.vfs.state import open_files
from awsomefsd.vfs.state.atimes import Policy
from awsomefsd.vfs.vfs import Vfs
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.worker import Worker
from tests.rigs.metadata_service import CLUSTER, DEVICE, MIB, Clock, CountingDisk, Host

LIMIT_S = 60.0
RING_BYTES = 16 * MIB
COLLECT_EVERY = 80  # rigs: their circles of objects hold the mappings of five memfds, a descriptor each
VOLUME, MOUNT = 1, 5
BIG = INLINE_BYTES_MAX * 4  # of a file that is never inline


class QuietDisk(CountingDisk):
    """Syncs nothing: these tests end processes, not machines."""

    def fdatasync(self, fd: int) -> None:
        if self.fail:
            raise OSError(5, "the disk died")
        self.syncs += 1


class Link:
    """The keeper's part."""

    def __init__(self, fds: dict[str, int], start_message: dict[str, Any]) -> None:
        self.fds = fds
        self.start_message = start_message
        self.left: list[bool] = []

    def ready(self, on_flush: Callable[[bool], None]) -> None:
        pass

    def answered(self) -> None:
        pass

    def needs(self, memory_format: int) -> bool:
        self.needed = memory_format
        return True

    def bye(self, clean: bool) -> None:
        self.left.append(clean)


class Requests:
    """The session's part: the unanswered requests of the predecessor are executed again."""

    def __init__(self, repeat: Iterable[Callable[[Vfs], Any]], vfs: Vfs) -> None:
        self._repeat = list(repeat)
        self._vfs = vfs
        self.results: list[Any] = []

    def recover(self) -> None:
        for request in self._repeat:
            try:
                self.results.append(finish(request(self._vfs)))
            except (Error, OSError) as err:
                self.results.append(err)

    def wait_repeated(self) -> None:
        pass

    def start(self) -> None:
        pass

    def wait(self, timeout_s: float | None = None) -> bool:
        return True


class Kernel:
    def __init__(self) -> None:
        self.forgotten: list[list[int]] = []

    def invalidate_all(self, inos: list[int]) -> None:
        self.forgotten.append(inos)


class Noticing(IgnoredEvents):
    """Notes that the session was lost, and does nothing about it."""

    def __init__(self, noticed: threading.Event) -> None:
        self._noticed = noticed

    def lost(self) -> None:
        self._noticed.set()


def finish(result: Any, timeout_s: float = LIMIT_S) -> Any:
    """The result of a call, which may be Steps.  Their errands are done here, as a reader of the session does them."""
    if not isinstance(result, GeneratorType):
        return result
    errands: list[Errand] = []
    started = Started(_claiming(result, errands, threading.get_ident()))
    while errands:
        errands.pop().run()
    return started.result(timeout_s)


def _claiming(steps: Any, errands: list[Errand], reader: int) -> Any:
    """Runs Steps; claims those errands that are asked for on the thread `reader`."""
    value, error = None, None
    while True:
        try:
            wait = steps.send(value) if error is None else steps.throw(error)
        except StopIteration as stop:
            return stop.value
        if type(wait) is Errand and threading.get_ident() == reader:
            wait.claim()
            errands.append(wait)
        try:
            value, error = (yield wait), None
        except Exception as err:
            value, error = None, err


def of_a_session(op: Any, data: memoryview) -> Any:
    """Runs a write as the session does: once it has said that it waits, its bytes are elsewhere, and its slot holds another request."""
    if not isinstance(op, GeneratorType):
        return op

    def steps() -> Any:
        try:
            wait = op.send(None)
        except StopIteration as stop:
            return stop.value
        assert type(wait) is Payload and wait.data == data, f"it keeps its slot while it waits for {wait}"
        kept = memoryview(bytes(data))
        data[:] = b"\xa5" * len(data)
        while True:
            try:
                value = kept if type(wait) is Payload else (yield wait)
            except Exception as err:
                resume: Callable[[], Any] = partial(op.throw, err)
            else:
                resume = partial(op.send, value)
            try:
                wait = resume()
            except StopIteration as stop:
                return stop.value

    return steps()


class Started:
    """A call that goes on by itself."""

    def __init__(self, op: Any) -> None:
        self.op = op
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended = threading.Event()
        if isinstance(op, GeneratorType):
            Task(op, self._finish).start()
        else:
            self._finish(op, None)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error = value, error
        self.ended.set()

    def result(self, timeout_s: float = LIMIT_S) -> Any:
        assert self.ended.wait(timeout_s), "the operation does not end"
        if self.error is not None:
            raise self.error
        return self.value


class RigWorker(Worker):
    """A Worker whose device and kernel are the rig's."""

    def __init__(self, rig: Rig, link: Link, config: WorkerConfig, repeat: Iterable[Callable[[Vfs], Any]]) -> None:
        super().__init__(link, config, rig.make_client)  # type: ignore[arg-type]
        self.memory.unanswered = lambda: rig.unanswered  # type: ignore[method-assign]
        self.data.devices._open[1] = rig.device  # type: ignore[assignment]
        self.session = Requests(repeat, self.vfs)  # type: ignore[assignment]
        self.notifier.close()
        self.sessions._kernel = self.kernel = Kernel()
        self.notifier.invalidate_all = self.kernel.invalidate_all  # type: ignore[method-assign]


class Gate:
    """Lets chosen requests to the metadata service, or their answers, wait or fail."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.on_propose: Callable[[Any, int], Any] | None = None  # may return a Wait in the place of the real one
        self.on_ask: Callable[[Any], Any] | None = None

    def ask(self, body: Any) -> Any:
        on_ask = self.on_ask  # a test may take it away at any time
        other = on_ask(body) if on_ask is not None else None
        return other if other is not None else self._client.ask(body)

    def propose(self, command: Any, unique: int, *under: Any) -> Any:
        on_propose = self.on_propose
        other = on_propose(command, unique) if on_propose is not None else None
        return other if other is not None else self._client.propose(command, unique, *under)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class After:
    """A Wait that begins when `release` is called (`what` may be None: it ends then)."""

    def __init__(self, what: Wait | None) -> None:
        self._what = what
        self.begun = threading.Event()
        self._go = Signal()

    def start(self, resume: Any) -> None:
        self.begun.set()
        self._go.start(lambda value, error: resume(value, error) if self._what is None else self._what.start(resume))

    def release(self, value: Any = None, error: BaseException | None = None) -> None:
        self._go.fire(value, error)


class Held:
    """A Wait whose request goes out at once and whose answer is kept until `release`."""

    def __init__(self, what: Wait) -> None:
        self.answered = threading.Event()
        self._what = what
        self.outcome: tuple[Any, Any] = (None, None)
        self._go = Signal()

    def start(self, resume: Any) -> None:
        def came(value: Any, error: Any) -> None:
            self.outcome = (value, error)
            self.answered.set()
            self._go.start(lambda _value, _error: resume(*self.outcome))

        self._what.start(came)

    def release(self) -> None:
        self._go.fire()


def shared_memory() -> dict[str, int]:
    """Memfds of a mount, as a keeper makes them."""
    sizes = {
        "control": control_area.CONTROL_BYTES,
        "slots": slots.required_bytes(),
        "park": parked_requests.required_bytes(8 * MIB),
        "dirty": dirty_log.required_bytes(RING_BYTES),
        "opens": open_files.required_bytes(),
        "ops": record_ring.required_bytes(OP_LOG_BYTES),
    }
    fds = {name: os.memfd_create(name) for name in sizes}
    for name, size in sizes.items():
        os.ftruncate(fds[name], round_up(size, PAGE_BYTES))
    return fds


class Rig:
    """One node, one volume, one mount.  The current worker's parts are `vfs`, `mount`, `flusher`; `device` stays the same."""

    boot_id = "boot"
    node = "node"
    shared = False  # with mounts of other nodes
    caches = False  # and under leases
    consistency = STRICT
    delegated = False  # the volume lets its mount decide names
    level = LEVEL  # at which the cluster begins to act
    on_lease_loss = "block"
    closed = 0  # in this process
    client_options: dict[str, Any] = {}  # of MetaClient

    atime: tuple[str, bool] = Policy()  # of the mount
    options: tuple[str, ...] = ()  # that a worker is told of

    def __init__(self, directory: Path, *, segments: int = 62, segment_bytes: int = MIB, quota_bytes: int = 0) -> None:
        self.directory = directory
        self.clock = Clock()
        self.lease_clock = Clock()
        disk = QuietDisk()
        self.host = Host(directory, boot_ns=self.clock, replica_options={"disk": disk})
        self.host.disk = disk
        size = (segments + 1) * segment_bytes
        self.device = MemoryDevice(size)
        self.device.write_once = False  # places of freed segments are used again
        service = self.host.start()
        for command in (
            c.Init(CLUSTER, 7, self.level),
            c.AddDevice(DEVICE, size, segment_bytes, segments, segment_bytes),
            c.CreateVolume("vol", "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa", quota_bytes),
        ):
            assert not isinstance(service.propose(command, 60), m.Failed)
        if self.delegated:
            assert not isinstance(service.propose(c.SetNames(VOLUME, NAMES_DELEGATED), 60), m.Failed)
        self.fds = shared_memory()
        self.null = os.open("/dev/null", os.O_RDWR)
        self.workers = 0
        self.unanswered: list[int] | None = None  # what a successor finds in slots and park area, which the rig does not fill
        self.mount_id = MOUNT
        self.unique = 0
        self.worker: RigWorker
        self.alive = False

    def make_client(self, *args: Any) -> MetaClient:
        """The client of each worker."""
        return MetaClient(*args, **self.client_options)

    def hold_lease_clock(self) -> None:
        """From the next worker on its lease runs by `lease_clock`, which the test alone advances."""
        self.client_options = {**self.client_options, "boot_ns": self.lease_clock, "wall_ns": self.lease_clock}

    # --- workers ---------------------------------------------------------------------------------------------------------

    def start(self, *repeat: Callable[[Vfs], Any], exited: bool = True) -> Any:
        """A worker: the first one, or the successor of one that was killed.  Returns what the repeated requests gave."""
        self.workers += 1
        config = WorkerConfig(
            volume=VOLUME, meta_sock=str(self.host.socket_path), node=self.node, boot_id=self.boot_id, state_dir=str(self.directory),
            shared=self.shared, caches=self.caches, atime=self.atime, consistency=self.consistency, on_lease_loss=self.on_lease_loss,
            read_only=False, options=list(self.options), leased_names=self.shared and self.caches and self.consistency == STRICT,
        )  # fmt: skip
        start = {"mount": f"{self.mount_id:x}", "fresh": self.workers == 1, "worker": self.workers, "dir": "/mnt"}
        if self.workers > 1:
            start["previous"] = {"exited": exited, "signal": 9}
        self.worker = RigWorker(self, Link({"fuse": self.null, **self.fds}, start), config, repeat)
        self.alive = True
        self.worker.start()
        return self.worker.session.results  # type: ignore[attr-defined]

    def kill(self) -> None:
        """SIGKILL, as far as a process can do that to a part of itself: nothing is flushed, no answer is received any more."""
        worker = self.worker
        self.alive = False
        worker._ended.set()
        worker.client._events = IgnoredEvents()
        worker.client.close()
        if worker.data.flusher._thread.is_alive():  # it may have ended before it came so far
            worker.data.stop()
        if worker.names is not None:
            worker.names.shipper.stop()
        if worker.recalls is not None:
            worker.recalls.close()
        worker.pool.shutdown()
        worker.budget.close()

    def restart(self, *repeat: Callable[[Vfs], Any]) -> Any:
        self.kill()
        return self.start(*repeat)

    def unmount(self) -> None:
        """Everything is flushed and the session ends; another `start` mounts again (with new memory, as a keeper gives it)."""
        self.worker.pool.shutdown()
        self.worker.serve()
        self.alive = False
        assert self.worker.link.left == [True]  # type: ignore[attr-defined]

    def remount(self) -> None:
        self.unmount()
        for name, fd in self.fds.items():
            size = os.fstat(fd).st_size
            os.close(fd)
            self.fds[name] = os.memfd_create(name)
            os.ftruncate(self.fds[name], size)
        self.workers = 0
        self.mount_id += 1
        self.start()

    def close(self) -> None:
        try:
            if self.alive:
                self.kill()
        finally:
            if self.host.service is not None:
                self.host.service.stop()
            for fd in [*self.fds.values(), self.null]:
                os.close(fd)
            Rig.closed += 1
            if Rig.closed % COLLECT_EVERY == 0:
                gc.collect()

    def check(self) -> None:
        """Ends the service; what is in its store must be sound."""
        assert self.host.service is not None
        self.host.service.stop()
        self.host.service = None
        store = Store.open(self.directory / "meta" / "store", readonly=True)
        try:
            assert check(store) == []
        finally:
            store.close()

    # --- parts -----------------------------------------------------------------------------------------------------------

    @property
    def vfs(self) -> Vfs:
        return self.worker.vfs

    @property
    def mount(self) -> Any:
        return self.worker.mount

    def gate(self) -> Gate:
        """In front of the metadata client for vfs and flusher; the client itself goes on under it."""
        gate = Gate(self.worker.client)
        self.mount.metadata = gate
        self.worker.data.flusher._metadata = gate
        return gate

    def volume(self) -> Any:
        assert self.host.service is not None
        return self.host.service.query(m.GetVolumes("vol")).volumes[0]  # type: ignore[union-attr]

    def end_session(self) -> None:
        """The leader ends the mount's session, as if it had expired."""
        state = self.worker.memory.control.state
        reply = self.host.end_session(state.session, state.epoch)
        assert not isinstance(reply, m.Failed), reply

    def counter(self, name: str) -> int:
        return self.worker.memory.control.counter(name).value

    # --- requests --------------------------------------------------------------------------------------------------------

    def ctx(self, unique: int | None = None, uid: int = 0, open_flags: int = 0) -> Context:
        """`open_flags`: of the descriptor, as WRITE brings them."""
        if unique is None:
            self.unique += 2
            unique = self.unique
        ctx = Context(uid, 0, 1000, unique)
        ctx.open_flags = open_flags
        return ctx

    def call(self, method: str, *args: Any, unique: int | None = None, open_flags: int = 0) -> Any:
        ctx = self.ctx(unique, open_flags=open_flags)
        try:
            return finish(self.request(method, ctx, *args))
        finally:
            self.vfs.replied(ctx.unique)

    def request(self, method: str, ctx: Context, *args: Any) -> Any:
        """What the vfs gives for a request: a value or Steps."""
        if method != "write":
            return getattr(self.vfs, method)(ctx, *args)
        ino, fh, offset, data, write_flags = args
        slot = memoryview(bytearray(data))
        return of_a_session(self.vfs.write(ctx, ino, fh, offset, slot, write_flags), slot)

    def begin(self, method: str, *args: Any) -> Started:
        ctx = self.ctx()
        return Started(self.request(method, ctx, *args))

    def create(self, name: bytes, parent: int = ROOT_INO, flags: int = os.O_RDWR) -> tuple[int, int]:
        """(inode, handle)."""
        attr, opened = self.call("create", parent, name, 0o644, flags)
        return attr.ino, opened.fh

    def file(self, name: bytes, data: bytes = b"", parent: int = ROOT_INO) -> int:
        """A closed file with dirty content."""
        ino, fh = self.create(name, parent)
        if data:
            self.write(ino, fh, 0, data)
        self.close_file(ino, fh)
        return ino

    def mkdir(self, name: bytes, parent: int = ROOT_INO) -> int:
        attr: Attr = self.call("mkdir", parent, name, 0o755)
        return attr.ino

    def open(self, ino: int, flags: int = os.O_RDWR) -> int:
        opened: Opened = self.call("open", ino, flags)
        return opened.fh

    def write(self, ino: int, fh: int, offset: int, data: bytes, unique: int | None = None, *, flags: int = 0) -> None:
        assert self.call("write", ino, fh, offset, memoryview(data), 0, unique=unique, open_flags=flags) == len(data)

    def read(self, ino: int, fh: int, offset: int, size: int) -> bytes:
        parts = self.call("read", ino, fh, offset, size)
        return b"".join(bytes(part) for part in parts)

    def content(self, ino: int, size: int = 4 * MIB) -> bytes:
        """All of a file, by pieces of one read."""
        fh = self.open(ino, os.O_RDONLY)
        found = []
        for offset in range(0, size, MIB):
            found.append(self.read(ino, fh, offset, MIB))
            if len(found[-1]) < MIB:
                break
        self.close_file(ino, fh)
        return b"".join(found)

    def close_file(self, ino: int, fh: int, owner: int = 0, release_flags: int = 0) -> None:
        self.call("flush", ino, fh, owner)
        self.call("release", ino, fh, 0, release_flags, owner)

    def fsync(self, ino: int, fh: int) -> None:
        self.call("fsync", ino, fh, False)

    def flush(self) -> None:
        block_on(self.worker.data.flusher.flush_all(), LIMIT_S)
        names = self.mount.names_synced()
        if names is not None:
            block_on(names, LIMIT_S)

    def lookup(self, name: bytes, parent: int = ROOT_INO) -> Attr:
        attr: Attr = self.call("lookup", parent, name)
        return attr

    def attr(self, ino: int) -> Attr:
        attr: Attr = self.call("getattr", ino, None)
        return attr

    def truncate(self, ino: int, size: int, fh: int | None = None, unique: int | None = None) -> Attr:
        attr: Attr = self.call("setattr", ino, fh, SetAttrIn(c.SET_SIZE, size=size), unique=unique)
        return attr

    def listdir(self, ino: int = ROOT_INO, *, plus: bool = False) -> dict[bytes, int]:
        """Names and inodes, through an open directory, without the dots."""
        fh = self.call("opendir", ino, 0).fh
        found: dict[bytes, int] = {}
        offset = 0
        while entries := self.readdir(ino, fh, offset, plus=plus):
            for entry in entries:
                assert entry.name not in found, "a name twice"
                found[entry.name] = entry.ino
                offset = entry.cookie
        self.call("releasedir", ino, fh)
        assert found.pop(b".") == ino and found.pop(b"..")
        return found

    def readdir(self, ino: int, fh: int, offset: int, *, plus: bool = False) -> list[Dirent]:
        return list(self.call("readdir", ino, fh, offset, plus))


def until(condition: Callable[[], Any]) -> None:
    """For what another thread does and says nowhere."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


def failing(number: int = errno.EIO) -> Callable[..., None]:
    """For the hooks of the device."""

    def fail(*_: int) -> None:
        raise OSError(number, "the device says no")

    return fail


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """The errno of a refusal."""
    with pytest.raises((Error, OSError)) as caught:
        call(*args, **kwargs)
    number: int = caught.value.errno  # type: ignore[union-attr]
    return number


@contextlib.contextmanager
def rig(directory: Path, made_by: type[Rig] | None = None, **options: Any) -> Iterator[Rig]:
    """A started rig; closed in any case."""
    made = (made_by or Rig)(directory, **options)
    made.hold_lease_clock()
    try:
        made.start()
        yield made
    finally:
        made.close()
