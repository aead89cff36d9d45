"""The mount worker puts one mount together, takes over from a dead predecessor, and ends when the kernel has unmounted.

It is given the FUSE descriptor and the shared memory of the mount by the keeper.  Order at the start, and why: the session first (without
it nothing may be committed), then the predecessor's dirty records are flushed (so that caches begin with what the service says, not with
what a record might still change), then its unanswered requests are executed, and only then does this worker read new ones.
No trio, gRPC or pydantic is imported here: a worker is serving within 150 ms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from awsomefsd.base import worker_locks
from awsomefsd.base.failpoints import hit
from awsomefsd.fuse.mount_flags import MountFlags
from awsomefsd.fuse.negotiate import Overrides
from awsomefsd.fuse.session import Session
from awsomefsd.keeper.mount_record import RECORD
from awsomefsd.keeper.worker_link import KeeperLink
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.meta.client.snapshot_metadata import SnapshotMetadata
from awsomefsd.vfs.ops.id_mapping import identified
from awsomefsd.vfs.session.conflicts import Conflicts, write_conflicts
from awsomefsd.vfs.session.mount_session import SessionLease, open_session
from awsomefsd.vfs.session.names_aside import NamesAside
from awsomefsd.vfs.state.mount_state import Buffered, MountState, SessionState
from awsomefsd.vfs.vfs import Vfs
from awsomefsd.worker.background import Background
from awsomefsd.worker.config import WorkerConfig, endpoints_of, identity_of, open_command
from awsomefsd.worker.data_path import build_data_path
from awsomefsd.worker.delegation import NamesStart, build_delegated_names
from awsomefsd.worker.figures import figures
from awsomefsd.worker.flush_events import MountFlushEvents
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.memory_budget import MemoryBudget
from awsomefsd.worker.mount_caches import build_mount_caches
from awsomefsd.worker.op_log_format import OpLogFormat
from awsomefsd.worker.service_calls import ServiceCalls
from awsomefsd.worker.session_opening import SessionOpening
from awsomefsd.worker.session_parts import build_session_parts
from awsomefsd.worker.takeover import WorkerTakeover
from awsomefsd.worker.unmount import end_session, flush_all, flush_until_clean

IO_THREADS = 3


class Worker:
    """One mount, complete when constructed: nobody has been asked yet, and nothing is served before `start`.

    `make_client` makes the client of the metadata service from its endpoints and the mount's id.
    """

    def __init__(self, link: KeeperLink, config: WorkerConfig, make_client: Callable[..., MetaClient] = MetaClient) -> None:
        start = link.start_message
        self.link = link
        self.config = config
        self.mount_id = int(start["mount"], 16)
        self._ended = threading.Event()
        fresh = bool(start["fresh"])
        memory = self.memory = MountMemory(link.fds, self.mount_id, config.volume, fresh=fresh, shared=config.shared)
        self.client = make_client(endpoints_of(config), self.mount_id)
        self.calls = ServiceCalls(self.client, memory.control)
        self.lease = SessionLease(self.client.lease_left_ns, fails=config.on_lease_loss == "error")
        self.lock = worker_locks.hold(config.state_dir, self.mount_id, start["worker"])  # before there is a session
        previous = start.get("previous") or {}
        exited = start["worker"] == 1 or bool(previous.get("exited"))
        self.open_command = open_command(config, self.mount_id, start["worker"], exited)
        self.names = build_delegated_names(config, memory, self.client, self.lease)
        metadata: Metadata = self.names or (SnapshotMetadata(self.client, config.snapshot) if config.snapshot else self.client)
        self.data = build_data_path(config, memory, metadata, self.calls)
        device = "" if config.snapshot else str(start.get("spec", {}).get("device", ""))  # of that no flag makes it writable
        flags = MountFlags(device, read_only=config.read_only, atime=config.atime)
        if self.names is not None:
            self.names.synchronous = flags.synchronous
        self.caches, self.notifier, self.recalls = build_mount_caches(
            config, link, memory, self.client, metadata, self.lease, self.data, flags
        )
        self.mount = MountState(
            config.volume, metadata, memory.control, self.caches,
            Buffered(memory.dirty, self.data.files, self.data.flusher, self.data.reservation, self.data.locations),
            SessionState(self.lease, metadata, memory.opens),
            read_only=flags.read_only, shared=config.shared, delegated=self.names,
        )  # fmt: skip
        memfds = [fd for name, fd in link.fds.items() if name not in ("fuse", RECORD)]
        bounded = (self.caches.names, self.data.files, self.data.checksums, self.data.locations, *([self.names] if self.names else ()))
        self.budget = MemoryBudget(config.memory_bytes, memfds, bounded, memory.dirty)
        store = partial(write_conflicts, os.path.join(config.state_dir, "conflicts"), self.mount_id)
        saved, told = memory.control.counter("files_put_aside"), memory.control.counter("files_put_aside_told")
        self.conflicts = Conflicts(self.mount, store, saved, told)
        self.mount.put_aside = lambda: saved.value > 0
        self.pool = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="io")
        self.vfs = Vfs(self.mount, metadata, self.pool, self.data.through)
        self.session = Session(
            link.fds["fuse"], identified(self.vfs, identity_of(config)), memory.control, memory.slots, memory.park, fresh=fresh,
            overrides=Overrides(**config.overrides).with_locks(config.shared), previous=start.get("previous"), on_first_reply=link.answered,
        )  # fmt: skip
        self.formats = OpLogFormat(memory, link)
        self.opening = SessionOpening(self.client, memory.control, self.formats)
        self.change, self.sessions, self.events = build_session_parts(
            config, memory, self.client, self.calls, self.open_command, self.lease, self.data, self.vfs, self.notifier, self.conflicts,
            self._ended, self.names, self.opening,
        )  # fmt: skip

    def start(self) -> None:
        """Opens the session, takes over what a predecessor left, then serves; returns when it serves.  Raises what is in the way."""
        self.client.start(self.events)
        taking_over = msgspec.structs.replace(self.open_command, unanswered=self.memory.unanswered())  # said once, before any is repeated
        opened = open_session(self.opening, taking_over)
        self.data.begin(opened.volume.home)
        hit("takeover.session.opened")
        flush_events = MountFlushEvents(self.mount, self.vfs, self.conflicts, self.data.draining)
        start_names = None
        if self.names is not None:
            aside = NamesAside(self.mount, self.conflicts, self.notifier, os.path.join(self.config.state_dir, "conflicts"), self.mount_id)
            start_names = NamesStart(self.names, aside, self.memory, self.formats, self.config, self.events)
        takeover = WorkerTakeover(
            self.memory, self.mount, self.vfs, self.session, self.sessions, self.change, self.opening, self.events.begin, start_names
        )
        takeover.run(opened, self.open_command.worker, flush_events, self.data.through)
        self.session.start()
        hit("takeover.ready")
        self.link.ready(partial(flush_all, self.mount, self.conflicts))
        report = partial(figures, self.memory, self.mount, self.budget, self.open_command.worker)
        flush = partial(flush_all, self.mount, self.conflicts, tell=False)
        Background(self.mount, self.client, self.data.devices, self.budget, self.vfs.orphans, report, flush, self._ended).start()

    def serve(self) -> None:
        """Returns when the kernel has unmounted and nothing is dirty any more."""
        self.session.wait()
        flush_until_clean(self.mount)
        self._ended.set()
        self.data.stop()
        if self.names is not None:
            self.names.end()
            self.names.shipper.stop()
        if self.lease.over is None:
            end_session(self.client, self.calls, self.data.writer, self.config.volume)
        self.data.close()
        self.client.close()
        if self.recalls is not None:
            self.recalls.close()
        self.budget.close()
        self.link.bye(True)
