"""A profile of a mount: what it does while somebody looks, asked by an ioctl of its directory, and summed up by kind and place."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from awsomefsd.base.errors import Refused, Unavailable
from awsomefsd.fuse.access_log import ANSWER_BYTES_MAX, TAKE, LoggedRequest, LogPage, decode_answer

ASK_S = 0.2
PLACES_MAX = 1 << 16  # kinds and places that are told apart; inodes and processes that have a name
GONE = "gone"  # a program whose process had ended
Place = tuple[int, bytes]  # an inode, and a name in it if it is a directory whose entry was meant


@dataclass
class Sum:
    """What one kind of request did at one place.  `programs`: how many of them were of a process of that name."""

    count: int = 0
    errors: int = 0
    total_ns: int = 0
    most_ns: int = 0
    programs: dict[str, int] = field(default_factory=dict)
    uids: set[int] = field(default_factory=set)


class Profile:
    """The sums of a time.  `lost`: requests that were too many to be told, or at too many places."""

    def __init__(self, program_of: Callable[[int], str]) -> None:
        self._program_of = program_of
        self._programs: dict[int, str] = {}
        self.sums: dict[tuple[str, Place], Sum] = {}
        self.found: dict[int, Place] = {}  # where an inode was seen by name
        self.lost = 0
        self.count = 0

    def add(self, answer: LogPage) -> None:
        self.lost += answer.lost
        for entry in answer.entries:
            self._add(entry)

    def _add(self, entry: LoggedRequest) -> None:
        key = entry.operation, (entry.ino, entry.name)
        one = self.sums.get(key)
        if one is None:
            if len(self.sums) >= PLACES_MAX:
                self.lost += 1
                return
            one = self.sums[key] = Sum()
        if entry.found and len(self.found) < PLACES_MAX:
            self.found[entry.found] = entry.ino, entry.name
        self.count += 1
        one.count += 1
        one.errors += entry.errno != 0
        one.total_ns += entry.took_ns
        one.most_ns = max(one.most_ns, entry.took_ns)
        one.uids.add(entry.uid)
        program = self._programs.get(entry.pid)
        if program is None:
            program = self._program_of(entry.pid)
            if len(self._programs) < PLACES_MAX:
                self._programs[entry.pid] = program
        one.programs[program] = one.programs.get(program, 0) + 1

    def slowest(self, count: int) -> list[tuple[str, Place, Sum]]:
        """Returns those that took most time, all their requests together."""
        ordered = sorted(self.sums.items(), key=lambda item: -item[1].total_ns)
        return [(operation, place, one) for (operation, place), one in ordered[:count]]


def program_of(pid: int) -> str:
    """Returns the name of a process or thread; "" for the kernel's own requests, GONE for one that has ended."""
    if not pid:
        return ""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return GONE


def ask(fd: int) -> LogPage:
    """Takes from a directory of a mount what has ended since the last call.  Raises Refused, Unavailable, OSError."""
    buffer = bytearray(ANSWER_BYTES_MAX)
    try:
        length = fcntl.ioctl(fd, TAKE, buffer, True)
    except OSError as err:
        if err.errno == errno.EPERM:
            raise Refused("only root may look at what is done on a mount; nobody where root_squash or map_uid makes root another") from err
        if err.errno == errno.EBUSY:
            raise Unavailable("four profiles of this mount are being made already; try again when one has ended") from err
        if err.errno == errno.ENOTTY:
            raise Unavailable("the worker of this mount cannot tell: it is of an earlier build, or one of mount-pyfuse3") from err
        raise
    return decode_answer(buffer[:length])


def watch(fd: int, seconds: float, profile: Profile) -> None:
    """Adds what ends in that time.  Blocks; raises as `ask`."""
    ask(fd)
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(ASK_S, left))
        while True:
            answer = ask(fd)
            profile.add(answer)
            if not answer.more or time.monotonic() > until + seconds:
                break
