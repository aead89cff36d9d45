"""The note in shared memory that a session is being opened: it stands before the request for it is sent.

The leader says once, to whoever opened a session, whether another mount had the volume before it.  A worker that dies behind that entry
and before the control area names the new session takes the answer along.  If the new session has ended too when the next worker comes, that
one is told that nobody had the volume, since the session of which nothing is left; and the control area names one from before the others.
Without a note it would write over what they have synced.

The note ends, in the store that names the session, when what the ended one left is decided; or with an answer that leaves nothing to
decide: no session was opened, the present one goes on, or nobody had the volume.  A successor that finds it, and another session than the
one that is named, takes what is left for overtaken: it puts aside what may be nobody's, rather than write over what may be somebody's.

While the note stands beside records of an op log, earlier builds refuse the mount (op_log_format.py).
"""

from __future__ import annotations

import errno

from msgspec import structs

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import is_behind_recovery
from awsomefsd.fuse.control_area import ControlArea
from awsomefsd.meta.api.commands import OpenSession
from awsomefsd.meta.api.messages import SessionOpened
from awsomefsd.vfs.session.mount_session import SessionClient
from awsomefsd.worker.op_log_format import OpLogFormat


class SessionOpening:
    """Opens sessions for a mount (a SessionClient); one thread at a time."""

    def __init__(self, client: SessionClient, control: ControlArea, formats: OpLogFormat) -> None:
        self._client = client
        self._control = control
        self._formats = formats
        self.is_unknown = control.state.opening  # of a predecessor: nobody knows what it was answered

    @property
    def session(self) -> int:
        return self._client.session

    def lease_left_ns(self) -> int:
        return self._client.lease_left_ns()

    def start_session(self, command: OpenSession) -> SessionOpened:
        """As the client's.  Until the note is ended by this, or by `begun`, a successor believes nothing of what is left."""
        if not self._control.state.opening:
            self._formats.doubted()
            self._control.update(opening=True)
        try:
            opened = self._client.start_session(command)
        except FsError as err:
            if err.errno != errno.EIO:  # else the client has ended, and the request may have arrived
                self._answered()
            raise
        if is_behind_recovery(opened.session, self._control.state.session):  # what the copy says of who had the volume is no word
            opened = structs.replace(opened, changed_by_others=True)
        if opened.session == self._control.state.session:
            self.is_unknown = False
            self._answered()
        elif not (opened.resumed or opened.changed_by_others):
            self._answered()
        return opened

    def _answered(self) -> None:
        if not self.is_unknown:
            self._control.update(opening=False)
            self._formats.trusted()

    def begun(self, opened: SessionOpened) -> None:
        """What was left under the session before is decided: a successor goes on under this one."""
        self._control.update(session=opened.session, epoch=opened.epoch, opening=False)
        self.is_unknown = False
        self._formats.trusted()
