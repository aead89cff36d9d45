"""The steps of a worker where one session ends and the next one begins: at its start, and whenever the leader has ended its session."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import SESSION_SELF_FENCE_MS
from awsomefsd.fuse.control_area import ControlArea
from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.segment.store import SegmentWrites
from awsomefsd.meta.api.messages import GetInherited, SessionOpened
from awsomefsd.vfs.session.conflicts import OVERTAKEN, Conflicts
from awsomefsd.vfs.session.lease_recovery import LeaseRecovery, adopted
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.vfs.state.shared_names import SharedNames
from awsomefsd.worker.delegation import LEASES_ENDED, log_position
from awsomefsd.worker.quarantine_proof import QuarantineProof
from awsomefsd.worker.service_calls import ServiceCalls
from awsomefsd.worker.session_opening import SessionOpening

log = logging.getLogger("awsomefsd.worker")


class SessionChange:
    """The control area names the session; it outlives the worker, so a successor knows which one was the last."""

    def __init__(
        self,
        opening: SessionOpening,
        mount: MountState,
        control: ControlArea,
        writer: SegmentWrites,
        proof: QuarantineProof,
        conflicts: Conflicts,
        calls: ServiceCalls,
        names: DelegatedNames | None,
    ) -> None:
        self._opening = opening
        self._mount = mount
        self._control = control
        self._writer = writer
        self._proof = proof
        self._conflicts = conflicts
        self._calls = calls
        self._names = names

    def abandon_segments(self) -> None:
        """Gives up the segments of the session before the client's, which the leader has ended.  Returns at once."""
        self._writer.abandon()
        lost = self._control.state.session
        if lost not in (0, self._opening.session):
            self._proof.begin(lost)

    def replaced(self, opened: SessionOpened) -> None:
        """Goes on under another session.  Blocks as `begin`, and until what others have overtaken is put aside.

        In this order: a successor of a worker that dies in between finds the older session, and decides as we did.
        """
        overtaken = not opened.resumed and opened.changed_by_others
        if isinstance(self._names, SharedNames):
            self._names.session_lost(*log_position(opened, self._control.state.dirty_log), LEASES_ENDED)
            self.begin(opened)
            return
        if self._names is not None and overtaken:
            self._names.give_up(OVERTAKEN)
        self.begin(opened)
        if self._names is not None and not overtaken:
            self._names.session_replaced()
            self._names.shipper.goes_on(*log_position(opened, self._control.state.dirty_log))

    def begin(self, opened: SessionOpened, inherited: Iterable[DirtyRecord] = ()) -> None:
        """Begins to work under a session.  `inherited`: dirty records of a predecessor, by sequence.  Blocks for answers of the service."""
        self._opening.begun(opened)
        leases = self._mount.caches.leases
        if leases is None:
            return
        if opened.resumed:
            self._inherit(opened)
        leases.begin(opened.session, opened.epoch, adopted(inherited, opened.epoch))
        LeaseRecovery(self._mount, leases, self._conflicts).run()

    def _inherit(self, opened: SessionOpened) -> None:
        """The kernel forgets what the predecessor told it; nobody else changes any of that before we report.

        Where that cannot be done (a new leader does not know what it was; fuse/nested_mounts.py), wait until what may have been promised is
        over.
        """
        kernel = self._mount.caches.kernel
        assert kernel is not None
        inos: list[int] | None = None
        with contextlib.suppress(FsError):
            inos = self._calls.ask(GetInherited(opened.session, opened.epoch)).inos
        forgotten = kernel.inherit(inos or [])
        if inos is None or not forgotten:
            log.warning("what the kernel caches from before cannot be made invalid; waiting until it has expired")
            time.sleep(SESSION_SELF_FENCE_MS / 1_000)
