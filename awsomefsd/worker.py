"""The mount worker: builds one mount out of its parts, takes over from a dead predecessor, and ends when the kernel has unmounted.

Started by the keeper with the FUSE descriptor and the shared memory of the mount.  Order at the start, and why: the session first (without
it nothing may be committed), then the predecessor's dirty records are flushed (so that caches begin with what the service says, not with
what a record might still change), then its unanswered requests are executed, and only then does this worker read new ones.
No trio, gRPC or pydantic is imported here: a worker is serving within 150 ms.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from awsomefsd import log as logs
from awsomefsd import proofs
from awsomefsd.consistency import STRICT
from awsomefsd.drained import Drained
from awsomefsd.errors import Error, FsError
from awsomefsd.failpoints import hit
from awsomefsd.fuse.atimes import Policy
from awsomefsd.fuse.identity import identified
from awsomefsd.fuse.idle_leases import IdleLeases
from awsomefsd.fuse.keeper_link import KeeperLink
from awsomefsd.fuse.kernel_cache import KernelCache
from awsomefsd.fuse.lease_stock import LeaseStock, adopted
from awsomefsd.fuse.leased_names import LeasedNames
from awsomefsd.fuse.memory import MountMemory
from awsomefsd.fuse.modes import Modes
from awsomefsd.fuse.mount_session import MountLease, SessionKeeper, open_session
from awsomefsd.fuse.mount_state import MountState
from awsomefsd.fuse.names import Names
from awsomefsd.fuse.negotiate import Pins
from awsomefsd.fuse.nested import NestedMounts
from awsomefsd.fuse.notify import Notifier
from awsomefsd.fuse.put_aside import PutAside, write_conflicts
from awsomefsd.fuse.removal import Removal
from awsomefsd.fuse.session import Session
from awsomefsd.fuse.vfs import Vfs
from awsomefsd.fuse.vfs_shared import SharedDataOps, Unremembered
from awsomefsd.io.cache import ChecksumCache
from awsomefsd.io.devices import with_paths
from awsomefsd.io.dirty import Record
from awsomefsd.io.files import FileState, FileTable
from awsomefsd.io.flusher import Flusher, record_space
from awsomefsd.io.leaving import Leaving
from awsomefsd.io.locations import Locations
from awsomefsd.io.open_devices import OpenDevices
from awsomefsd.io.reader import SegmentReader
from awsomefsd.io.reservation import Reservation
from awsomefsd.io.write_through import WriteThrough
from awsomefsd.io.writer import SegmentWriter
from awsomefsd.limits import ORPHANS_LOOK_MS, ORPHANS_TELL_MS, SESSION_SELF_FENCE_MS, UMOUNT_FLUSH_MS_MAX, WORKER_MEMORY_BYTES
from awsomefsd.meta.client import MetaClient
from awsomefsd.meta.commands import Commit, EndSession, OpenSession, OpenShared
from awsomefsd.meta.endpoints import of_worker
from awsomefsd.meta.messages import Devices, GetDevices, GetInherited, Report, SessionOpened
from awsomefsd.meta.mount_leases import MountLeases
from awsomefsd.meta.paths import path_of
from awsomefsd.types import Attr, DeviceInfo, SegmentProgress
from awsomefsd.wait import block_on
from awsomefsd.worker_memory import LOOK_S, MemoryBudget

IO_THREADS = 3
PAGE_THREADS = 4  # that wait for the kernel to give up pages
PATH_PAGES_MAX = 1_000
THREAD_DIED_EXIT_CODE = 70
REPORT_S = 5.0
# A session that holds its volume alone uses no older state than its own last change, and readers compare identities: no freed segment has
# to wait for it before it is leased again.
SEEN_ALL = (1 << 62) - 1
GIL_SWITCH_S = 0.0005  # KERNEL-FUSE.md: the default of 5 ms hurts threads that block in read(2)

log = logging.getLogger("awsomefsd.worker")


class Worker:
    """One mount, complete."""

    def __init__(self, link: KeeperLink) -> None:
        start = link.start_message
        config = start["config"]
        self.link = link
        self.mount_id = int(start["mount"], 16)
        self.config = config
        self.fresh = bool(start["fresh"])
        self._ended = threading.Event()
        self._naming = threading.Lock()
        self.memory = MountMemory(link.fds, self.mount_id, config["volume"], fresh=self.fresh)
        self.client = MetaClient(of_worker(config), self.mount_id)
        self.lease = MountLease(self.client.lease_left_ns, fails=config.get("on_lease_loss") == "error")
        self.proof = proofs.hold(config["state_dir"], self.mount_id, start["worker"])  # before there is a session
        self.leases = MountLeases(self.client, config["volume"]) if config.get("caches") else None
        self.open_command = opening(config, self.mount_id, start["worker"], start["worker"] == 1 or _exited(start))
        self.client.on_renewed, self.client.on_fenced = self.lease.announce, self.lease.lost
        self.client.seen_index = lambda: SEEN_ALL
        taking_over = msgspec.structs.replace(self.open_command, unanswered=self._unanswered())  # said once, before any is repeated
        self.opened = open_session(self.client, taking_over)
        hit("takeover.session.opened")
        self._build_data()
        self._build_vfs(start)

    def _unanswered(self) -> list[int] | None:
        return self.memory.unanswered()

    # --- building ------------------------------------------------------------------------------------------------------------

    def _build_data(self) -> None:
        memory = self.memory
        self.devices = OpenDevices(self._find_devices)
        self.locations = Locations(self._call, self._propose)
        checksums = ChecksumCache()
        self.reader = SegmentReader(self.devices, self.locations.locate, checksums)
        self.writer = SegmentWriter(self.devices, self.locations.lease, checksums)
        shared = bool(self.config.get("shared"))
        self.files = FileTable(self.config["volume"], memory.dirty, self.reader, self._report_corrupt, leased=shared)
        self.reservation = Reservation(self.config["volume"], self.client, memory.control)
        modes = Modes(self.config.get("consistency", STRICT))
        self.names = Names() if not shared else Unremembered() if self.leases is None else LeasedNames(self.leases, modes)
        self.through = WriteThrough(self.config["volume"], self.writer) if shared else None
        memfds = [fd for name, fd in self.link.fds.items() if name != "fuse"]
        budget_bytes = self.config.get("memory_bytes", WORKER_MEMORY_BYTES)
        self.budget = MemoryBudget(budget_bytes, memfds, (self.names, self.files, checksums), memory.dirty)
        self.drained = Drained(
            self.config["state_dir"], self.mount_id, self.open_command.worker, self.writer.await_drained, self._propose, self._ended
        )
        self.flusher = Flusher(
            self.files, memory.dirty, self.writer, self.client, self.reservation, memory.control, self._refresh_layout, self._committed,
            Leaving(self.writer, self._draining, self._report_leaving).look, self._lease_lost,
        )  # fmt: skip
        self.mount = MountState(
            self.config["volume"], self.client, memory.control, memory.opens, memory.dirty, self.files, self.flusher,
            self.reservation, self.names, self.locations, self.lease, read_only=self.config["read_only"],
            atime_policy=Policy(*self.config.get("atime", ())), shared=shared, leases=self.leases, modes=modes,
        )  # fmt: skip

    def _build_vfs(self, start: dict[str, Any]) -> None:
        memory, link = self.memory, self.link
        self.aside = PutAside(self.mount, self._keep, memory.control.counter("files_put_aside").add)
        self.pool = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io")
        self.vfs = Vfs(self.mount, self.client, self.pool, self.through)
        self.lease.on_loss = self.vfs.fenced
        always: bool = self.config.get("containers", False)
        nested = NestedMounts(start["dir"], always=always).there
        self.notifier = Notifier(link.fds["fuse"], nested, nameless=always and self.mount.shared)
        if self.leases is not None:
            pages = ThreadPoolExecutor(PAGE_THREADS, thread_name_prefix="pages")
            self.mount.kernel = KernelCache(
                self.leases, self.names, self.notifier, pages, self.lease.left_ns, self._minor, self.mount.modes, memory.opens
            )
        self.session = Session(
            link.fds["fuse"], identified(self.vfs, self.config), memory.control, memory.slots, memory.park, fresh=self.fresh,
            pins=pins(self.config.get("pins")), previous=start.get("previous"), on_first_reply=link.answered,
        )  # fmt: skip
        self.sessions = SessionKeeper(
            self.client, self.open_command, self.mount, self.vfs.locks, self.notifier, self.lease,
            self.aside, self._abandon_segments, self._session_opened,
        )  # fmt: skip
        self.client.on_session_lost = self.sessions.lost
        self.client.on_removed = Removal(self.client, self.sessions, self.mount, self.lease, self.aside).begin

    def _minor(self) -> int:
        negotiated = self.session.negotiated
        return 0 if negotiated is None else negotiated.minor

    def _find_devices(self) -> list[DeviceInfo]:
        reply = self._call(GetDevices())
        assert isinstance(reply, Devices)
        return with_paths(reply.devices, self.config["state_dir"])

    def _draining(self) -> set[int]:
        return {info.device for info in self._call(GetDevices()).devices if info.draining}

    def _report_leaving(self, progress: list[SegmentProgress]) -> None:
        self._propose(Commit(self.config["volume"], [], 0, progress))

    # --- small services of the parts ----------------------------------------------------------------------------------------

    def _call(self, body: Any) -> Any:
        return block_on(self.client.ask(body))

    def _propose(self, command: Any) -> Any:
        unique = self.memory.control.next_background_unique()
        try:
            return block_on(self.client.propose(command, unique))
        finally:
            self.client.ack(unique)

    def _refresh_layout(self, ino: int) -> None:
        """For the flusher: what shape a file has, and its inline data."""
        state = self.files.get(ino)
        if state is not None:
            block_on(self.vfs.fetch_layout(state, 0, 1))

    def _report_corrupt(self, ino: int, offset: int, detail: str) -> None:
        self.memory.control.counter("corrupt_reads").add()
        log.error("wrong bytes on the device, read refused: ino=%d offset=%d %s", ino, offset, detail)
        if self._naming.acquire(blocking=False):  # the reader does not wait for the daemon; one name at a time is enough
            threading.Thread(target=self._name_corrupt, args=(ino, offset), name="corrupt", daemon=True).start()

    def _name_corrupt(self, ino: int, offset: int) -> None:
        try:
            volume = self.config["volume"]
            path = path_of(self._call, volume, ino, PATH_PAGES_MAX)
            log.error("the file with wrong bytes", extra={"volume": self.config["volume_name"], "path": path, "ino": ino, "offset": offset})
        finally:
            self._naming.release()

    def _keep(self, records: list[Any]) -> str:
        return write_conflicts(os.path.join(self.config["state_dir"], "conflicts"), self.mount_id, records)

    def _lease_lost(self, state: FileState) -> None:
        """For the flusher."""
        self.aside.files([state], "a write lease had ended")

    def _abandon_segments(self) -> None:
        """Those of the session before, which the leader has ended."""
        self.writer.abandon()
        lost = self.memory.control.state.session
        if lost not in (0, self.client.session):
            self.drained.look(lost)

    def _committed(self, attr: Attr, repeated: bool) -> None:
        self.mount.committed(attr, repeated)

    def _session_opened(self, opened: SessionOpened, inherited: Iterable[Record] = ()) -> None:
        self.memory.control.update(session=opened.session, epoch=opened.epoch)
        if self.leases is None:
            return
        if opened.resumed:
            self._inherit(self.mount.kernel, opened)
        self.leases.begin(opened.session, opened.epoch, adopted(inherited, opened.epoch))
        LeaseStock(self.mount, self.leases, self.aside).take()

    def _inherit(self, kernel: KernelCache | None, opened: SessionOpened) -> None:
        """The kernel forgets what the predecessor told it; nobody else changes any of that before we report.

        Where that cannot be done (a new leader does not know what it was; nested.py), wait until what may have been promised is over.
        """
        assert kernel is not None
        inos: list[int] | None = None
        with contextlib.suppress(FsError):
            inos = self._call(GetInherited(opened.session, opened.epoch)).inos
        forgotten = kernel.inherit(inos or [])
        if inos is None or not forgotten:
            log.warning("what the kernel was promised cannot be taken back: waiting until it is over")
            time.sleep(SESSION_SELF_FENCE_MS / 1_000)

    # --- start and end -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take over what a predecessor left, then serve."""
        control, opened = self.memory.control, self.opened
        ended = control.state.session not in (0, opened.session)
        records = self._recover_records()
        hit("takeover.records.found")
        if ended or self.leases is not None:
            for record in records:
                self._adopt(record)
        if ended:  # nobody kept the session alive: what the predecessor's callers had locked is unknown
            undecided = opened.resumed and self.leases is None
            self.sessions.take_stock(opened, foreign=opened.foreign or undecided, locks_known=False)
        else:
            self.reservation.set_left(opened.reserved_bytes - sum(record_space(record.length) for record in records))
        self._take_up_handles(opened)
        self._session_opened(opened, records)
        control.update(workers=self.open_command.worker)
        self.flusher.start()
        if self.through is not None:
            self.through.start()
        if records and not ended:
            self._flush_recovered(records)
            hit("takeover.records.flushed")
        if opened.resumed:
            block_on(self.vfs.locks.load(opened.session))
        self._repeat_requests()
        hit("takeover.requests.repeated")
        self.vfs.tell_orphans()
        self.session.start()
        self.link.on_flush = self._flush_all
        hit("takeover.ready")
        self.link.ready()
        threading.Thread(target=self._idle_loop, name="idle", daemon=True).start()
        if self.vfs.sharing is not None:
            threading.Thread(target=self._orphans_loop, args=(self.vfs.sharing,), name="orphans", daemon=True).start()

    def _take_up_handles(self, opened: SessionOpened) -> None:
        """Before anything is opened or repeated: whose the handles are, and which of them an earlier session has lost."""
        opens = self.memory.opens
        opens.epoch = opened.epoch
        self.mount.failed_handles |= opens.lost()

    def _recover_records(self) -> list[Any]:
        """Dirty records of a predecessor; of those that memory has damaged, all that is left is to say so, at fsync and in the log."""
        dirty = self.memory.dirty
        records = dirty.recover()
        for damage in dirty.corrupt:
            log.error("dirty data is damaged and lost: ino=%d offset=%d length=%d %s", damage.ino, damage.offset, damage.length, damage)
            self.memory.control.counter("dirty_corrupt").add()
            if damage.ino:
                with contextlib.suppress(FsError):
                    self.files.state(block_on(self.mount.attr_op(damage.ino))).error = damage
            if damage.record is not None:
                dirty.mark_clean([damage.record])
        return records

    def _adopt(self, record: Any) -> None:
        try:
            attr = block_on(self.mount.attr_op(record.ino))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            self.memory.dirty.mark_clean([record])  # removed since; its bytes are nobody's
            self.reservation.give_back(record_space(record.length))
            return
        self.files.state(attr).adopt(record)

    def _repeat_requests(self) -> None:
        """Execute what the predecessor had read and not answered.

        A request that had been committed gets its first result back, with attributes asked for anew (fuse/repeated.py); names in it
        may be older, so nothing that these answers say is remembered: caches begin anew behind them.
        """
        self.mount.recovering = True
        self.session.recover()
        self.session.wait_repeated()
        self.mount.recovering = False
        self.memory.dirty.forget_uniques()
        self._forget_caches()

    def _forget_caches(self) -> None:
        """Flush what is dirty, then know nothing.  A device error leaves it dirty, as with any flush."""
        try:
            block_on(self.flusher.flush_all())
        except Error as err:
            log.error("recovered records stay dirty: %s", err)
        self.files.forget_clean()
        self.names.clear()

    def _orphans_loop(self, sharing: SharedDataOps) -> None:
        """What lost its last name on another node is kept for this one until it says that it does not have it open."""
        look = time.monotonic() + ORPHANS_LOOK_MS / 1_000
        while not self._ended.wait(ORPHANS_TELL_MS / 1_000):
            sharing.tell_orphans()
            if time.monotonic() >= look:
                with contextlib.suppress(Error):  # no leader now: later
                    block_on(sharing.release_unopened(self.client.session))
                look = time.monotonic() + ORPHANS_LOOK_MS / 1_000

    def _idle_loop(self) -> None:
        """Say how it goes, and give memory back that a burst of writes left behind."""
        written, reported = 0, time.monotonic()
        idle = None if self.leases is None else IdleLeases(self.mount, self.leases)
        while not self._ended.wait(LOOK_S):
            self.budget.look()
            if idle is not None:
                idle.look()
            if time.monotonic() < reported + REPORT_S:
                continue
            reported = time.monotonic()
            self.client.submit(Report(self.figures()), lambda _reply, _error: None)
            self.mount.atimes.flush()
            dirty = self.memory.dirty
            if dirty.dirty_bytes == 0 and dirty.last_sequence == written:
                dirty.release_pages()
                self._give_back()
            written = dirty.last_sequence

    def _give_back(self) -> None:
        """Nothing was written for a while: what is promised to this mount is for others to use.  The next write asks again."""
        try:
            block_on(self.reservation.return_all(), REPORT_S)
        except (Error, TimeoutError) as err:
            log.info("reserved space is not given back now: %s", err)

    def figures(self) -> dict[str, int]:
        """For metrics: counters that outlive the worker, and how things stand now."""
        dirty = self.memory.dirty
        return {
            **self.memory.control.counters(),
            **self.budget.figures(),
            "workers": self.open_command.worker,
            "open_files": len(self.memory.opens),
            "inodes_cached": len(self.names),
            "dirty_bytes": dirty.dirty_bytes,
            "dirty_used_bytes": dirty.used_bytes,
            "parked_requests": len(self.memory.park),
            "reserved_bytes_left": max(self.reservation.left_bytes, 0),
            "flush_batches": self.flusher.batches,
            "lease_left_ms": self.lease.left_ns() // 1_000_000,
        }

    def _flush_recovered(self, records: list[Any]) -> None:
        """What write(2) acknowledged and the predecessor had not committed."""
        if self.leases is None:
            for record in records:
                self._adopt(record)
        log.info("flushing what the predecessor left records=%d bytes=%d", len(records), sum(r.length for r in records))
        self._forget_caches()

    def _flush_all(self) -> None:
        block_on(self.flusher.flush_all(), UMOUNT_FLUSH_MS_MAX / 1_000)
        self._flush_atimes()

    def _flush_atimes(self) -> None:
        """Twice: what came while the first was on its way."""
        for _ in range(2):
            block_on(self.mount.atimes.flush(), UMOUNT_FLUSH_MS_MAX / 1_000)

    def serve(self) -> None:
        """Until the kernel has unmounted and nothing is dirty any more."""
        self.session.wait()
        clean = False
        hit("unmount.flush.before")
        while not clean:
            try:
                block_on(self.flusher.flush_all())
                clean = True
            except Error as err:
                log.error("unmounted, but dirty data could not be flushed yet: %s", err)
                threading.Event().wait(1)
        self._flush_atimes()
        hit("unmount.flush.after")
        self._ended.set()
        self.flusher.stop()
        if self.through is not None:
            self.through.stop()
        if self.lease.over is None:
            self._end_session()
        self.client.close()
        if self.leases is not None:
            self.leases.close()
        self.budget.close()
        self.link.bye(True)

    def _end_session(self) -> None:
        progress = self.writer.seal_all()
        hit("segment.seal.after")
        if progress:
            self._propose(Commit(self.config["volume"], [], 0, progress))
        self._propose(EndSession(self.client.session, self.client.epoch, True))
        hit("unmount.session.ended")
        self.client.end_session()


def opening(config: dict[str, Any], mount: int, worker: int, exited: bool) -> OpenSession:
    where = (mount, config["volume"], config["node"], config["boot_id"], worker, exited)
    if config.get("shared"):
        return OpenShared(*where, shared=True, caches=bool(config.get("caches")))
    return OpenSession(*where)


def _exited(start: dict[str, Any]) -> bool:
    previous = start.get("previous")
    return bool(previous and previous.get("exited"))


def pins(wanted: dict[str, Any] | None) -> Pins:
    """What tests hold back, as the daemon read it from AWSOMEFSD_FUSE_PINS."""
    return Pins(**(wanted or {}))


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """A thread ended by a bug: whoever waits for it would wait for ever, and a mount without readers would pass for unmounted.  A successor
    takes everything up, so this process ends."""
    log.critical("thread %s died, ending", args.thread.name if args.thread is not None else "?", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(THREAD_DIED_EXIT_CODE)


def main(keeper_fd: int) -> int:
    """Entry of `awsomefsd worker --keeper-fd N`; the exit status is 0 only after an unmount with everything flushed."""
    sys.setswitchinterval(GIL_SWITCH_S)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = _thread_died
    link = KeeperLink(keeper_fd)
    config = link.start_message["config"]
    logs.setup("worker", config.get("log_level", "info"), config.get("log_format", "text"))
    try:
        worker = Worker(link)
        worker.start()
    except Exception:
        log.exception("the mount cannot be served mount=%s", link.start_message["mount"])
        return 1
    gc.collect()
    gc.freeze()
    log.info("serving mount=%s dir=%s worker=%d", link.start_message["mount"], link.start_message["dir"], link.start_message["worker"])
    worker.serve()
    return 0
