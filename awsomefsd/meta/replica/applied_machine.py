"""The questions of the replica and the leader to the deterministic state machine, which neither imports (meta/machine/machine.py has it).

One Protocol for each subject; whoever needs one subject takes that one.  All calls come from the thread that owns the state, and none
waits for anything but the disk: each reads the rows as the store shows them, which is exactly what is applied, committed or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.types import Lock
from awsomefsd.meta.api.commands import CopyRange, Entry, LeaseBays, SetLock
from awsomefsd.meta.api.messages import Failed, Reply
from awsomefsd.meta.raft.types import MembershipAt
from awsomefsd.meta.state.rows import DeviceRow, NodeRow


class AppliedEntries(Protocol):
    """Entries go in, in index order; how far the state is."""

    @property
    def applied_index(self) -> int:
        """Index of the newest applied entry; 0 for an empty state."""

    @property
    def last_stamp(self) -> int:
        """The newest hybrid time in the state; a proposer's clock must not fall behind it."""

    def membership(self) -> MembershipAt | None:
        """The newest applied membership; None if no entry has told one yet."""

    def apply(self, entry: Entry) -> Reply:
        """Change the state; the reply to whoever proposed the entry.  A refusal is a reply (Failed) and changes nothing."""

    def flush(self) -> None:
        """Write back what is only in memory.  To be called before the store commits."""

    def reader_cursors(self) -> dict[str, int]:
        """Name of each registered reader of the change stream → its cursor: the log is kept from the smallest on."""


class AppliedSessions(Protocol):
    """Sessions of mounts, the nodes they run on, the devices, and what is left to do for sessions that ended."""

    def mount_of(self, session: int) -> int:
        """The mount of a session; 0 if there is none."""

    def live_sessions(self) -> dict[int, int]:
        """Session → epoch."""

    def serving(self) -> list[tuple[int, int, str]]:
        """Returns (session, volume, name of its node) of the live sessions that may change a volume."""

    def reserving_sessions(self, volume: int, but: int) -> list[int]:
        """The live sessions of a volume (0: of all) that have reserved space, without the session `but`."""

    def session_node(self, session: int) -> str | None:
        """UUID of the node whose session it is; None for one that is not known (any more)."""

    def was_opened(self, session: int) -> bool:
        """False for a number that no session has had yet."""

    def mount_node(self, mount: int) -> str | None:
        """UUID of the node where the mount of that number had a session; None if there never was one."""

    def node_rows(self) -> list[NodeRow]:
        """Removed nodes too, for as long as they are remembered."""

    def device_rows(self) -> list[DeviceRow]:
        """Removed devices are left out."""

    def serving_nodes(self) -> set[str]:
        """UUIDs of the nodes that have a live session."""

    def reap_pending(self) -> bool:
        """Something is left to be removed in the background: a Reap entry is due."""


class AppliedLeases(Protocol):
    """Inode leases of sessions that share their volume."""

    def sharing_sessions(self) -> dict[int, tuple[int, int]]:
        """Live sessions that share their volume and cache under leases → (volume, mount)."""

    def write_leases(self, after: bytes, count: int) -> tuple[list[tuple[tuple[int, int], tuple[int, int]]], bytes]:
        """Up to `count` of ((volume, ino), (session, lease epoch)), and the `after` of the next ones; b"": begins, and has ended."""

    def write_lease(self, volume: int, ino: int) -> tuple[int, int]:
        """(session, lease epoch); session 0: nobody has it."""

    def changes_by_others(self, volume: int, ino: int, mount: int, known: int) -> tuple[int, bool]:
        """(LeaseRow.changes of the inode, True if somebody else than `mount` made it more than `known`)."""

    def child(self, volume: int, parent: int, name: bytes) -> int:
        """The inode of a name; 0 if there is none.  A directory's own parent has the name b".."."""

    def may_hold_names(self, volume: int, ino: int) -> bool:
        """True if a mount may have decided names or attributes of the inode, which the state does not have yet."""


class AppliedFiles(Protocol):
    """Where the bytes of files lie."""

    def choose_bays(self, session: int, command: LeaseBays, draw: Callable[[int], int]) -> list[list[int]]:
        """Returns the devices for each segment that a session asks for."""

    def copy_refusal(self, command: CopyRange) -> Failed | None:
        """Why a copy must not be proposed now: rows of its source are gone, or still being counted; None if it may be."""


class AppliedLocks(Protocol):
    """File locks."""

    def conflicting_locks(self, session: int, command: SetLock) -> list[Lock]:
        """Locks that conflict with the wanted one; [] if it could be set now."""

    def take_unlocked(self) -> set[tuple[int, int]]:
        """(volume, ino) whose locks shrank since the last call: their waiters may try again."""


class AppliedResults(Protocol):
    """Stored replies, by which a request that is sent again is answered and not executed twice; and which commands may be proposed."""

    @property
    def level(self) -> int:
        """The level the cluster acts at: a command of a later one is refused."""

    @property
    def level_known(self) -> int:
        """The highest level at which this node can act: the cluster must not be given a higher one."""

    def stored_result(self, mount: int, unique: int) -> Reply | None:
        """The reply to a request that was applied already; None if it was not, or is acknowledged."""

    def results_held(self, mount: int) -> int:
        """Number of stored replies that the mount has not acknowledged."""

    @property
    def results_total(self) -> int:
        """The same, of all mounts."""

    def results_of_others(self, mount: int, unique: int) -> list[int]:
        """Ids of results of a node's earlier daemons, given an id of the present one (client.node_unique)."""


class AppliedMachine(AppliedEntries, AppliedSessions, AppliedLeases, AppliedFiles, AppliedLocks, AppliedResults, Protocol):
    """All of them: what `Replica.machine` is."""
