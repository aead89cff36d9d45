"""A mount that decides names over rows of a real machine, for tests: it fetches what is missing, and hands its records over in batches."""

from __future__ import annotations

from typing import Any

from awsomefsd.base.levels import LEVEL
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.held import NamesHolder
from awsomefsd.vfs.state.held_names import HeldNames
from awsomefsd.vfs.state.overlay_state import Missing
from tests.rigs.machine_driver import Drive


class Holding:
    """The session of a Drive as a holder.  `records`: (sequence, command, time, reply), decided and not applied."""

    def __init__(self, drive: Drive, **fields: Any) -> None:
        self.drive = drive
        self.names = HeldNames(NamesHolder(drive.volume, drive.mount, drive.session, drive.epoch, LEVEL, 1), **fields)
        self.records: list[tuple[int, Any, int, m.Reply]] = []
        self.sequence = self.asked = 0
        volume = drive.machine.state.volume(drive.volume)
        assert volume is not None
        self.next_ino = volume.next_ino

    def fetch(self, missing: Missing) -> None:
        """Asks for all that is missing."""
        assert not any(map(self.names.rows.knows, missing.keys)), "asked for what is known"
        assert not self.names.rows.changed, "an attempt left a change"
        self.asked += 1
        drive, question = self.drive, self.names.rows.ask()
        wanted = [key for key in missing.keys if not missing.group or not key.startswith(missing.group)]
        body = m.GetRows(drive.session, drive.epoch, drive.volume, wanted, missing.group)
        reply: m.FoundRows = drive.ask(body)
        found = list(reply.rows)
        while reply.more:
            after = max((key for key, _ in found if key.startswith(missing.group)), default=b"")
            reply = drive.ask(m.GetRows(drive.session, drive.epoch, drive.volume, [], missing.group, after))
            found += reply.rows
        self.names.rows.learn(question, found, missing.group)

    def decide(self, command: Any) -> Any:
        """Decides a command, with what has to be fetched for it, and keeps its record.  Each fetch brings the rule further."""
        self.drive.now += 1_000
        for _ in range(20):
            try:
                reply = self.names.decide(command, self.drive.now, self.next_ino)
            except Missing as missing:
                self.fetch(missing)
                continue
            break
        else:
            raise AssertionError(f"{command} never has its rows")
        if self.names.rows.changed:
            self.sequence += 1
            self.names.keep(self.sequence)
        made = getattr(reply, "created", False) and reply.attr.ino == self.next_ino
        self.next_ino += made or getattr(reply, "whiteout", None) is not None
        self.records.append((self.sequence, command, self.drive.now, reply))
        return reply

    def ship(self, count: int) -> list[tuple[Any, m.Reply, m.Reply]]:
        """The machine does the oldest `count` commands, as they are today.  Returns (command, reply here, reply there) of each."""
        shipped, self.records = self.records[:count], self.records[count:]
        done = [(command, reply, self.drive.apply(command, time_ns=time_ns)) for _, command, time_ns, reply in shipped]
        if shipped:
            self.names.rows.applied(shipped[-1][0])
        return done
