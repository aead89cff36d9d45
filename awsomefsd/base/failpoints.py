"""Failpoints are named places where tests make a process die, fail or wait: before and after every step that others rely on.

A failpoint is `hit(name)` in the code and one line in POINTS.  While failpoints are off (always, outside tests), a hit costs one
comparison.  A process reads its orders once, when it starts:

    AWSOMEFSD_FAILPOINTS       name=kill | name=error:EIO | name=delay:MS | name=count, each with @N for the Nth hit only,
                               separated by commas
    AWSOMEFSD_FAILPOINTS_FILE  a file that all processes of a node share (made by `FailpointControl`): hits of all points are counted
                               there, and `arm` makes the Nth hit from now on, in any process, its last one

A kill is SIGKILL to the own process: nothing is flushed, no handler runs.  A point that was armed in the file fires once; one named in the
environment fires in every process, a successor too.  Counts in the file are exact unless two processes hit one point at the same moment.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import time
from pathlib import Path

# name -> what brings a process there: the load, a daemon's start, a worker's take-over, a keeper's return, the start of a successor (a kill
# of the keeper there leaves the mount to its holders, as one of keeper and worker at once), an upgrade of the keeper, an unmount, a scrub,
# collection, a voter's state that is sent to another one, a write on a shared mount, nodes that found a cluster, a segment server that
# attaches a device
POINTS: dict[str, str] = {
    "journal.write.before": "load",
    "journal.write.after": "load",
    "journal.sync.before": "load",
    "journal.sync.after": "load",
    "journal.file.before": "load",
    "journal.file.named": "load",
    "journal.file.after": "load",
    "journal.drop.before": "load",
    "journal.drop.after": "load",
    "journal.recover.before": "daemon",
    "journal.recover.after": "daemon",
    "log.apply.before": "load",
    "log.apply.after": "load",
    "log.replay.before": "daemon",
    "log.replay.after": "daemon",
    "store.flush.before": "load",
    "store.commit.before": "load",
    "store.commit.after": "load",
    "service.listen.after": "daemon",
    "service.answer.before": "load",
    "service.answer.after": "load",
    "request.execute.before": "load",
    "request.reply.stored": "load",
    "request.reply.sent": "load",
    "dirty.store.before": "load",
    "dirty.store.after": "load",
    "dirty.clean.before": "load",
    "dirty.clean.after": "load",
    "flush.write.before": "load",
    "flush.write.after": "load",
    "flush.commit.before": "load",
    "flush.commit.after": "load",
    "segment.lease.before": "load",
    "segment.lease.after": "load",
    "segment.footer.before": "load",
    "segment.footer.after": "load",
    "device.flush.before": "load",
    "device.flush.after": "load",
    "reservation.grant.before": "load",
    "reservation.grant.after": "load",
    "truncate.entry.before": "load",
    "truncate.entry.after": "load",
    "fsync.before": "load",
    "fsync.after": "load",
    "checkpoint.tail.before": "load",
    "checkpoint.tail.after": "load",
    "checkpoint.copy.before": "daemon",
    "checkpoint.copy.after": "daemon",
    "checkpoint.flush.before": "daemon",
    "checkpoint.flush.after": "daemon",
    "checkpoint.final.before": "daemon",
    "checkpoint.final.after": "daemon",
    "checkpoint.switch.before": "daemon",
    "checkpoint.switch.after": "daemon",
    "scrub.save.before": "scrub",
    "scrub.save.after": "scrub",
    "scrub.copy.before": "scrub",
    "scrub.copy.after": "scrub",
    "scrub.segment.before": "scrub",
    "collect.write.before": "collect",
    "collect.write.after": "collect",
    "collect.relocate.before": "collect",
    "collect.relocate.after": "collect",
    "collect.seal.before": "collect",
    "collect.seal.after": "collect",
    "snapshot.copy.before": "snapshot",
    "snapshot.copy.after": "snapshot",
    "snapshot.sync.before": "snapshot",
    "snapshot.sync.after": "snapshot",
    "snapshot.ready.before": "snapshot",
    "snapshot.ready.after": "snapshot",
    "snapshot.replace.before": "snapshot",
    "snapshot.replace.removed": "snapshot",
    "snapshot.replace.after": "snapshot",
    "service.grow.before": "snapshot",
    "service.grow.proposed": "snapshot",
    "service.grow.committed": "snapshot",
    "exchange.install.before": "snapshot",
    "exchange.install.after": "snapshot",
    "takeover.session.opened": "worker",
    "takeover.records.found": "worker",
    "takeover.records.flushed": "worker",
    "takeover.requests.repeated": "worker",
    "takeover.ready": "worker",
    "keeper.death.seen": "spawn",
    "keeper.spawn.before": "spawn",
    "keeper.spawn.after": "spawn",
    "keeper.start.before": "spawn",
    "keeper.adopt.before": "keeper",
    "keeper.adopt.after": "keeper",
    "keeper.exec.before": "upgrade",
    "keeper.exec.after": "upgrade",
    "unmount.flush.before": "unmount",
    "unmount.flush.after": "unmount",
    "segment.seal.before": "unmount",
    "segment.seal.after": "unmount",
    "unmount.session.ended": "unmount",
    "through.write.before": "shared",
    "through.write.after": "shared",
    "held.store.before": "shared",
    "held.store.after": "shared",
    "recall.flush.before": "shared",
    "recall.flush.after": "shared",
    "founding.store.before": "founding",
    "founding.store.after": "founding",
    "founding.send.before": "founding",
    "founding.ask.before": "founding",
    "founding.ask.after": "founding",
    "founding.identity.before": "founding",
    "founding.identity.after": "founding",
    "founding.token.before": "founding",
    "founding.token.after": "founding",
    "device.attach.before": "attach",
    "device.attach.locked": "attach",
    "device.attach.identified": "attach",
    "device.attach.compared": "attach",
    "device.attach.looked": "attach",
    "device.attach.raised": "attach",
    "device.attach.after": "attach",
}

_NAMES = list(POINTS)
_RECORD = struct.Struct("<QQQQ")  # hits, fires at so many hits from now (0: not armed), times fired, who died last
FILE_BYTES = len(_NAMES) * _RECORD.size


class _Action:
    """The order of one failpoint; with `nth` 0 it is carried out at every hit."""

    def __init__(self, kind: str, value: int, nth: int) -> None:
        self.kind, self.value, self.nth = kind, value, nth
        self.hits = 0

    def run(self, name: str) -> None:
        self.hits += 1
        if self.nth and self.hits != self.nth:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "error":
            raise OSError(self.value, f"failpoint {name}")
        elif self.kind == "delay":
            time.sleep(self.value / 1_000)


class _Points:
    def __init__(self, actions: dict[str, _Action], memory: mmap.mmap | None) -> None:
        self._actions = actions
        self._memory = memory

    def hit(self, name: str) -> None:
        if self._memory is not None:
            self._count(self._memory, _NAMES.index(name) * _RECORD.size)
        action = self._actions.get(name)
        if action is not None:
            action.run(name)

    def _count(self, memory: mmap.mmap, offset: int) -> None:
        hits, left, fired, who = _RECORD.unpack_from(memory, offset)
        dies = left == 1
        _RECORD.pack_into(memory, offset, hits + 1, max(left - 1, 0), fired + dies, os.getpid() if dies else who)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)


_on: _Points | None = None


def hit(name: str) -> None:
    """Passes a failpoint: does nothing, or kills this process, raises OSError, or sleeps, as the test ordered."""
    if _on is not None:
        _on.hit(name)


def parse(text: str) -> dict[str, _Action]:
    """Returns the actions by failpoint.  Raises ValueError for an unknown name or action: a test with one proves nothing."""
    actions = {}
    for part in filter(None, text.split(",")):
        name, _, what = part.partition("=")
        kind, _, value = what.partition("@")[0].partition(":")
        nth = int(what.partition("@")[2] or 0)
        if name not in POINTS or kind not in ("kill", "error", "delay", "count"):
            raise ValueError(f"AWSOMEFSD_FAILPOINTS: {part!r} does not name a failpoint and an action")
        number = int(getattr(errno, value)) if kind == "error" else int(value or 0)
        actions[name] = _Action(kind, number, nth)
    return actions


def configure(text: str, path: str) -> None:
    """Arms failpoints as the two variables of the environment say.  Raises ValueError, as `parse`."""
    global _on
    memory = None
    if path:
        with open(path, "r+b") as file:
            memory = mmap.mmap(file.fileno(), FILE_BYTES)
    _on = _Points(parse(text), memory) if text or path else None


class FailpointControl:
    """The test's side of the shared file: it arms failpoints, and reads how often they were hit.  Made before the processes start."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(FILE_BYTES))
        self.path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), FILE_BYTES)

    def arm(self, name: str, nth: int) -> None:
        """Makes the `nth` hit from now on kill its process; 0 disarms the point.  Raises ValueError for an unknown name."""
        offset = _NAMES.index(name) * _RECORD.size
        hits, _, fired, who = _RECORD.unpack_from(self._memory, offset)
        _RECORD.pack_into(self._memory, offset, hits, nth, fired, who)

    def hits(self, name: str) -> int:
        """Returns how often all processes have passed the point."""
        return int(_RECORD.unpack_from(self._memory, _NAMES.index(name) * _RECORD.size)[0])

    def fired(self, name: str) -> int:
        """Returns how often the point has killed a process."""
        return int(_RECORD.unpack_from(self._memory, _NAMES.index(name) * _RECORD.size)[2])

    def died(self, name: str) -> int:
        """Returns the pid of the process that this point killed last; 0 for none."""
        return int(_RECORD.unpack_from(self._memory, _NAMES.index(name) * _RECORD.size)[3])

    def close(self) -> None:
        self._memory.close()


configure(os.environ.get("AWSOMEFSD_FAILPOINTS", ""), os.environ.get("AWSOMEFSD_FAILPOINTS_FILE", ""))
