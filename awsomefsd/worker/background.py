"""Background work of a worker, each on a thread: reports and memory, devices that were recovered elsewhere, space that others need, and
orphans of a shared volume."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable

from awsomefsd.base.errors import Error
from awsomefsd.base.limits import DEVICE_ERA_LOOK_MS, ORPHANS_LOOK_MS, ORPHANS_TELL_MS, SPACE_RECALL_MS_MAX
from awsomefsd.base.wait import block_on
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.meta.api.messages import AwaitSpaceRecall, Report
from awsomefsd.meta.api.messages.snapshots import AnswerFlush, FlushAsked
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.vfs.ops.orphans import SharedOrphans
from awsomefsd.vfs.session.idle_leases import IdleLeases
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.worker.memory_budget import LOOK_S, MemoryBudget

REPORT_S = 5.0

log = logging.getLogger("awsomefsd.worker")


class Background:
    """`figures` are what is reported; `flush_all` blocks until what is held back now is written.  The threads end when `ended` is set."""

    def __init__(
        self,
        mount: MountState,
        client: MetaClient,
        devices: OpenDevices,
        budget: MemoryBudget,
        orphans: SharedOrphans | None,
        figures: Callable[[], dict[str, int]],
        flush_all: Callable[[], None],
        ended: threading.Event,
    ) -> None:
        self._mount = mount
        self._client = client
        self._devices = devices
        self._budget = budget
        self._orphans = orphans
        self._figures = figures
        self._flush_all = flush_all
        self._ended = ended

    def start(self) -> None:
        """Starts the threads; the mount serves already."""
        threading.Thread(target=self._idle_loop, name="idle", daemon=True).start()
        threading.Thread(target=self._devices_loop, name="devices", daemon=True).start()
        threading.Thread(target=self._space_loop, name="space", daemon=True).start()
        if self._orphans is not None:
            threading.Thread(target=self._orphans_loop, args=(self._orphans,), name="orphans", daemon=True).start()

    def _space_loop(self) -> None:
        """Gives back what is reserved and not needed as soon as somebody else needs space; the next question says that it was done."""
        while not self._ended.is_set():
            try:
                token = self._client.session_token()
                heard = block_on(self._client.ask(AwaitSpaceRecall(*token, True)))
                if isinstance(heard, FlushAsked):
                    threading.Thread(target=self._flush, args=(*token, heard.flush), name="flush-asked", daemon=True).start()
                block_on(self._mount.buffered.reservation.return_all())
            except Error:  # the session has ended, or the service is of an older build
                self._ended.wait(SPACE_RECALL_MS_MAX / 1_000)

    def _flush(self, session: int, epoch: int, number: int) -> None:
        """Writes out what is held back now, for a snapshot, and says so; meanwhile the mount goes on."""
        failed = 0
        try:
            self._flush_all()
        except Exception as err:  # whatever it is, somebody waits for the answer
            log.warning("what is held back could not be written for a snapshot: %s", err)
            failed = getattr(err, "errno", None) or errno.EIO
        with contextlib.suppress(Error):  # the session has ended; nobody waits for it any more
            block_on(self._client.ask(AnswerFlush(session, epoch, number, failed)))

    def _devices_loop(self) -> None:
        """A device that the cluster was rebuilt from elsewhere is written no more.  A thread of its own: a device may not answer."""
        while not self._ended.wait(DEVICE_ERA_LOOK_MS / 1_000):
            self._devices.look_again()

    def _orphans_loop(self, orphans: SharedOrphans) -> None:
        """What lost its last name on another node is kept for this one until it says that it does not have it open."""
        look = time.monotonic() + ORPHANS_LOOK_MS / 1_000
        while not self._ended.wait(ORPHANS_TELL_MS / 1_000):
            orphans.tell_gathered()
            if time.monotonic() >= look:
                with contextlib.suppress(Error):  # no leader now: later
                    block_on(orphans.release_unopened(self._client.session))
                look = time.monotonic() + ORPHANS_LOOK_MS / 1_000

    def _idle_loop(self) -> None:
        """Report figures, and give memory back that a burst of writes left behind."""
        written, reported = 0, time.monotonic()
        self._report()  # above all whether this mount decides names
        dirty, leases = self._mount.buffered.dirty, self._mount.caches.leases
        idle = None if leases is None else IdleLeases(self._mount, leases)
        while not self._ended.wait(LOOK_S):
            self._budget.poll()
            if idle is not None:
                idle.poll()
            if time.monotonic() < reported + REPORT_S:
                continue
            reported = time.monotonic()
            self._report()
            self._mount.caches.atimes.flush()
            if dirty.dirty_bytes == 0 and dirty.last_sequence == written:
                dirty.release_pages()
                self._give_back()
            written = dirty.last_sequence

    def _report(self) -> None:
        self._client.submit(Report(self._figures()), lambda _reply, _error: None)

    def _give_back(self) -> None:
        """Nothing was written for a while: space that is promised to this mount is for others to use.  The next write asks again."""
        try:
            block_on(self._mount.buffered.reservation.return_all(), REPORT_S)
        except (Error, TimeoutError) as err:
            log.info("reserved space cannot be given back now: %s", err)
