"""Builds what this worker remembers of a mount, under which leases, and what it tells the kernel of that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from awsomefsd.fuse.mount_flags import MountFlags
from awsomefsd.fuse.nested_mounts import NestedMounts
from awsomefsd.fuse.notify import Notifier
from awsomefsd.keeper.worker_link import KeeperLink
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.lease_cache import MountLeases
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.meta.client.recalls import RecallQueue, RecallThread
from awsomefsd.vfs.ops.recall_flush import RecallFlush
from awsomefsd.vfs.ops.shown_to_others import ShownToOthers
from awsomefsd.vfs.session.mount_session import SessionLease
from awsomefsd.vfs.state.atimes import NOATIME, Atimes, Policy
from awsomefsd.vfs.state.freshness import Modes
from awsomefsd.vfs.state.kernel_cache import INC_EPOCH_MINOR, KernelCache
from awsomefsd.vfs.state.leased_names import LeasedNames
from awsomefsd.vfs.state.mount_state import Caches
from awsomefsd.vfs.state.names import NameCache, UncachedNames
from awsomefsd.vfs.state.open_files import KIND_FILE
from awsomefsd.vfs.state.page_cache import WholePages
from awsomefsd.vfs.state.shared_names import SharedNames
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.data_path import DataPath
from awsomefsd.worker.memory import MountMemory

PAGE_THREADS = 4  # that wait for the kernel to give up pages


class MountCaches(NamedTuple):
    caches: Caches
    notifier: Notifier
    recalls: RecallThread | None  # of a mount that holds leases; it runs


def build_mount_caches(
    config: WorkerConfig, link: KeeperLink, memory: MountMemory, client: MetaClient, metadata: Metadata, lease: SessionLease,
    data: DataPath, flags: MountFlags,
) -> MountCaches:  # fmt: skip
    """Returns the parts for one mount; `lease` is its session's, and `metadata` what operations ask.  Does not block."""
    recall_queue = RecallQueue()
    leases = MountLeases(client, config.volume, recall_queue) if config.caches else None
    modes = Modes(config.consistency)
    names = NameCache() if not config.shared else UncachedNames() if leases is None else LeasedNames(leases, modes)
    nested = NestedMounts(link.start_message["dir"], always=config.containers).there
    notifier = Notifier(link.fds["fuse"], nested, nameless=config.containers and config.shared)
    kernel = recalls = None
    if leases is not None:
        pages = ThreadPoolExecutor(PAGE_THREADS, thread_name_prefix="pages")
        kernel = KernelCache(leases, names, notifier, pages, lease.left_ns, memory.kernel_minor, modes, memory.opens)
        flush = RecallFlush(data.files, data.flusher, leases.progress)
        # In this order: what is buffered is committed, then what the kernel was told is taken back.
        handlers, told = [flush.handle, kernel.forget_for_recall], None
        if isinstance(metadata, SharedNames):  # before its bytes are committed, the record of a file is
            metadata.leases, told = leases, metadata.is_told
            handlers.insert(0, metadata.let_go)
        recalls = RecallThread(recall_queue, handlers, ShownToOthers(data.files, names, told).of)
    atimes = Atimes(config.volume, metadata, memory.control, memory.opens, names.put, Policy(NOATIME))
    if not config.shared:
        atimes.policy = flags.atime
    caches = Caches(names, atimes, modes, WholePages(doubted=not link.start_message["fresh"]), leases, kernel)
    caches.tells(
        notifier.forget_told,
        lambda: memory.kernel_minor() >= INC_EPOCH_MINOR and notifier.has_epoch and not notifier.nested(),
    )
    if not config.shared:  # else the kernel keeps attributes under leases, or not at all
        caches.forget_attributes = notifier.forget_attributes
    caches.drop_pages = notifier.drop_pages
    caches.filled.update(opened.ino for opened in memory.opens if opened.kind == KIND_FILE)  # a predecessor may have let them be filled
    if kernel is not None:
        for ino in kernel.old_pages():  # it may have died between a READ without a lease and the notification behind it
            notifier.drop_pages(ino, 0, 0, None)
    return MountCaches(caches, notifier, recalls)
