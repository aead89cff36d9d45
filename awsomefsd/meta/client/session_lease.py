"""Decides when a session is renewed, and when its worker may not serve any more.  Pure; times are CLOCK_BOOTTIME: it counts a suspend too.

The session counts from *before* the sending of the newest acknowledged renewal and ends at SESSION_SELF_FENCE_MS: long before the leader
ends the session.  A renewal that was sent again after a reconnect, or to a new leader, still counts from its first sending.  A session
that fenced itself and was not ended resumes with the next acknowledged renewal; one that the leader has ended is lost for good.
"""

from __future__ import annotations

import errno
from typing import Literal

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NS_PER_MS, SESSION_RENEW_MS, SESSION_SELF_FENCE_MS

Event = Literal["fenced", "renewed", "lost"]


class RenewalTimer:
    def __init__(self, renew_ms: int = SESSION_RENEW_MS, fence_ms: int = SESSION_SELF_FENCE_MS) -> None:
        self._renew_ns = renew_ms * NS_PER_MS
        self._fence_ns = fence_ms * NS_PER_MS
        self._live = False
        self._since_ns = 0  # the lease counts from here
        self._trusted_ns = 0  # nothing that was sent before this counts
        self._next_ns = 0  # when to renew
        self._asked = False  # a renewal is outstanding
        self._fenced = False

    def begin(self, since_ns: int) -> None:
        """Begins with a session that was opened by a request that was sent after `since_ns`."""
        self._live, self._fenced, self._since_ns = True, False, since_ns
        self._next_ns = since_ns + self._renew_ns if since_ns >= self._trusted_ns else 0

    def end(self) -> None:
        self._live = False

    def doubt(self) -> None:
        """Renews at once: a proposal was refused as of an ended session, or the connection is new."""
        self._next_ns = 0

    def distrust(self, now_ns: int) -> None:
        """This clock may have stood still for a while: only a renewal that is sent from now on says how much of the lease is left."""
        self._trusted_ns = now_ns + 1  # it may not have moved since the renewal that is on its way was sent
        self._next_ns = 0
        self._asked = False  # one that is on its way does not count

    def sending_ns(self, now_ns: int) -> int:
        """Returns the time of a renewal that is sent now, for `take_answer`."""
        return max(now_ns, self._trusted_ns)

    def left_ns(self, now_ns: int) -> int:
        """Returns what is left of the lease, in ns; 0: fenced, not trusted, or there is none."""
        left = self._since_ns + self._fence_ns - now_ns
        return left if left > 0 and self._live and self._since_ns >= self._trusted_ns else 0

    def poll(self, now_ns: int) -> Literal["fenced", "renew"] | None:
        """Returns what is due; call it again until it is None.

        "fenced": the lease has run out.  "renew": send a Renew now, and tell `take_answer` about it with this time.
        """
        if self._live and not self._fenced and now_ns >= self._since_ns + self._fence_ns:
            self._fenced = True
            return "fenced"
        if self._live and not self._asked and now_ns >= self._next_ns:
            self._asked = True
            self._next_ns = now_ns + self._renew_ns
            return "renew"
        return None

    def due_ns(self) -> int | None:
        """Returns when `poll` is due next, in ns; None: there is no session."""
        if not self._live:
            return None
        times = [] if self._fenced else [self._since_ns + self._fence_ns]
        if not self._asked:
            times.append(self._next_ns)
        return min(times, default=None)

    def take_answer(self, sent_ns: int, error: BaseException | None, same_session: bool, now_ns: int) -> Event | None:
        """Takes the outcome of the renewal that was sent at `sent_ns`; returns what it means for the session, if anything.

        `same_session`: it was for the session that is served now.
        """
        self._asked = False
        if not self._live or not same_session:
            return None
        if error is None:
            self._since_ns = max(self._since_ns, sent_ns)
            if self.left_ns(now_ns):
                self._fenced = False
                return "renewed"
        elif isinstance(error, FsError) and error.errno == errno.ESTALE:
            self._live = False
            return "lost"
        return None
