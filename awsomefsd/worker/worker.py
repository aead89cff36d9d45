"""The mount worker: builds one mount out of its parts, takes over from a dead predecessor, and ends when the kernel has unmounted.

Started by the keeper with the FUSE descriptor and the shared memory of the mount.  Order at the start, and why: the session first (without
it nothing may be committed), then the predecessor's dirty records are flushed (so that caches begin with what the service says, not with
what a record might still change), then its unanswered requests are executed, and only then does this worker read new ones.
No trio, gRPC or pydantic is imported here: a worker is serving within 150 ms.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec

from awsomefsd.base import log as logs
from awsomefsd.base import worker_locks
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.failpoints import hit
from awsomefsd.fuse.negotiate import Overrides
from awsomefsd.fuse.nested_mounts import NestedMounts
from awsomefsd.fuse.notify import Notifier
from awsomefsd.fuse.session import Session
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.io.file.draining import Draining
from awsomefsd.io.file.file_data import FileTable
from awsomefsd.io.file.flusher import Flusher
from awsomefsd.io.file.reservation import Reservation
from awsomefsd.io.file.write_through import WriteThrough
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.locations import Locations
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.writer import SegmentWriter
from awsomefsd.keeper.worker_link import KeeperLink
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.lease_cache import MountLeases
from awsomefsd.meta.client.recalls import RecallQueue, RecallThread
from awsomefsd.vfs.ops.id_mapping import identified
from awsomefsd.vfs.ops.recall_flush import RecallFlush
from awsomefsd.vfs.session.conflicts import Conflicts, write_conflicts
from awsomefsd.vfs.session.evicted_node import Removal
from awsomefsd.vfs.session.mount_session import SessionKeeper, SessionLease, open_session
from awsomefsd.vfs.state.atimes import NOATIME, Atimes, Policy
from awsomefsd.vfs.state.freshness import Modes
from awsomefsd.vfs.state.kernel_cache import KernelCache
from awsomefsd.vfs.state.leased_names import LeasedNames
from awsomefsd.vfs.state.mount_state import Buffered, Caches, MountState, SessionState
from awsomefsd.vfs.state.names import NameCache, UncachedNames
from awsomefsd.vfs.vfs import Vfs
from awsomefsd.worker.background import Background
from awsomefsd.worker.cluster_devices import ClusterDevices
from awsomefsd.worker.config import WorkerConfig, endpoints_of, identity_of, open_command
from awsomefsd.worker.corrupt_reads import CorruptReads
from awsomefsd.worker.figures import figures
from awsomefsd.worker.flush_events import MountFlushEvents
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.memory_budget import MemoryBudget
from awsomefsd.worker.quarantine_proof import QuarantineProof
from awsomefsd.worker.service_calls import ServiceCalls
from awsomefsd.worker.session_change import SessionChange
from awsomefsd.worker.session_events import MountEvents
from awsomefsd.worker.takeover import WorkerTakeover
from awsomefsd.worker.unmount import end_session, flush_all, flush_until_clean

IO_THREADS = 3
PAGE_THREADS = 4  # that wait for the kernel to give up pages
THREAD_DIED_EXIT_CODE = 70
GIL_SWITCH_S = 0.0005  # KERNEL-FUSE.md: the default of 5 ms hurts threads that block in read(2)

log = logging.getLogger("awsomefsd.worker")


class Worker:
    """One mount, complete when constructed; the session is opened then, and nothing is served yet.

    `make_client` makes the client of the metadata service from its endpoints, the mount's id and its events.
    """

    def __init__(self, link: KeeperLink, config: WorkerConfig, make_client: Callable[..., MetaClient] = MetaClient) -> None:
        start = link.start_message
        self.link = link
        self.mount_id = int(start["mount"], 16)
        self.config = config
        self.fresh = bool(start["fresh"])
        self._ended = threading.Event()
        self.memory = MountMemory(link.fds, self.mount_id, config.volume, fresh=self.fresh)
        events = MountEvents(self)
        self.client = make_client(endpoints_of(config), self.mount_id, events)
        self.calls = ServiceCalls(self.client, self.memory.control)
        self.lease = SessionLease(self.client.lease_left_ns, self._answer_fenced, fails=config.on_lease_loss == "error")
        self.lock = worker_locks.hold(config.state_dir, self.mount_id, start["worker"])  # before there is a session
        self.recall_queue = RecallQueue()
        self.leases = MountLeases(self.client, config.volume, self.recall_queue) if config.caches else None
        previous = start.get("previous") or {}
        exited = start["worker"] == 1 or bool(previous.get("exited"))
        self.open_command = open_command(config, self.mount_id, start["worker"], exited)
        self._build_data()
        self._build_mount(start)
        self._build_vfs(start)
        self._build_session()
        self.client.start()
        taking_over = msgspec.structs.replace(self.open_command, unanswered=self._unanswered())  # said once, before any is repeated
        self.opened = open_session(self.client, taking_over)
        events.begin()
        hit("takeover.session.opened")

    def _unanswered(self) -> list[int] | None:
        return self.memory.unanswered()

    def _answer_fenced(self) -> None:
        self.vfs.fenced()

    # --- building ------------------------------------------------------------------------------------------------------------

    def _build_data(self) -> None:
        """Devices, segments, and the dirty data on its way to them."""
        memory, config = self.memory, self.config
        self.cluster_devices = ClusterDevices(self.calls, config.state_dir, config.volume)
        self.devices = OpenDevices(self.cluster_devices.find)
        self.locations = Locations(self.calls.ask, self.calls.propose)
        self.checksums = ChecksumCache()
        self.reader = SegmentReader(self.devices, self.locations.locate, self.checksums)
        self.writer = SegmentWriter(self.devices, self.locations.lease, self.checksums)
        corrupt = CorruptReads(self.calls, config.volume, config.volume_name, memory.control.counter("corrupt_reads").add)
        self.files = FileTable(config.volume, memory.dirty, self.reader, corrupt.report, leased=config.shared)
        self.reservation = Reservation(config.volume, self.client, memory.control)
        self.through = WriteThrough(config.volume, self.writer) if config.shared else None
        self.flusher = Flusher(self.files, memory.dirty, self.writer, self.client, self.reservation, memory.control)

    def _build_mount(self, start: dict[str, Any]) -> None:
        """What this worker and the kernel remember of the mount, within its memory budget."""
        memory, config = self.memory, self.config
        modes = Modes(config.consistency)
        self.names = NameCache() if not config.shared else UncachedNames() if self.leases is None else LeasedNames(self.leases, modes)
        nested = NestedMounts(start["dir"], always=config.containers).there
        self.notifier = Notifier(self.link.fds["fuse"], nested, nameless=config.containers and config.shared)
        kernel = None if self.leases is None else self._build_kernel_cache(self.leases, modes)
        policy = Policy(NOATIME) if config.read_only or config.shared else Policy(*config.atime)
        atimes = Atimes(config.volume, self.client, memory.control, memory.opens, self.names.put, policy)
        self.mount = MountState(
            config.volume, self.client, memory.control,
            Caches(self.names, atimes, modes, self.leases, kernel),
            Buffered(memory.dirty, self.files, self.flusher, self.reservation, self.locations),
            SessionState(self.lease, self.client, memory.opens),
            read_only=config.read_only, shared=config.shared,
        )  # fmt: skip
        memfds = [fd for name, fd in self.link.fds.items() if name != "fuse"]
        self.budget = MemoryBudget(config.memory_bytes, memfds, (self.names, self.files, self.checksums), memory.dirty)
        directory = os.path.join(config.state_dir, "conflicts")
        store = partial(write_conflicts, directory, self.mount_id)
        self.conflicts = Conflicts(self.mount, store, memory.control.counter("files_put_aside").add)

    def _build_kernel_cache(self, leases: MountLeases, modes: Modes) -> KernelCache:
        """For a recall, in this order: what is buffered is committed, then what the kernel was told is taken back."""
        pages = ThreadPoolExecutor(PAGE_THREADS, thread_name_prefix="pages")
        kernel = KernelCache(leases, self.names, self.notifier, pages, self.lease.left_ns, self._minor, modes, self.memory.opens)
        flush = RecallFlush(self.files, self.flusher, leases.progress)
        self.recalls = RecallThread(self.recall_queue, [flush.handle, kernel.forget_for_recall])
        return kernel

    def _build_vfs(self, start: dict[str, Any]) -> None:
        """The filesystem, and the session of the kernel that asks it."""
        memory, link, config = self.memory, self.link, self.config
        self.pool = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io")
        self.vfs = Vfs(self.mount, self.client, self.pool, self.through)
        self.session = Session(
            link.fds["fuse"], identified(self.vfs, identity_of(config)), memory.control, memory.slots, memory.park, fresh=self.fresh,
            overrides=Overrides(**config.overrides), previous=start.get("previous"), on_first_reply=link.answered,
        )  # fmt: skip

    def _build_session(self) -> None:
        """What happens when the session ends, or the node is removed."""
        config, worker = self.config, self.open_command.worker
        proof = QuarantineProof(config.state_dir, self.mount_id, worker, self.writer.await_drained, self.calls.propose, self._ended)
        self.change = SessionChange(self.client, self.mount, self.memory.control, self.writer, proof, self.conflicts, self.calls)
        self.sessions = SessionKeeper(
            self.client, self.open_command, self.mount, self.vfs.locks, self.notifier, self.lease,
            self.conflicts, self.change.abandon_segments, self.change.begin,
        )  # fmt: skip
        self.removal = Removal(self.client, self.sessions, self.mount, self.lease, self.conflicts)

    def _minor(self) -> int:
        negotiated = self.session.negotiated
        return 0 if negotiated is None else negotiated.minor

    # --- start and end -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Takes over what a predecessor left, then serves; returns when it serves."""
        draining = Draining(self.writer, self.cluster_devices.draining, self.cluster_devices.report_sealed)
        events = MountFlushEvents(self.mount, self.vfs, self.conflicts, draining)
        takeover = WorkerTakeover(self.memory, self.mount, self.vfs, self.session, self.sessions, self.change)
        takeover.run(self.opened, self.open_command.worker, events, self.through)
        self.session.start()
        hit("takeover.ready")
        self.link.ready(partial(flush_all, self.mount))
        report = partial(figures, self.memory, self.mount, self.budget, self.open_command.worker)
        Background(self.mount, self.client, self.budget, self.vfs.orphans, report, self._ended).start()

    def serve(self) -> None:
        """Returns when the kernel has unmounted and nothing is dirty any more."""
        self.session.wait()
        flush_until_clean(self.mount)
        self._ended.set()
        self.flusher.stop()
        if self.through is not None:
            self.through.stop()
        if self.lease.over is None:
            end_session(self.client, self.calls, self.writer, self.config.volume)
        self.client.close()
        if self.leases is not None:
            self.recalls.close()
        self.budget.close()
        self.link.bye(True)


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """A thread ended by a bug: whoever waits for it would wait for ever, and a mount without readers would pass for unmounted.  A successor
    takes everything up, so this process ends."""
    log.critical("thread %s died, ending", args.thread.name if args.thread is not None else "?", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(THREAD_DIED_EXIT_CODE)


def _configured(wire: dict[str, Any]) -> WorkerConfig:
    """The configuration, with the log set up as it says."""
    try:
        config = WorkerConfig.from_wire(wire)
    except ConfigError:
        logs.setup("worker", "info", "text")
        raise
    logs.setup("worker", config.log_level, config.log_format)
    return config


def main(keeper_fd: int) -> int:
    """Entry of `awsomefsd worker --keeper-fd N`; the exit status is 0 only after an unmount with everything flushed."""
    sys.setswitchinterval(GIL_SWITCH_S)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _thread_died
    link = KeeperLink(keeper_fd)
    try:
        worker = Worker(link, _configured(link.start_message["config"]))
        worker.start()
    except Exception:
        log.exception("the mount cannot be served mount=%s", link.start_message["mount"])
        return 1
    gc.collect()
    gc.freeze()
    log.info("serving mount=%s dir=%s worker=%d", link.start_message["mount"], link.start_message["dir"], link.start_message["worker"])
    worker.serve()
    return 0
