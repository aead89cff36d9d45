"""The forker forks mount workers off for the keeper (keeper/forker_client.py says why and how): loads a worker's modules, then only forks.

No thread is ever started here and no library that starts one is imported: a fork copies the thread that forks, and locks that others hold.
What is loaded is taken out of the garbage collector's sight, so that a collection in a worker does not write to pages that all share.

A build that was replaced in place must not live on in here: before each fork the program's files are looked at, and a forker whose files
have changed says so instead of forking.  The keeper then starts the worker as a process of its own, of the files as they are now.
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import sys
import threading
from pathlib import Path

from awsomefsd.base import program
from awsomefsd.keeper import wire as wire
from awsomefsd.worker import process

_NAME, _OTHER = b"\0worker\0", b"\0forker\0"
_ARG_START, _ARG_END = 45, 46  # fields of /proc/self/stat behind the name


def main(keeper_fd: int) -> int:
    """Until the keeper hangs up."""
    os.set_inheritable(keeper_fd, False)
    keeper = socket.socket(fileno=keeper_fd)
    keeper.setblocking(True)
    if threading.active_count() != 1 or len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a forker has one thread")
    loaded = _files()
    gc.collect()
    gc.freeze()
    wire.send(keeper, {"op": "loaded"})
    while (received := wire.receive(keeper)) is not None:
        message, fds = received
        try:
            if _files() != loaded:
                raise OSError("the program was replaced by another build")
            pid = _fork(keeper, str(message["log"]), fds[0])
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            wire.send(keeper, {"op": "failed", "why": str(error)})
            continue
        finally:
            wire.close_all(fds)
        wire.send(keeper, {"op": "forked", "pid": pid}, [pidfd])
        os.close(pidfd)
    return 0


def _files() -> dict[str, tuple[int, ...]]:
    """Returns which file each path of this program names now: device, inode, size and time of change."""
    paths = {program.command("worker")[0], *(getattr(module, "__file__", None) or "" for module in list(sys.modules.values()))}
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path == program.command("worker")[0] or path.startswith(program.HOME + os.sep):
            try:
                now = os.stat(path)
            except OSError:
                found[path] = (0,)
            else:
                found[path] = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
    return found


def _fork(keeper: socket.socket, log_path: str, fd: int) -> int:
    """The pid of a worker whose parent is gone already, so that it is the keeper's."""
    out, into = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0:
            _between(into, [keeper.fileno(), out, into], log_path, fd)
        os.close(into)
        into = -1
        said = os.read(out, 32)
        os.waitpid(between, 0)
        if not said:
            raise OSError("no second fork")
        return int(said)
    finally:
        wire.close_all([out, *([into] if into >= 0 else [])])


def _between(into: int, ours: list[int], log_path: str, fd: int) -> None:
    """Never returns."""
    try:
        pid = os.fork()
        if pid:
            os.write(into, b"%d" % pid)
            os._exit(0)
    except OSError:
        os._exit(1)
    code = 1
    try:
        wire.close_all(ours)
        _be_a_worker(log_path)
        code = process.main(fd)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_a_worker(log_path: str) -> None:
    """A session, a log and a command line of its own, as a worker has that was started the other way."""
    os.setsid()
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    found = ctypes.string_at(start, end - start).find(_OTHER)
    if found >= 0:
        ctypes.memmove(start + found, _NAME, len(_NAME))
