"""A mount decides names, attributes and extended attributes of what it holds: the leader's rules over the rows that it has here.

Deciding, storing the record and showing the change are one step under the mount's lock: `decide`, then `keep` once the record is stored
whole, or `abandon`.  Between two records nothing is half done, so no record builds on one that may not be.
"""

from __future__ import annotations

from typing import Any

from awsomefsd.base.limits import OVERLAY_ROWS_MAX
from awsomefsd.base.types import Attr
from awsomefsd.meta.api.commands import Command, DecidedRecord
from awsomefsd.meta.api.messages import Failed, Reply
from awsomefsd.meta.machine.held import HeldRules, NamesHolder, first_keys, own_rows
from awsomefsd.meta.machine.inodes import attr_of
from awsomefsd.meta.state import governed, keys, rows
from awsomefsd.vfs.state.overlay_state import Missing, OverlayState

DIRECTORY_FETCHED_MAX = 4_096  # names of a directory that are asked for together
GROUPS_THAT_FIT = 8  # directories fetched whole that the bound of rows has room for: a rename reads two, and their inodes
DIRECTORIES_MISSED_MAX = 4_096
_FIRST_STAMP = 1 << 63  # above all hybrid times: no row that the leader has made carries such a stamp


class HeldNames:
    """The rows that one session of a mount holds, and the rules over them.  Used under the mount's lock; nothing blocks."""

    def __init__(self, holder: NamesHolder, rows_max: int = OVERLAY_ROWS_MAX) -> None:
        self.rows = OverlayState(holder.volume, own_rows(holder), rows_max)
        self._rules = HeldRules(self.rows, holder)
        self._stamp = _FIRST_STAMP
        self._made = 0
        self._learned = self.rows.learned
        self._volume = holder.volume
        self._misses: dict[bytes, int] = {}  # directories in which names were asked for one by one, or listed

    def decide(self, command: Command, time_ns: int, number: int = 0) -> Reply:
        """Returns the reply, a refusal too.  If `rows.changed` then, `keep` or `abandon` follows; else nothing is to be recorded.

        `time_ns`: later than what was shown of the inodes touched.  `number`: for the inode that the command may make.  Raises Missing for
        rows to be asked for (then again, as if nothing had been), NoNumber.
        """
        self._stamp += 1
        self._catch_up()
        try:
            reply, self._made = self._rules.decide(command, time_ns, self._stamp, number)
        except Missing as missing:
            self.abandon()
            first = [key for key in first_keys(command) if not self.rows.knows(key)]
            raise self._with_group(Missing(dict.fromkeys([*missing.keys, *first]), missing.group)) from None
        except BaseException:
            self.abandon()
            raise
        if isinstance(reply, Failed):
            self.abandon()
        return reply

    def ask(self, body: Any) -> Reply:
        """Returns the answer to one of held.QUESTIONS, a refusal too.  Raises Missing for rows to be asked for."""
        try:
            return self.ask_rows(body)
        except Missing as missing:
            raise self._with_group(missing) from None

    def ask_rows(self, body: Any) -> Reply:
        """Returns the answer as `ask`, where nobody is going to ask for what is missing."""
        self._catch_up()
        return self._rules.ask(body)

    def check_of(self, record: DecidedRecord, touched: list[int]) -> int:
        """Returns the checksum of what the running record touches.  Raises Missing; then the record is to be abandoned."""
        return self._rules.check_of(record, touched)

    def attr(self, ino: int) -> Attr | None:
        """Returns the attributes of an inode, if its row is known."""
        raw = self.rows.known_inode(ino)
        return None if raw is None else attr_of(ino, rows.INODE.loads(raw))

    def _with_group(self, missing: Missing) -> Missing:
        """Adds all names of a directory in which names are missed again and again, if they are not too many."""
        if missing.group:
            return missing
        for key in missing.keys:
            if keys.kind_of(key)[2] != keys.DENTRY:
                continue
            group = key[: governed.GROUP_BYTES]
            self._missed(group)
            raw = self.rows.known_inode(keys.first_u64(key))
            fetched_max = min(DIRECTORY_FETCHED_MAX, self.rows.rows_max // GROUPS_THAT_FIT)
            if self._misses[group] > 1 and raw is not None and rows.INODE.loads(raw).entries <= fetched_max:
                return Missing(missing.keys, group)
        return missing

    def listed(self, ino: int) -> None:
        """The leader lists this directory: somebody looks at all its names, so the next that is missed is asked for with the rest."""
        self._missed(keys.dentry(self._volume, ino, b""))

    def _missed(self, group: bytes) -> None:
        if len(self._misses) > DIRECTORIES_MISSED_MAX:
            self._misses.clear()
        self._misses[group] = self._misses.get(group, 0) + 1

    def _catch_up(self) -> None:
        if self._learned != self.rows.learned:
            self._rules.forget()
            self._learned = self.rows.learned

    @property
    def made(self) -> int:
        """The inode that the running record makes; 0: none."""
        return self._made

    def keep(self, sequence: int) -> None:
        """The record is stored whole under that sequence: its change is seen from now on."""
        self.rows.keep(sequence, self._made)

    def abandon(self) -> None:
        """The record could not be stored: nothing has happened."""
        self.rows.abandon()
        self._rules.forget()
