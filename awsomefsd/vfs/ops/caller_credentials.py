"""/proc is asked what a request does not say about its caller, while the caller waits for us.

The kernel gives fcntl's classic locks and open-file-description locks the same opcode and flags; only the system call tells them apart,
and /proc/TID/syscall shows it for a thread that sleeps in one.  It cannot be read for a caller in another pid namespace, nor by a worker
without root where Yama restricts ptrace: then a lock counts as a classic one (by far the more frequent), so a circle of
open-file-description locks may end with EDEADLK there instead of waiting for ever.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

F_OFD_SETLKW = 38
CAP_FSETID = 4
_SIGKILL = 1 << (signal.SIGKILL - 1)
_HARMLESS_SIGNALS = ("SIGCHLD", "SIGCONT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH")  # by default they end nothing
_HARMLESS = sum(1 << (signal.Signals[name] - 1) for name in _HARMLESS_SIGNALS)
_LOOKS_MAX = 20  # at a caller that has sent its request but does not sleep yet
_PAUSE_S = 0.0001


def waits_for_ofd_lock(tid: int) -> bool:
    """Says whether the thread sleeps in fcntl(fd, F_OFD_SETLKW, …)."""
    for _ in range(_LOOKS_MAX):
        words = _system_call(tid)
        if words[:1] != [b"running"]:
            return len(words) > 2 and int(words[2], 16) == F_OFD_SETLKW
        time.sleep(_PAUSE_S)
    return False


def loses_set_ids(uid: int, tid: int) -> bool:
    """Says whether setuid and setgid bits go when this caller changes bytes by fallocate(2) or copy_file_range(2).

    WRITE and OPEN say so themselves.  Root keeps them if it has CAP_FSETID; one whose capabilities cannot be read has it.  Others lose
    them, also with that capability: a server of NFS asks with the user id of its client, and /proc shows the server's own capabilities.
    """
    if uid:
        return True
    value = _status(tid, b"CapEff:")
    return bool(value) and not int(value, 16) & 1 << CAP_FSETID


def is_being_killed(tid: int) -> bool:
    """Says whether a signal waits for the thread that ends its process; False where that cannot be seen from here.

    SIGKILL alone would not do: the kernel adds that to another fatal signal only if no signal waits for the thread before.
    """
    fields = (b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:", b"SigCgt:")
    own, shared, blocked, ignored, caught = (int(_status(tid, name) or b"0", 16) for name in fields)
    return bool(own & _SIGKILL or (own | shared) & ~(blocked | ignored | caught | _HARMLESS))


def groups_of(tid: int) -> frozenset[int]:
    """Supplementary groups of a thread; none if it cannot be seen from here."""
    return frozenset(map(int, _status(tid, b"Groups:").split()))


def _status(tid: int, field: bytes) -> bytes:
    """The value of a field in /proc/TID/status; empty if it cannot be read."""
    if tid > 0:
        with suppress(OSError), open(f"/proc/{tid}/status", "rb") as lines:
            for line in lines:
                if line.startswith(field):
                    return line[len(field) :].strip()
    return b""


def _system_call(tid: int) -> list[bytes]:
    if tid <= 0:
        return []
    try:
        fd = os.open(f"/proc/{tid}/syscall", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return os.read(fd, 200).split()
    except OSError:
        return []
    finally:
        os.close(fd)
