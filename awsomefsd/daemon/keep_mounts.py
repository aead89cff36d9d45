"""The mounts of this node, looked at when something about them may have changed: the kernel's table of mounts, or the keeper.

    an operation of this daemon, umount(8) by others   → /proc/self/mountinfo has changed
    the keeper died, perhaps with its workers          → the connection that is held to it ends
    a worker died                                      → its keeper starts the next one, without the daemon

After such an event, and while something is not in order, they are looked at every second: a worker may die a moment after its keeper.  What
makes no event here (a mount in another mount namespace) is seen by the slow look.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio

from awsomefsd.base.errors import Error
from awsomefsd.keeper import wire
from awsomefsd.node.mounts import DesiredMount

logger = logging.getLogger(__name__)
LOOK_S = 1.0
SLOW_LOOK_S = 15.0
RESTLESS_S = 10.0  # after an event
_TABLE = "/proc/self/mountinfo"


class NodeMounts(Protocol):
    """Of the daemon's mounts (node/mounts.py)."""

    @property
    def unsettled(self) -> bool: ...
    def reconcile(self) -> list[DesiredMount]: ...
    def revive(self, wanted: DesiredMount) -> None: ...


class _Table:
    """The kernel's table of mounts, and whether it has changed since that was last asked of this object."""

    def __init__(self) -> None:
        self._file = open(_TABLE, "rb", buffering=0)  # closed by `close`
        self._poll = select.epoll()  # readable when the table has changed; the table itself always is
        self._poll.register(self._file, select.EPOLLPRI)

    def fileno(self) -> int:
        return self._poll.fileno()

    def changed(self) -> bool:
        return bool(self._poll.poll(0))

    def close(self) -> None:
        self._poll.close()
        self._file.close()


class HostEvents:
    """Waits for changes of the table of mounts and for the end of the keeper.  The event loop's thread only."""

    def __init__(self, run_dir: Path | str) -> None:
        self._path = Path(run_dir).absolute() / wire.SOCKET_NAME
        self._keeper: socket.socket | None = None
        # Two, because the kernel tells of a change once: where the event loop begins to watch one epoll through another, what has
        # changed before is told to the loop's registration, which drops it.  The second one is asked directly, after that.
        self._wakes, self._tells = _Table(), _Table()

    def close(self) -> None:
        self._wakes.close()
        self._tells.close()
        self._drop_keeper()

    async def changed(self, timeout_s: float) -> bool:
        """Returns True as soon as something has changed since the last call, False after `timeout_s`."""
        if self._keeper is None:
            with contextlib.suppress(OSError):  # there is none now, or it is busy; the next call looks again
                self._keeper = wire.connect(self._path, 0)  # this thread waits for nobody
        seen = False
        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:

                def happened() -> None:
                    nonlocal seen
                    seen = True
                    nursery.cancel_scope.cancel()

                async def wait(
                    readable: _Table | socket.socket,
                    take: Callable[[], object],
                    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
                ) -> None:
                    task_status.started()  # whoever waits for that goes on when this task waits
                    await trio.lowlevel.wait_readable(readable)
                    take()
                    happened()

                await nursery.start(wait, self._wakes, self._wakes.changed)
                if self._keeper is not None:
                    nursery.start_soon(wait, self._keeper, self._drop_keeper)
                if self._tells.changed():
                    happened()
        if seen:  # the look that follows is at whatever has changed until now
            self._wakes.changed()
            self._tells.changed()
        return seen

    def _drop_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None


async def keep_mounts(mounts: NodeMounts, events: HostEvents) -> None:
    """Reconciles the mounts with the desired ones whenever that may be necessary; a task of its own revives each dead one."""
    reviving: set[str] = set()
    away = False
    restless_until = 0.0

    async def revive(wanted: DesiredMount) -> None:
        try:
            await trio.to_thread.run_sync(mounts.revive, wanted, abandon_on_cancel=True)
        finally:
            reviving.discard(wanted.directory)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                dead = await trio.to_thread.run_sync(mounts.reconcile, abandon_on_cancel=True)
            except Error as err:
                if not away:
                    logger.warning("the mounts of this node cannot be checked now; running mounts continue", extra={"reason": str(err)})
                away, dead = True, []
            else:
                away = False
            for wanted in dead:
                if wanted.directory not in reviving:
                    reviving.add(wanted.directory)
                    nursery.start_soon(revive, wanted)
            if away or dead or reviving or mounts.unsettled or trio.current_time() < restless_until:
                await trio.sleep(LOOK_S)
            elif await events.changed(SLOW_LOOK_S):
                restless_until = trio.current_time() + RESTLESS_S
