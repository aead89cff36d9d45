"""Mounts without root: fusermount3 (setuid, of the package fuse3) opens /dev/fuse, calls mount(2) and sends the descriptor back.

It sends the descriptor over the socket whose number stands in _FUSE_COMMFD, and ends; nothing of libfuse stays.  The order is mount first,
descriptor second, and a keeper that dies in between leaves a dead mount, as with root (requests.py).  It adds nosuid and nodev.  It takes
only the flags that it knows; others are refused here by name.  `mount` and `umount` block, and run in a chore's child.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess

PROGRAM = "fusermount3"
SUBTYPE = "awsomefs"
_FLAGS = frozenset((
    "ro", "rw", "nosuid", "nodev", "noexec", "exec", "sync", "async", "dirsync", "noatime", "atime", "nosymfollow", "symfollow",
))  # fmt: skip
_DEFAULTS = frozenset(("defaults", "relatime"))  # what the kernel does anyway


def needed() -> bool:
    """Returns True if this process is not root, and so needs fusermount3 to mount."""
    return os.geteuid() != 0


def options_of(options: list[str], fuse_options: str, source: str) -> str:
    """Returns the -o argument of fusermount3.  Raises OSError(EPERM), which names an option that only root may use."""
    words = [f"fsname={source}".replace("\\", "\\\\").replace(",", "\\,"), f"subtype={SUBTYPE}"]
    for option in options:
        if option in _DEFAULTS or option.startswith(("x-", "X-", "comment=")):
            continue
        if option not in _FLAGS:
            raise OSError(errno.EPERM, f"mount option {option!r} needs root")
        words.append(option)
    for word in filter(None, fuse_options.split(",")):
        if word.startswith(("user_id=", "group_id=")):
            raise OSError(errno.EPERM, f"mount option {word!r} needs root; without root a mount belongs to the user who made it")
        words.append(word)
    return ",".join(words)


def mount(comm_fd: int, dir: str, source: str, options: list[str], fuse_options: str) -> None:
    """Mounts at `dir`; when it returns, the descriptor of the connection waits in the other end of `comm_fd`.

    Blocks.  Raises OSError: ENOENT without fusermount3, EPERM or EBUSY with its words.
    """
    words = options_of(options, fuse_options, source)
    _run(["-o", words, "--", dir], comm_fd)


def umount(dir: str, lazy: bool) -> None:
    """Unmounts `dir`, which has to be a mount of the caller; `lazy` detaches a busy one.  Blocks.  Raises OSError as `mount`."""
    _run(["-u", *(["-z"] if lazy else []), "--", dir])


def received(sock: socket.socket) -> int:
    """Returns the descriptor that fusermount3 has sent, without waiting; the caller owns it.  Raises OSError(EIO) if there is none."""
    sock.setblocking(False)
    try:
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
    except BlockingIOError:
        fds = []
    if not fds:
        raise OSError(errno.EIO, f"{PROGRAM} sent no descriptor")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _run(words: list[str], comm_fd: int = -1) -> None:
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/bin:/bin:/usr/sbin:/sbin")
    if program is None:
        raise OSError(errno.ENOENT, f"without root a mount needs {PROGRAM}; install the package fuse3, or run as root")
    keep = [comm_fd] if comm_fd >= 0 else []
    env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "_FUSE_COMMFD": str(comm_fd)}
    done = subprocess.run([program, *words], pass_fds=keep, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(word for word in done.stderr.split() if not word.endswith(f"{PROGRAM}:")) or f"exit status {done.returncode}"
        raise OSError(errno.EBUSY if "busy" in said.lower() else errno.EPERM, f"{PROGRAM}: {said}")
