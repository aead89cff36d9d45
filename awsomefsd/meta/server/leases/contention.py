"""Finds inodes that sessions take from each other again and again: no lease for a while is cheaper for all than one recall after the other.

Pure; times are given.  An inode of which leases were recalled several times within a short window is *contested*.  From then on a lease on
it is granted only when it has been quiet for a while: nothing recalled by anybody, nothing changed by another mount, and, for a lease to
write, nothing read by another mount either.  A recall that follows the one before within two such whiles was not worth its lease and
doubles the while, up to a bound; one that comes later halves it, until the inode is contested no more; without any for long enough it is
forgotten.  Meanwhile mounts ask for everything and write through: that is what is right at any speed, and it needs no recall at all.

So a file that several nodes go on using costs at most one recall in each such while; readers of a file that nobody writes any more have
leases again after one; and a writer that is alone with it again too.  Who looks at a file once a second while another node writes it costs
that node a flush each time, which is far less than writing through would: a few recalls a second are no contest.  A pause by the clock
alone would be simpler, and would either be so long that it punishes those who are alone again, or so short that a storm comes back.

A leader that begins knows nothing of this, and learns it again.  Mounts are told apart by their numbers; 0 is everybody without one.
"""

from __future__ import annotations

from awsomefsd.base.limits import (
    CONTEST_FORGET_MS,
    CONTEST_INODES_MAX,
    CONTEST_QUIET_MS,
    CONTEST_QUIET_MS_MAX,
    CONTEST_RECALLS,
    CONTEST_WINDOW_MS,
    NS_PER_MS,
)
from awsomefsd.base.types import LEASE_READ, LEASE_WRITE
from awsomefsd.meta.server.waiters import Key


class _Inode:
    __slots__ = ("last_ns", "quiet_ms", "times", "used")

    def __init__(self) -> None:
        self.times: list[int] = []  # of the newest recalls
        self.last_ns = 0  # of them
        self.quiet_ms = 0  # how long it has to be quiet; 0: not contested
        self.used: dict[int, tuple[int, int]] = {}  # mount → when it changed it, when it read it


class Contention:
    def __init__(self) -> None:
        self._inodes: dict[Key, _Inode] = {}  # the one recalled last at the end
        self.begun = 0

    def note_recall(self, key: Key, now_ns: int) -> None:
        """Counts a lease that was recalled because another mount reads or changes something; all of one moment count as one."""
        inode = self._inodes.pop(key, None)
        if inode is None or now_ns - inode.last_ns > CONTEST_FORGET_MS * NS_PER_MS:
            inode = _Inode()
        self._inodes[key] = inode
        if inode.times and inode.times[-1] == now_ns:
            return
        soon = now_ns - inode.last_ns < 2 * inode.quiet_ms * NS_PER_MS
        inode.last_ns = now_ns
        inode.times = [*inode.times[1 - CONTEST_RECALLS :], now_ns]
        if soon:
            inode.quiet_ms = min(inode.quiet_ms * 2, CONTEST_QUIET_MS_MAX)
        elif inode.quiet_ms:
            inode.quiet_ms = inode.quiet_ms // 2 if inode.quiet_ms > CONTEST_QUIET_MS else 0
        elif len(inode.times) == CONTEST_RECALLS and now_ns - inode.times[0] <= CONTEST_WINDOW_MS * NS_PER_MS:
            inode.quiet_ms = CONTEST_QUIET_MS
            self.begun += 1
        if len(self._inodes) > CONTEST_INODES_MAX:
            del self._inodes[next(iter(self._inodes))]

    def note_use(self, key: Key, mount: int, mode: int, now_ns: int) -> None:
        """Notes that a mount reads or changes something, or wants to.  What it does under leases is not seen here."""
        inode = self._inodes.get(key)
        if inode is not None and inode.quiet_ms:
            changed, read = inode.used.get(mount, (0, 0))
            inode.used[mount] = (now_ns, read) if mode == LEASE_WRITE else (changed, now_ns)

    def pause_ms(self, key: Key, mount: int, mode: int, now_ns: int) -> int:
        """Returns for how many ms no lease of that mode is granted if nobody else uses the inode; 0: it may be granted."""
        inode = self._inodes.get(key)
        if inode is None or not inode.quiet_ms:
            return 0
        if now_ns - inode.last_ns > CONTEST_FORGET_MS * NS_PER_MS:
            del self._inodes[key]
            return 0
        newest = inode.last_ns
        for other, (changed, read) in inode.used.items():
            if other != mount:
                newest = max(newest, changed, 0 if mode == LEASE_READ else read)
        return max(0, -(-(newest - now_ns) // NS_PER_MS) + inode.quiet_ms)

    def count_contested(self, now_ns: int) -> int:
        """Returns how many inodes are contested now, for the figures."""
        return sum(inode.quiet_ms > 0 and now_ns - inode.last_ns <= CONTEST_FORGET_MS * NS_PER_MS for inode in self._inodes.values())
