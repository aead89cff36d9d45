"""The gate of a segment server: who may write each bay, how far it is written, and how far it is durable.  Pure.

A bay is held by one segment (number and incarnation) on one connection, which alone may append to it, at its end only.  What ends that
right ends it for ever: a lost connection, a failed or impossible append, Close, another holder.  Who comes back opens another segment.  So
there are no resumed writes and no duplicates, and that a bay is closed is a proof that nothing more will be written there.

`durable` follows flushes.  A flush that succeeds covers what had been written when it began, never what was written meanwhile.  A flush
that fails is reported by the kernel once, and the next one succeeds although the bytes are lost; so every bay of the device with bytes
since the last good flush, or with a write under way, is closed, and what it has beyond `durable` is never called durable, whatever later
flushes say.  Rejected: to write the bytes again (the gate has them no more, and the medium is not to be trusted with them).

The gate is memory and begins empty.  That suffices for what it forbids, because every answer that it gives is to a connection that it
knows; whether a bay may be opened, trimmed or read at all is asked of the leader by whoever uses the gate.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from msgspec import Struct

from awsomefsd.base.errors import FsError

_NOBODY = -1  # for a connection: nothing is appended there


class Bay(Struct, frozen=True, gc=False):
    """A place for one segment: the number of a pool's device, and the index on it."""

    device: int
    index: int


class BayContent(NamedTuple):
    """What a bay holds: a segment.  `version` counts what the bay has held."""

    segment: int
    incarnation: int
    written: int
    version: int
    learnt: bool = False  # by `learn`: so far by the leader's word


class Flush(NamedTuple):
    """A flush under way: the ends that it makes durable, by bay and version."""

    device: int
    ends: dict[tuple[Bay, int], int]


class _Holder:
    """What the gate knows of a bay and the segment in it."""

    __slots__ = ("closed", "connection", "doubtful", "durable", "incarnation", "segment", "version", "writing", "written")

    def __init__(self, segment: int, incarnation: int, connection: int, version: int) -> None:
        self.segment, self.incarnation, self.connection, self.version = segment, incarnation, connection, version
        self.written = self.durable = 0
        self.writing = 0  # bytes of the append that is under way
        self.closed = ""  # why nothing can be appended any more
        self.doubtful = False  # a flush failed: what is beyond `durable` never becomes durable

    def close(self, why: str) -> None:
        self.closed = self.closed or why


def _stale(why: str) -> FsError:
    return FsError(errno.ESTALE, why)


class Gate:
    """The gate of all devices of one server.  Not thread-safe: the server has a lock around every call.

    Methods that are asked for what is not, or is no longer, theirs raise FsError(ESTALE).
    """

    def __init__(self) -> None:
        self._holders: dict[Bay, _Holder] = {}
        self._versions = 0

    # --- rights ---------------------------------------------------------------------------------------------------------
    def check_unopened(self, bay: Bay, segment: int, incarnation: int) -> None:
        """Raises FsError(ESTALE) if the bay was opened for this segment before: it is opened once."""
        holder = self._holders.get(bay)
        if holder is not None and (holder.segment, holder.incarnation) == (segment, incarnation):
            raise _stale("this bay was opened for this segment before; another segment has to be opened")

    def open(self, bay: Bay, segment: int, incarnation: int, connection: int) -> None:
        """Gives the bay to a segment, on a connection; whoever had it has lost it.  No write is under way there."""
        self.check_unopened(bay, segment, incarnation)
        self._replace(bay, segment, incarnation, connection)

    def open_copy(self, bay: Bay, segment: int, incarnation: int, connection: int) -> None:
        """Gives the bay to a copy, which appends as a connection of its own does; also where a copy of the segment has failed before.

        What a bay has while the log calls it a copy counts for nothing, so it may be written again.  No write is under way there.
        """
        self._replace(bay, segment, incarnation, connection)

    def _replace(self, bay: Bay, segment: int, incarnation: int, connection: int) -> _Holder:
        before = self._holders.get(bay)
        assert before is None or not before.writing
        self._versions += 1
        made = self._holders[bay] = _Holder(segment, incarnation, connection, self._versions)
        return made

    def learn(self, bay: Bay, segment: int, incarnation: int, end: int) -> None:
        """Takes up what the leader says a bay holds, up to `end`, that was not opened here: readable, closed."""
        holder = self._holders.get(bay)
        if holder is None:
            holder = self._replace(bay, segment, incarnation, _NOBODY)
            holder.close("it was opened before this server began")
        if (holder.segment, holder.incarnation, holder.connection) == (segment, incarnation, _NOBODY):
            holder.written = holder.durable = max(holder.written, end)

    def forget(self, bay: Bay, segment: int) -> None:
        """Closes the bay for a segment that it does not hold any more (Trim).  No write is under way there."""
        holder = self._replace(bay, segment, -1, _NOBODY)
        holder.close("the bay was trimmed")

    def lose(self, connection: int) -> list[Bay]:
        """Closes every bay of a connection that has ended.  Returns them."""
        lost = [bay for bay, holder in self._holders.items() if holder.connection == connection and not holder.closed]
        for bay in lost:
            self._holders[bay].close("its connection ended")
        return lost

    def opened(self, device: int) -> int:
        """Returns how many bays of a device are open for connections."""
        return sum(bay.device == device and not holder.closed and holder.connection > 0 for bay, holder in self._holders.items())

    def close_device(self, device: int) -> None:
        """Closes every bay of a device that is not served any more.  It may be served again; its bays stay closed for their segments."""
        for bay, holder in self._holders.items():
            if bay.device == device:
                holder.close("its device was given up")

    def close(self, bay: Bay, segment: int, incarnation: int, connection: int) -> int:
        """Ends the appends of whoever holds the bay.  Returns how far it is durable; the same again when repeated."""
        holder = self._mine(bay, segment, incarnation, connection)
        assert not holder.writing
        holder.close("it was closed")
        return holder.durable

    # --- writing --------------------------------------------------------------------------------------------------------
    def begin_append(self, bay: Bay, segment: int, incarnation: int, connection: int, offset: int, length: int, room: int) -> None:
        """Begins an append, which `end_append` ends.  `room`: bytes of the bay.

        An offset that is not the end so far, or bytes beyond the room, close the bay.
        """
        holder = self._mine(bay, segment, incarnation, connection)
        assert not holder.writing and length > 0
        if holder.closed:
            raise _stale(f"nothing can be appended here: {holder.closed}")
        if offset != holder.written or offset + length > room:
            holder.close("an append was out of order or too long")
            raise _stale(f"append of {length} bytes at {offset}: the end is {holder.written}, the room {room}")
        holder.writing = length

    def end_append(self, bay: Bay, *, failed: bool) -> None:
        """Ends the append that is under way.  Raises FsError(ESTALE) if it does not count, because the bay was closed meanwhile."""
        holder = self._holders[bay]
        assert holder.writing
        length, holder.writing = holder.writing, 0
        if failed:
            holder.close("a write failed")
        if holder.closed:
            raise _stale(f"the append does not count: {holder.closed}")
        holder.written += length

    # --- durability -----------------------------------------------------------------------------------------------------
    def is_durable(self, bay: Bay, segment: int, incarnation: int, connection: int, end: int) -> bool:
        """Whether all up to `end` is durable; False: a flush that begins now can make it so.  Raises where none can."""
        holder = self._mine(bay, segment, incarnation, connection)
        if end <= holder.durable:
            return True
        if holder.closed:
            raise _stale(f"durable up to {holder.durable} of {end}: {holder.closed}")
        if end > holder.written:
            holder.close("more was to be synced than was written")
            raise _stale(f"{end} bytes to be synced, {holder.written} written")
        return False

    def begin_flush(self, device: int) -> Flush:
        """Notes what a flush of the device that begins now makes durable."""
        return Flush(
            device,
            {
                (bay, holder.version): holder.written
                for bay, holder in self._holders.items()
                if bay.device == device and holder.written > holder.durable and not holder.doubtful
            },
        )

    def end_flush(self, flush: Flush, *, failed: bool) -> None:
        """Takes up the result of a flush."""
        if not failed:
            for (bay, version), end in flush.ends.items():
                holder = self._holders[bay]
                if holder.version == version and not holder.doubtful:
                    holder.durable = max(holder.durable, end)
            return
        for bay, holder in self._holders.items():
            if bay.device == flush.device and (holder.written > holder.durable or holder.writing):
                holder.doubtful = True
                holder.close("a flush of the device failed")

    # --- reading --------------------------------------------------------------------------------------------------------
    def held(self, bay: Bay) -> BayContent | None:
        """Returns what the bay holds, as far as this server knows since it began."""
        holder = self._holders.get(bay)
        if holder is None:
            return None
        return BayContent(holder.segment, holder.incarnation, holder.written, holder.version, holder.connection == _NOBODY)

    def _mine(self, bay: Bay, segment: int, incarnation: int, connection: int) -> _Holder:
        holder = self._holders.get(bay)
        if holder is None or (holder.segment, holder.incarnation, holder.connection) != (segment, incarnation, connection):
            raise _stale("this bay was not opened for this segment on this connection")
        return holder
