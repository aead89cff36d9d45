"""Connections between mounts and nodes, as TCP makes them of the network: in order and without gaps, or ended.

A lost segment is sent again, so loss is delay here; while the wire is cut, everything waits, and after BREAK_NS the connection ends at the
end that waits.  An end that dies tells the other one, or (power cut, pause) does not: then the other learns it when it sends something to
the machine that has no such connection any more, or when a keep-alive does.  What was on its way to an end that closed is gone; what had
arrived and was not read stays readable, which is how old copies of requests come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tests.sim.machines.network import LOCAL_NS, Network
from tests.sim.world import MS, SECOND

RESEND_NS = 200 * MS
KEEP_ALIVE_NS = 10 * SECOND
BREAK_NS = 20 * SECOND


class End:
    """One end.  `receive(raw)` and `closed()` are called while the process that made it lives."""

    def __init__(self, machine: str, owner: Any, receive: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self.machine = machine
        self.owner = owner
        self.life = owner.life
        self.receive = receive
        self.closed = closed
        self.open = True
        self.queue: deque[bytes] = deque()  # sent from here
        self.blocked_ns = 0  # since when nothing gets through

    @property
    def alive(self) -> bool:
        return self.open and self.owner.life == self.life and self.owner.up


class Link:
    def __init__(self, network: Network, client: End, server: End) -> None:
        self._network = network
        self._world = network.world
        self._dice = network.world.dice("links")
        self._ends = (client, server)
        self._world.after(KEEP_ALIVE_NS, self._keep_alive, client, owner=client.owner)

    def _other(self, end: End) -> End:
        return self._ends[1] if end is self._ends[0] else self._ends[0]

    def send(self, end: End, raw: bytes, ahead_ns: int = 0) -> None:
        if not end.open:
            return
        end.queue.append(raw)
        if len(end.queue) == 1:
            self._world.after(ahead_ns + self._delay_ns(end), self._pump, end)

    def _delay_ns(self, end: End) -> int:
        weather = self._network.weather
        if end.machine == self._other(end).machine:
            return LOCAL_NS
        delay = weather.base_ns + int(self._dice.random() * weather.spread_ns)
        delay += self._network.slow.get((end.machine, self._other(end).machine), 0)
        while weather.loss and self._dice.random() < weather.loss:
            delay += RESEND_NS
        if weather.late and self._dice.random() < weather.late:
            delay += int(self._dice.random() * weather.late_ns)
        return delay

    def _pump(self, end: End) -> None:
        """What was sent arrives, in order."""
        other = self._other(end)
        if not end.queue:
            return
        if not self._network.reaches(end.machine, other.machine) or not other.owner.up:
            self._blocked(end)
            return
        end.blocked_ns = 0
        if not other.alive:  # "connection reset"
            end.queue.clear()
            self._tell_closed(end)
            return
        raws, end.queue = end.queue, deque()
        for raw in raws:
            if other.alive:
                other.receive(raw)

    def _blocked(self, end: End) -> None:
        now = self._world.now_ns
        end.blocked_ns = end.blocked_ns or now
        if now - end.blocked_ns > BREAK_NS:
            end.queue.clear()
            self._tell_closed(end)
        else:
            self._world.after(RESEND_NS, self._pump, end)

    def _keep_alive(self, end: End) -> None:
        """Asks the other machine whether it still has this connection."""
        other = self._other(end)
        if not end.open:
            return
        if self._network.reaches(end.machine, other.machine) and other.owner.up and not other.alive:
            self._tell_closed(end)
        else:
            self._world.after(KEEP_ALIVE_NS, self._keep_alive, end, owner=end.owner)

    def _tell_closed(self, end: End) -> None:
        if end.alive:
            end.open = False
            end.closed()
        end.open = False

    def close(self, end: End) -> None:
        """The other end learns it if it can be reached; what was queued before goes first or not at all."""
        if not end.open:
            return
        end.open = False
        end.queue.clear()
        other = self._other(end)
        self._world.after(self._delay_ns(end), self._fin, end, other)

    def _fin(self, end: End, other: End) -> None:
        if self._network.reaches(end.machine, other.machine):
            self._tell_closed(other)

    def died(self, end: End, *, tells: bool) -> None:
        """The process of `end` is gone."""
        end.open = False
        end.queue.clear()
        if tells:
            self._world.after(self._delay_ns(end), self._fin, end, self._other(end))
