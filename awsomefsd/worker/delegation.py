"""A mount decides names by itself, where its volume says so: what is built for that, and how it begins and ends in a worker's life."""

from __future__ import annotations

import contextlib
import logging

from awsomefsd.base.errors import FsError, Unavailable
from awsomefsd.base.levels import highest
from awsomefsd.base.power_cut import Why
from awsomefsd.base.types import NAMES_DELEGATED
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.fuse.mount_flags import SYNCHRONOUS
from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.file.shipper import record_of
from awsomefsd.meta.api.messages import SessionGoesOn, SessionOpened
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.meta.machine.held import NamesHolder
from awsomefsd.meta.machine.record_checks import inodes_of
from awsomefsd.vfs.session.conflicts import OVERTAKEN
from awsomefsd.vfs.session.mount_session import SessionLease
from awsomefsd.vfs.session.names_aside import NamesAside
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from awsomefsd.vfs.state.shared_names import SharedNames
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.op_log_format import OpLogFormat
from awsomefsd.worker.session_events import MountEvents

LEASES_ENDED = "the session had ended, and with it the leases under which this was decided"
ROLLED_BACK = "the cluster's metadata is older than what it had applied: it was recovered from a copy, or has forgotten the mount"
ENDED_EARLY = "the session ended before the cluster had what the predecessor decided; the next worker begins again"

log = logging.getLogger("awsomefsd.names")


def build_delegated_names(config: WorkerConfig, memory: MountMemory, client: Metadata, lease: SessionLease) -> DelegatedNames | None:
    """Returns what may decide names of a mount that has its volume for itself, or was told to do so under leases; None for others."""
    if memory.ops is None or config.snapshot or (config.shared and not config.leased_names):
        return None
    kind = SharedNames if config.shared else DelegatedNames
    return kind(config.volume, client, memory.ops, memory.dirty.log_id, lease, memory.control)


def log_position(opened: SessionOpened, log_id: int) -> tuple[int, int]:
    """Returns what the row of the mount says of this op log: the newest record applied, and the round."""
    if isinstance(opened, SessionGoesOn) and opened.log == log_id:
        return opened.applied, opened.round
    return 0, 0


class NamesStart:
    """Takes up the op log of a predecessor, and begins to decide.  Used by the thread that starts the worker."""

    def __init__(
        self, names: DelegatedNames, aside: NamesAside, memory: MountMemory, formats: OpLogFormat, config: WorkerConfig, events: MountEvents
    ) -> None:
        assert memory.ops is not None
        self._names = names
        self._events = events
        self._aside = aside
        names.put_aside = aside.save
        self._applied = memory.control.counter("names_applied")
        names.note_applied = self._applied.set
        self._memory = memory
        self._log = memory.ops
        self._formats = formats
        self._config = config

    def ship_inherited(self, opened: SessionOpened, dirty: list[DirtyRecord], *, changed_by_others: bool) -> None:
        """Brings what a predecessor has decided into the cluster's log; blocks until it is there, or put aside.

        `dirty`: the data that it has left.  What of it belongs to names that are put aside is clean afterwards.  Raises Unavailable if the
        session ends meanwhile: whether others have the volume since is for the next worker to hear, before it takes anything up.
        """
        self._aside.inherited = dirty
        self._ship_inherited(opened, changed_by_others)
        self._aside.inherited = []

    def _ship_inherited(self, opened: SessionOpened, changed_by_others: bool) -> None:
        shipper = self._names.shipper
        left = self._log.recover(self._memory.unanswered())
        applied, round_ = log_position(opened, self._memory.dirty.log_id)
        self._log.applied(applied)
        left = [record for record in left if not record.applied]
        overtaken = LEASES_ENDED if self._config.shared else OVERTAKEN
        why = ROLLED_BACK if applied < self._applied.value else overtaken if changed_by_others else ""
        if why and (lost := [record for record in left if not record.aside]):
            self._names.put_aside(lost, why)
            self._log.put_aside(lost)
        self._names.note_applied(applied)
        if left or self._why_not(opened) == Why.DECIDES:  # else nothing is ever shipped, and there is no thread for it
            shipper.begin(applied, round_)
        if left and not why:
            log.info("shipping what the predecessor decided records=%d", len(left))
            for record in left:
                shipper.stored(record, None if record.damaged else inodes_of(record_of(record)))
            ended = Signal()
            shipper.wait(left[-1].sequence).start(ended.fire)
            self._events.ended_early.start(lambda _value, _error: ended.fire(None, Unavailable(ENDED_EARLY)))
            with contextlib.suppress(FsError):  # told by what was put aside
                block_on(ended)
        self._log.cleansed([record for record in left if record.aside])
        shipper.inherited_is_over()

    def begin(self, opened: SessionOpened) -> None:
        """Decides names from now on, if the volume says so and every build that may come next knows of the log."""
        self._log.requests_repeated()
        self._names.why_not = self._why_not(opened)
        if self._names.why_not != Why.DECIDES:
            self._formats.end()
            return
        assert isinstance(opened, SessionGoesOn)
        self._names.why_not = self._formats.begin()
        if self._names.why_not == Why.KEEPER:
            log.info("names are not decided by this mount: it has no keeper, or one of an older build")  # `status -v` says it
            return
        if self._names.why_not == Why.DIRTY:
            log.warning("names are not decided by this mount: data is dirty in its memory; the next worker looks again")
            return
        self._names.begin(
            NamesHolder(self._config.volume, self._memory.control.state.mount, opened.session, opened.epoch, opened.level, opened.site)
        )

    def _why_not(self, opened: SessionOpened) -> Why:
        if not isinstance(opened, SessionGoesOn) or opened.names != NAMES_DELEGATED:
            return Why.VOLUME
        if opened.level > highest():
            return Why.LEVEL
        if self._names.shipper.has_refused:
            return Why.REFUSED
        return Why.SYNC if SYNCHRONOUS & set(self._config.options) else Why.DECIDES
