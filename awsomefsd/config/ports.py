"""The processes that listen at a TCP port of this host, and words for an address that cannot be had.

Reads /proc, and needs root to see the processes of others.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LISTENS = "0A"


def users(port: int) -> list[tuple[int, str]]:
    """Returns (pid, program) of the processes that listen at a TCP port in this network namespace, as far as this process may see."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if sockets else ():
        if any(target in sockets for target in _targets(pid)):
            found.append((pid, _command(pid)))
    return found


def taken(setting: str, address: str, err: OSError) -> str:
    """Returns one line for an address of a setting at which nobody can listen: the setting, the reason, and who has the port."""
    why = os.strerror(err.errno) if err.errno else str(err)
    text = f"{setting} = {address!r}: {why}"
    port = address.rpartition(":")[2]
    if err.errno == errno.EADDRINUSE and port.isdecimal():
        text += f"; {holder(int(port))}"
    return text


def holder(port: int) -> str:
    """Returns who listens at a port in words, "port 7440 is used by a process that is not seen from here" where that is not known."""
    known = [f"{command} (pid {pid})" for pid, command in users(port)]
    return f"port {port} is used by {' and '.join(known) or 'a process that is not seen from here'}"


def _inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError), open(f"/proc/self/net/{table}") as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _targets(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(entry.path)


def _command(pid: int) -> str:
    """Returns what a process was started as, at most 80 characters, without arguments: they may hold secrets, and this goes to logs."""
    with suppress(OSError):
        word = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace")
        return word if len(word) <= 80 else f"{word[:79]}…"
    return "a process"
