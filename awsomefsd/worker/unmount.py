"""The end of a mount: everything becomes durable, then the session ends, so that the next mount of the volume waits for nobody."""

from __future__ import annotations

import logging
import time

from awsomefsd.base.errors import Error
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import UMOUNT_FLUSH_MS_MAX
from awsomefsd.base.wait import block_on
from awsomefsd.io.segment.store import SegmentWrites
from awsomefsd.meta.api.commands import Commit, EndSession
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.vfs.session.conflicts import Conflicts
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.worker.service_calls import ServiceCalls

RETRY_PAUSE_S = 1.0

log = logging.getLogger("awsomefsd.worker")


def flush_all(mount: MountState, conflicts: Conflicts, tell: bool) -> None:
    """Makes everything durable that was written until now; blocks for UMOUNT_FLUSH_MS_MAX at most.

    Raises Error, or TimeoutError; with `tell` once also for what became a conflict since the last call.  An unmount is not refused for
    that: the data is safe, and `status` names it.
    """
    block_on(mount.buffered.flusher.flush_all(), UMOUNT_FLUSH_MS_MAX / 1_000)
    names = mount.names_synced()
    if names is not None:
        block_on(names, UMOUNT_FLUSH_MS_MAX / 1_000)
    _flush_atimes(mount)
    if tell:
        conflicts.tell()


def flush_until_clean(mount: MountState) -> None:
    """Makes everything durable, however often that fails: the kernel has unmounted, so nobody else is left to try again."""
    clean = False
    hit("unmount.flush.before")
    while not clean:
        try:
            block_on(mount.buffered.flusher.flush_all())
            names = mount.names_synced()
            if names is not None:
                block_on(names)
            clean = True
        except Error as err:
            log.error("unmounted, but dirty data could not be flushed yet: %s", err)
            time.sleep(RETRY_PAUSE_S)
    _flush_atimes(mount)
    hit("unmount.flush.after")


def end_session(client: MetaClient, calls: ServiceCalls, writer: SegmentWrites, volume: int) -> None:
    """Seals what is leased and ends the session.  Nothing is written any more.  Raises the Error of the service."""
    progress = writer.seal_all()
    hit("segment.seal.after")
    if progress:
        calls.propose(Commit(volume, [], 0, progress))
    calls.propose(EndSession(client.session, client.epoch, True))
    hit("unmount.session.ended")
    client.end_session()


def _flush_atimes(mount: MountState) -> None:
    """Twice: what came while the first was on its way."""
    for _ in range(2):
        block_on(mount.caches.atimes.flush(), UMOUNT_FLUSH_MS_MAX / 1_000)
