"""A FUSE mount that takes requests and answers none, and a program that runs beside it.

Whoever asks such a mount cannot be ended, not even by SIGKILL, until its connection is gone.  So all of it is in a mount namespace of its
own, and a process that nobody asks anything holds the connection: with it the mount goes, however the test ends.

Run as a program: DIRECTORY FSTYPE LIMIT_S CODE.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

ENDLESS = 99  # the exit status if the program did not end
_ROOT = Path(__file__).resolve().parents[2]
_INIT = 26
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x20000, 1 << 14, 1 << 18, 2


def run_beside(directory: Path, fstype: str, code: str, limit_s: float = 120.0) -> tuple[int, str]:
    """Runs Python `code` beside a silent mount at `directory`.  Returns its exit status (ENDLESS: it hung) and what it printed."""
    words = [sys.executable, __file__, str(directory), fstype, str(limit_s), code]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=_ROOT)
    return done.returncode, done.stdout


def _call(answer: int) -> None:
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _take(fd: int) -> None:
    """Answers INIT with version 7.31, and takes all that comes after it."""
    with suppress(OSError):
        while raw := os.read(fd, 1 << 20):
            _, number, unique = struct.unpack_from("<IIQ", raw)
            if number == _INIT:
                body = struct.pack("<IIIIHHI", 7, 31, 1 << 16, 0, 12, 10, 1 << 16).ljust(64, b"\0")
                os.write(fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)


def _main(directory: str, fstype: str, limit_s: str, code: str) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.unshare(_CLONE_NEWNS))
    _call(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    _call(libc.mount(b"silent", directory.encode(), fstype.encode(), ctypes.c_ulong(0), options))
    threading.Thread(target=_take, args=(fd,), daemon=True).start()
    beside = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
    try:
        return beside.wait(float(limit_s))
    except subprocess.TimeoutExpired:
        beside.kill()
        return ENDLESS
    finally:
        libc.umount2(directory.encode(), _MNT_DETACH)


if __name__ == "__main__":
    os._exit(_main(*sys.argv[1:]))  # closes the connection: who still waits for it gets an error
