"""A FUSE server over DictFs in a process of its own, and the mount it serves, held by the test as the keeper would.

Run as a program it gets one JSON argument and serves inherited descriptors; on stdin it takes one command a line ("gate": end the wait,
"facts": say what was executed) and answers each with a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from awsomefsd.base import shm
from awsomefsd.fuse import control_area, parked_requests, slots
from awsomefsd.fuse.negotiate import Overrides
from awsomefsd.fuse.notify import Notifier
from awsomefsd.fuse.session import Session
from awsomefsd.keeper.mount_syscalls import MNT_DETACH, mount_fuse, topmost, umount
from awsomefsd.vfs.ops.direct_writes import DirectWrites
from tests.unit.fuse.dict_filesystem import DictFs

PARK_BYTES = 1 << 20
MNT_FORCE = 1
LIMIT_S = 60.0


class Served:
    """A mount whose server can be killed and replaced."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.options = options
        self.workers = 0
        self.process: subprocess.Popen[str] | None = None
        self.fds = {
            "control": shm.create_memfd("control", control_area.CONTROL_BYTES),
            "slots": shm.create_memfd("slots", slots.required_bytes()),
            "park": shm.create_memfd("park", parked_requests.required_bytes(PARK_BYTES)),
            "fuse": os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC),
        }
        mount_fuse(self.fds["fuse"], str(directory), "test", ["nosuid", "nodev"], "default_permissions,allow_other")

    def start(self, signal: int | None = None) -> None:
        """A worker, the successor of one that ended by `signal`; returns when it serves."""
        self.workers += 1
        order = {"fds": self.fds, "worker": self.workers, "previous": {"signal": signal, "exited": True}, **self.options}
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(order)], pass_fds=list(self.fds.values()),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == {"serving": True}

    def _line(self) -> Any:
        assert self.process is not None and self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def say(self, command: str) -> Any:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._line()

    def await_fact(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while not holds(facts := self.say("facts")):
            assert time.monotonic() < deadline, facts
            time.sleep(0.005)
        return facts  # type: ignore[no-any-return]

    def kill(self) -> int:
        """SIGKILL; returns when it is gone."""
        assert self.process is not None
        self.process.kill()
        return self.ended()

    def ended(self) -> int:
        """Wait for the worker's end; its signal."""
        assert self.process is not None
        status = self.process.wait(LIMIT_S)
        self._close_pipes()
        assert status < 0, f"the server ended with {status}"
        return -status

    def _close_pipes(self) -> None:
        assert self.process is not None
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        """Abort the connection, so that no caller hangs, detach, end the worker."""
        if topmost(str(self.directory)) is not None:
            with contextlib.suppress(OSError):
                umount(str(self.directory), MNT_FORCE)  # aborts, and is EBUSY where somebody still uses it
        if topmost(str(self.directory)) is not None:
            umount(str(self.directory), MNT_DETACH)
        if self.process is not None:
            self.process.kill()
            self.process.wait(LIMIT_S)
            self._close_pipes()
        for fd in self.fds.values():
            os.close(fd)


class Caller(Future[Any]):
    """What a call in process `pid` gives."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid


def in_process(call: Callable[..., Any], *args: Any) -> Caller:
    """What touches a mount may hang with it, and a process that has files of a mount open must not start its server: between fork and
    exec the child closes them, which asks the server that is not there yet.  So callers are processes of their own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 3)
            os.closerange(4, 1024)  # the descriptors of the mount among them
            try:
                answer = pickle.dumps((call(*args), None))
            except BaseException as err:
                answer = pickle.dumps((None, err))
            with os.fdopen(3, "wb") as pipe:
                pipe.write(answer)
        finally:
            os._exit(0)
    os.close(writer)
    future = Caller(pid)

    def collect() -> None:
        with os.fdopen(reader, "rb") as pipe:
            value, error = pickle.loads(pipe.read() or pickle.dumps((None, RuntimeError("the caller died"))))
        os.waitpid(pid, 0)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    threading.Thread(target=collect, daemon=True).start()
    return future


def run(call: Callable[..., Any], *args: Any) -> Any:
    return in_process(call, *args).result(LIMIT_S)


def drop_pages_for(fs: DictFs, fd: int) -> None:
    """Direct writes take the pages of their ranges from the kernel, as on a mount."""
    caches = SimpleNamespace(filled=set(), kernel=None, leases=None, drop_pages=Notifier(fd).drop_pages)
    dirty = SimpleNamespace(answered=lambda unique: None)
    mount: Any = SimpleNamespace(caches=caches, buffered=SimpleNamespace(dirty=dirty))
    direct = DirectWrites(mount, fs.read, fs.write)
    fs.read, fs.write = direct.read, direct.write  # type: ignore[method-assign]


def main(order: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.ERROR)
    fds = order["fds"]
    fs = DictFs(order["worker"], order.get("late_files", 0))
    if order.get("drops_pages"):
        drop_pages_for(fs, fds["fuse"])
    fresh = order["worker"] == 1
    area = slots.SlotArea(shm.map_memfd(fds["slots"]), fresh=fresh)
    area.prefault()
    session = Session(
        fds["fuse"], fs, control_area.ControlArea(shm.map_memfd(fds["control"]), fresh=fresh), area,
        parked_requests.ParkArea(shm.map_memfd(fds["park"]), fresh=fresh, recall_bytes=0),
        fresh=fresh, overrides=Overrides.parse(order.get("pins", "")), previous=order["previous"],
    )  # fmt: skip
    session.recover()
    session.start()
    print(json.dumps({"serving": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "gate":
            fs.gate.fire()
        negotiated = session.negotiated
        print(json.dumps({
            "executed": fs.executed, "replied": fs.replied_to, "waiting": fs.waiting.is_set(), "interrupted": fs.interrupted,
            "negotiated": negotiated and negotiated._asdict(), "parked": len(session.park), "inherited": session.inherited is not None,
            "counters": session.control.counters(), "ended": session.wait(0),
        }), flush=True)  # fmt: skip
    session.wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
