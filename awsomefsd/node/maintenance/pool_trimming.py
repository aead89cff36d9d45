"""Bays that hold nothing that counts become free: their servers trim them, and then the log says so.  By the daemon of the leader.

A bay is trimmed once the entry that made it stale is safe: no session reads what it held any more, and no state that may come back names
it.  The server asks the leader again before it gives the bay up, and BaysTrimmed compares bay, segment and entry, so an order that comes
late, or twice, from this leader or an earlier one, does nothing.  Whoever leads next finds the bays that are still stale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.limits import BAYS_TRIMMED_AT_ONCE
from awsomefsd.io.pool.remote_errors import BayLost
from awsomefsd.io.pool.remote_server import RemoteServer, answer_by
from awsomefsd.io.transport.records import BulkRecord, Kind
from awsomefsd.meta.api.commands import BaysTrimmed
from awsomefsd.meta.api.messages.pools import GetStaleBays, Pool, PoolDeviceInfo, StaleBays

StaleBay = tuple[int, int, int]  # index, segment that was there, entry that made it stale


class PoolTrimming:
    """`server_of` returns the segment server of a device, None if it is not reached anywhere.  One thread."""

    def __init__(
        self, ask: Callable[[Any], Any], propose: Callable[[Any], Any], server_of: Callable[[PoolDeviceInfo], RemoteServer | None]
    ) -> None:
        self._ask, self._propose, self._server_of = ask, propose, server_of
        self._next: dict[int, int] = {}  # device → the index to go on with
        self.trimmed = 0

    def turn(self, pool: Pool) -> tuple[int, OSError | None]:
        """Trims some bays of each device; returns how many became free, and why a server did not go on.  Blocks; raises Error."""
        freed, trouble = 0, None
        for device in pool.devices:
            server = self._server_of(device) if device.stale and not (device.absent or device.lost) else None
            if server is not None:
                count, why = self._trim(device, server, pool.safe_index)
                freed, trouble = freed + count, trouble or why
        self.trimmed += freed
        return freed, trouble

    def _trim(self, device: PoolDeviceInfo, server: RemoteServer, safe_index: int) -> tuple[int, OSError | None]:
        page: StaleBays = self._ask(GetStaleBays(device.device, self._next.get(device.device, 0), BAYS_TRIMMED_AT_ONCE))
        self._next[device.device] = max(page.next, 0)
        done, trouble = self._order(device, server, [bay for bay in page.bays if bay[2] <= safe_index])
        freed = self._propose(BaysTrimmed(device.server, device.device, done)).number if done else 0
        return freed, trouble

    def _order(self, device: PoolDeviceInfo, server: RemoteServer, bays: list[StaleBay]) -> tuple[list[StaleBay], OSError | None]:
        """Returns the bays that the server has trimmed, and why it trimmed no more."""
        done: list[StaleBay] = []
        for index, segment, entry in bays:
            try:
                server.order(BulkRecord(Kind.TRIM, 0, segment, 0, device.device, index, value=entry), answer_by())
            except BayLost:  # it is something else by now, says the leader
                continue
            except OSError as err:
                return done, err
            done.append((index, segment, entry))
        return done, None
