"""The exactly-once table: the reply of every request until its worker has acknowledged it.

A request id is (mount, unique), constant over worker, session and leader changes, so the same request sent again finds its reply instead of
a false EEXIST.  Replies are objects in memory; a flush writes only those that are new and still held, so a request that was answered and
acknowledged between two flushes never reaches the store.  The bound (RESULTS_PER_MOUNT_MAX) is the service's admission, not a window here.
"""

from __future__ import annotations

from awsomefsd.base.types import BACKGROUND_BIT, NODE_UNIQUE_BITS
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.txn import Txn


class Results:
    """The results of all mounts that are held.  One thread uses them; only the constructor reads, and may block for the store's pages."""

    __slots__ = ("_fresh", "_gone", "_replies", "_txn")

    def __init__(self, txn: Txn) -> None:
        self._txn = txn
        self._replies: dict[int, dict[int, Reply]] = {}
        self._fresh: set[tuple[int, int]] = set()  # held, not written
        self._gone: set[tuple[int, int]] = set()  # written, not held
        for key, raw in txn.scan(*keys.kind_range(0, keys.RESULT)):
            self._replies.setdefault(keys.first_u64(key), {})[keys.last_u64(key)] = rows.RESULT.loads(raw).reply

    def get(self, mount: int, unique: int) -> Reply | None:
        """Returns the reply that was kept for a request id, or None."""
        of_mount = self._replies.get(mount)
        return None if of_mount is None else of_mount.get(unique)

    def count(self, mount: int) -> int:
        return len(self._replies.get(mount, ()))

    @property
    def total(self) -> int:
        """The number of results of all mounts."""
        return sum(map(len, self._replies.values()))

    def put(self, mount: int, unique: int, reply: Reply) -> None:
        of_mount = self._replies.get(mount)
        if of_mount is None:
            of_mount = self._replies[mount] = {}
        of_mount[unique] = reply
        self._fresh.add((mount, unique))

    def of_others(self, mount: int, unique: int) -> list[int]:
        """Returns the ids of results that another run of this node's daemon drew."""
        return [held for held in self._replies.get(mount, ()) if held >> NODE_UNIQUE_BITS != unique >> NODE_UNIQUE_BITS]

    def acknowledge(self, mount: int, uniques: list[int]) -> None:
        """Drops the results of these requests."""
        of_mount = self._replies.get(mount)
        if of_mount is None:
            return
        for unique in uniques:
            if of_mount.pop(unique, None) is not None:
                if (mount, unique) in self._fresh:
                    self._fresh.remove((mount, unique))
                else:
                    self._gone.add((mount, unique))
        if not of_mount:
            del self._replies[mount]

    def forget(self, mount: int) -> None:
        """Drops all results of a mount that is gone and sends nothing again."""
        self.acknowledge(mount, list(self._replies.get(mount, ())))

    def keep_only(self, mount: int, uniques: list[int]) -> None:
        """Drops all results of a mount but those of `uniques`.

        Its worker is dead, and the successor has found these requests alone: the kernel has the answers of all others.
        """
        kept = set(uniques)
        self.acknowledge(mount, [unique for unique in self._replies.get(mount, ()) if unique not in kept])

    def forget_background(self, mount: int) -> None:
        """Drops the results of requests that a dead worker made on its own behalf: they are never sent again."""
        self.acknowledge(mount, [unique for unique in self._replies.get(mount, ()) if unique & BACKGROUND_BIT])

    def flush(self) -> None:
        """Writes the changes since the last flush into the transaction."""
        for mount, unique in sorted(self._gone - self._fresh):
            self._txn.delete(keys.result(mount, unique))
        for mount, unique in sorted(self._fresh):
            self._txn.put(keys.result(mount, unique), rows.RESULT.dumps(rows.ResultRow(self._replies[mount][unique])))
        self._gone.clear()
        self._fresh.clear()
