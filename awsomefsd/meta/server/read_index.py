"""Parks queries and renewals until a quorum has said that this node still leads (ReadIndex).  Pure.

A query is answered from the applied state once a ticket that was drawn after it arrived is confirmed; all of a turn share one.  A renewal
waits in the same way: what is acknowledged then was sent before the quorum spoke, so before any other leader was elected, and that one
grants a full TTL from its own beginning.  It waits for the next regular heartbeat, as all do that daemons and workers ask by the clock
(PATIENT): no program waits for them, and idle nodes would cost a leader more rounds a second than it has heartbeats.

A single voter confirms what it draws at once; then nothing waits: the first query of a turn draws, all of the turn are answered on the
spot.  Where tickets take a round, they are drawn at the end of the turn, so that none is older than what it is for.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from awsomefsd.base.errors import NotLeading
from awsomefsd.base.limits import READS_PARKED_MAX
from awsomefsd.meta.api.messages import GetCheckpoints, Renew
from awsomefsd.meta.api.messages.devices import ReportDevices
from awsomefsd.meta.server.request import AnyRequest, Origin

PATIENT = frozenset((Renew, GetCheckpoints, ReportDevices))


class Tickets(Protocol):
    """The part of voter/ports.Leadership that draws and confirms tickets."""

    def request_read(self, *, patient: bool = False) -> int: ...

    def reads_confirmed(self) -> int: ...


class Reads:
    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets
        self._fresh = False  # this turn's ticket is confirmed
        self._at_once = True  # tickets were, the last time
        self._arrived: list[AnyRequest] = []  # without a ticket
        self._waiting: deque[tuple[int, list[AnyRequest]]] = deque()
        self.parked = 0

    def confirm_now(self) -> bool:
        """Draws a ticket if this turn has none.  True: a query that is handled now need not wait."""
        if not self._fresh and self._at_once:
            self._fresh = self._at_once = self._draw_confirmed()
        return self._fresh

    def _draw_confirmed(self) -> bool:
        try:
            ticket = self._tickets.request_read()
        except NotLeading:
            return False
        return self._tickets.reads_confirmed() >= ticket

    @property
    def is_full(self) -> bool:
        """So many wait that no further request is to be taken before some are confirmed."""
        return self.parked >= READS_PARKED_MAX

    def park(self, request: AnyRequest) -> None:
        self._arrived.append(request)
        self.parked += 1

    def draw(self) -> None:
        """Draws one ticket for all that arrived in this turn."""
        self._fresh = False
        if self._arrived:
            try:
                ticket = self._tickets.request_read(patient=all(type(request.body) in PATIENT for request in self._arrived))
            except NotLeading:
                return  # the leader steps down next, and takes them back
            self._waiting.append((ticket, self._arrived))
            self._arrived = []
            self._at_once = self._tickets.reads_confirmed() >= ticket

    def take_confirmed(self) -> list[AnyRequest]:
        """Returns the requests whose tickets are confirmed, in order; they wait here no more."""
        if not self._waiting:
            return []
        confirmed = self._tickets.reads_confirmed()
        due: list[AnyRequest] = []
        while self._waiting and self._waiting[0][0] <= confirmed:
            due += self._waiting.popleft()[1]
        self.parked -= len(due)
        return due

    def take_all(self) -> list[AnyRequest]:
        """Returns all that wait, because the leadership has ended and nothing is confirmed any more."""
        found = [parked for _, some in self._waiting for parked in some] + self._arrived
        self._waiting.clear()
        self._arrived = []
        self.parked = 0
        self._fresh, self._at_once = False, True
        return found

    def drop_origin(self, origin: Origin) -> None:
        if self.parked:
            self._arrived = [parked for parked in self._arrived if parked.origin is not origin]
            self._waiting = deque((ticket, [parked for parked in some if parked.origin is not origin]) for ticket, some in self._waiting)
            self.parked = len(self._arrived) + sum(len(some) for _, some in self._waiting)
