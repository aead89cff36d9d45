"""One mount in the keeper: its descriptors, its worker, and the successor of a worker that died.

Invariant: at most one process reads the FUSE descriptor.  A successor starts only after the pidfd of its predecessor has
fired; a worker that hangs in the kernel is not replaced, its pidfd stays silent.  While no worker lives, requests wait in the
kernel's queue and in the slots, and nothing of them is lost: the keeper holds every descriptor.

`fresh` stays true until a worker has been ready, because a worker reads no request before it has said so.  A worker that
unmounts says bye before it exits; both may reach us in one turn, so its messages are read before its death is judged.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from awsomefsd.base import program
from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import MIB, WORKER_DEATHS_BEFORE_BACKOFF
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.forker_client import Forker
from awsomefsd.keeper.holders import Holders
from awsomefsd.keeper.loop import Loop, Promise, Sequence_
from awsomefsd.keeper.mount_record import RECORD, MountRecord, create_record
from awsomefsd.keeper.mount_syscalls import set_read_ahead
from awsomefsd.keeper.process import WorkerProcess, backoff_ms, exit_status, start_time_of, still_alive
from awsomefsd.keeper.wire import Message, say

log = logging.getLogger("awsomefsd.keeper")

BYE_EXIT_MS_MAX = 5_000  # from bye to the exit; longer, and it is killed
WORKER_LOG_BYTES_MAX = 4 * MIB  # of one mount; over that size the file is copied to .1 and emptied (its writer has it open)
LOG_LOOK_MS = 30_000
LAST_LINES_BYTES = 2_000
STANDBY_LOADED_MS_MAX = 60_000  # from the start of a standby to its word that it waits
STANDBY_FLUSH_MS_MAX = 10_000  # of the flush before a replacement, which the standby then need not do
STANDBY_SERVES_MS_MAX = 60_000
STANDBY_LOOK_MS = 5
LOCK_LOOK_MS = 50


class WorkerFailed(Exception):
    """The first worker of a mount ended before it was ready."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of the keeper that a mount needs."""

    loop: Loop
    socket_path: Path
    log_dir: Path
    forker: Forker
    holders: Holders
    dropped: Callable[[Mount], None]


class Mount:
    """One mount of the keeper.  The loop's thread uses it.

    `spec` is the mount request as it was checked: mount, dir, source, options, fuse_options, readahead_kib, argv, env, config, device.
    `fds` are ordered: "fuse" first, then the memfds by name, among them the record (mount_record.py).  The other values are given for a
    mount that the program before had.
    """

    def __init__(
        self, surroundings: Surroundings, spec: Message, fds: dict[str, int], *, workers: int = 0, deaths: int = 0,
        previous: Message | None = None, was_ready: bool = False, detached: bool = False,
    ) -> None:  # fmt: skip
        self._in = surroundings
        self._loop = surroundings.loop
        self.spec = spec
        self.fds = fds
        if RECORD not in fds:  # an earlier build made this mount
            fds[RECORD] = create_record()
        self._record = MountRecord(fds[RECORD])
        self.worker: WorkerProcess | None = None
        self.workers = workers
        self.deaths = deaths  # since one answered
        self._standby: WorkerProcess | None = None  # loaded, or loading; reads nothing
        self._standby_spec: Message = {}  # argv and env it was started with
        self._standby_takes_over = False
        self.previous = previous
        self.was_ready = self._record.served()
        if was_ready:
            self._set_ready()
        self.busy = False  # a umount runs
        self.forced = False  # no successor any more
        self.detached = detached  # taken out of our tree, still mounted elsewhere
        self.ready = Promise()  # of the first worker
        self.gone = Promise()  # value: whether everything was flushed
        self._flushes: dict[str, tuple[Promise, bool]] = {}  # with `tell`, by the request's id
        self._loop.later(LOG_LOOK_MS, self._bound_log)

    @property
    def id(self) -> str:
        return str(self.spec["mount"])

    @property
    def dir(self) -> str:
        return str(self.spec["dir"])

    @property
    def device(self) -> str:
        return str(self.spec["device"])

    @property
    def log_path(self) -> Path:
        return self._in.log_dir / f"worker-{self.id}.log"

    # --- start and adoption ------------------------------------------------------------------------------------------------

    def start_worker(self) -> None:
        """Starts the first worker or a successor on the same descriptors; a start that fails counts as a death."""
        standby = self._loaded_standby()
        try:
            worker = standby or self._in.forker.start(self.spec["argv"], self.spec["env"], self.log_path)
            if standby is None:
                self._attend(worker)
            self.worker = worker
            assert worker.sock is not None
            self.workers += 1
            self._note()  # before it can have the descriptors: whoever reads the record then knows of this worker
            hit("keeper.start.before")
            wire.send(worker.sock, self._start_message(), list(self.fds.values()))
        except (OSError, ProtocolError) as error:  # no descriptors, processes or memory left, too: it is tried again
            say(log, logging.ERROR, "worker not started", mount=self.id, argv=self.spec["argv"][0], why=error)
            if self.worker is None:
                self._after_death(failed=f"{self.spec['argv'][0]}: {error}")
            else:
                self.worker.kill()  # it would wait for ever; its death is seen, and it gets a successor
        else:
            say(log, logging.INFO, "worker started", mount=self.id, worker=worker.pid, count=self.workers, previous=self.previous)

    def _note(self) -> None:
        """Writes the record, and has the mount held.  Raises OSError and ProtocolError."""
        worker = self.worker
        started = None if worker is None else {"pid": worker.pid, "started": start_time_of(worker.pid)}
        self._record.write({"spec": self.spec, "workers": self.workers, "detached": self.detached, "worker": started})
        self._in.holders.keep(self)

    def _bound_log(self) -> None:
        if self.gone.done:
            return
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > WORKER_LOG_BYTES_MAX:
                shutil.copyfile(self.log_path, self.log_path.with_suffix(".log.1"))
                os.truncate(self.log_path, 0)
        self._loop.later(LOG_LOOK_MS, self._bound_log)

    def _start_message(self) -> Message:
        return {
            "op": "start",
            "mount": self.id,
            "dir": self.dir,
            "worker": self.workers,
            "fresh": not self.was_ready,
            "previous": self.previous,
            "config": self.spec["config"],
            "fds": list(self.fds),
            "keeper": str(self._in.socket_path),
            "needs": True,  # we look at the record's word of that name; a worker of ours stores nothing under a keeper that does not
            "spec": {key: value for key, value in self.spec.items() if key != "config"},
        }

    def _attend(self, worker: WorkerProcess) -> None:
        self._loop.watch(worker.pidfd, lambda: self._died(worker))
        if worker.sock is not None:
            self._loop.watch(worker.sock.fileno(), lambda: self._read(worker))

    def adopt(self, worker: WorkerProcess, message: Message) -> None:
        """Takes over a worker that has served under a keeper before us."""
        self.workers = int(message["worker"])
        noted = self._record.read()
        if noted is not None:  # the worker does not know whether it was taken out of our tree, moved or remounted since it started
            self.detached = bool(noted["detached"])
            self.spec |= {key: noted["spec"][key] for key in ("asked_dir", "dir", "options", "config", "readahead_kib")}
        worker.tell_from(message)
        self.take_up(worker, was_ready=bool(message.get("ready")))
        worker.answered = bool(message.get("answered"))
        self._tell({"op": "adopted"})

    def restore(self, state: Message) -> bool:
        """Takes up what a holder has brought, with the `state` of its record: the worker, if it lives, else a successor serves it.

        Returns False, and starts nothing, if the only worker that there was has ended before it served.
        """
        self.workers, self.detached = int(state["workers"]), bool(state["detached"])
        noted = state["worker"]
        worker = None if noted is None else still_alive(int(noted["pid"]), str(noted["started"]))
        if worker is not None:
            self.take_up(worker, was_ready=self.was_ready)  # it connects by itself
            return True
        self._in.holders.keep(self)
        if not self.was_ready and not self._record.locked():
            return False
        self.ready.resolve()
        self.previous = {"signal": None, "code": None, "exited": True}
        self._after_death(None)
        return True

    def take_up(self, worker: WorkerProcess, was_ready: bool) -> None:
        """Watches a worker that serves this mount already."""
        worker.ready = was_ready
        if was_ready:
            self._set_ready()
        if self.was_ready:
            self.ready.resolve()
        self.worker = worker
        self._attend(worker)
        self._note()

    def _set_ready(self) -> None:
        """What is in memory counts from now on.  A worker of an earlier build does not say so in the record, so we do."""
        self.was_ready = True
        self._record.set_served()

    def replace_socket(self, sock: socket.socket, message: Message) -> None:
        """Takes a new connection of the same worker, which lost the old one."""
        assert self.worker is not None
        self.worker.tell_from(message)
        self.worker.answered = self.worker.answered or bool(message.get("answered"))
        if message.get("ready"):
            self.worker.ready = True
            self._set_ready()
            self.ready.resolve()
        self._hang_up(self.worker)
        self.worker.sock = sock
        worker = self.worker
        self._loop.watch(sock.fileno(), lambda: self._read(worker))
        self._tell({"op": "adopted"})
        if worker.ready:
            self._resend_flushes()

    # --- messages of a worker ----------------------------------------------------------------------------------------------

    def _read(self, worker: WorkerProcess) -> None:
        while worker.sock is not None:
            try:
                received = wire.receive(worker.sock)
            except BlockingIOError:
                return
            except (ProtocolError, OSError) as error:
                say(log, logging.ERROR, "worker dropped", mount=self.id, worker=worker.pid, why=error)
                received = None
            if received is None:
                self._hang_up(worker)  # it is dead, or about to reconnect; only the pidfd says which
                return
            message, fds = received
            wire.close_all(fds)
            self._heard(worker, message)

    def _heard(self, worker: WorkerProcess, message: Message) -> None:
        op = message.get("op")
        if op == "ready":
            worker.ready = True
            self._set_ready()
            worker.tell_from(message)
            self._read_ahead()
            self.ready.resolve()
            self._resend_flushes()
        elif op == "answered":
            worker.answered = True
            self.deaths = 0
            self._read_ahead()  # the answer to INIT has set the kernel's own
        elif op == "loaded":
            if isinstance(said := message.get("memory_format"), int):
                worker.memory_format = said
            worker.loaded.resolve()
        elif op == "bye":
            worker.bye = bool(message.get("clean"))
            say(log, logging.INFO, "worker said bye", mount=self.id, worker=worker.pid, clean=worker.bye)
            self._loop.later(BYE_EXIT_MS_MAX, worker.kill)
        elif op in ("flushed", "flush_failed"):
            self._flush_ended(message)
        else:
            say(log, logging.WARNING, "worker said what we do not know", mount=self.id, worker=worker.pid, op=op)

    def _read_ahead(self) -> None:
        kib = self.spec.get("readahead_kib")
        if kib:
            try:
                set_read_ahead(self.device, int(kib))
            except OSError as error:
                say(log, logging.WARNING, "read-ahead not set", mount=self.id, why=error)

    def _tell(self, message: Message) -> None:
        if self.worker is None or self.worker.sock is None:
            return
        try:
            wire.send(self.worker.sock, message)
        except OSError as error:
            say(log, logging.WARNING, "worker not told", mount=self.id, worker=self.worker.pid, op=message["op"], why=error)

    def _hang_up(self, worker: WorkerProcess) -> None:
        if worker.sock is not None:
            self._loop.unwatch(worker.sock.fileno())
            worker.sock.close()
            worker.sock = None

    # --- flush -------------------------------------------------------------------------------------------------------------

    def flush(self, request_id: str, *, tell: bool = False) -> Promise:
        """Asks the worker to make everything durable; the promise fails with OSError.  If the worker dies, its successor is asked again.

        `tell`: it also fails, once, for data that has become a conflict since the last time.
        """
        promise = Promise()
        self._flushes[request_id] = promise, tell
        if self.worker is not None and self.worker.ready:
            self._tell({"op": "flush", "id": request_id, "tell": tell})
        return promise

    def _resend_flushes(self) -> None:
        for request_id, (promise, tell) in list(self._flushes.items()):
            if promise.done:  # the caller does not wait any more
                del self._flushes[request_id]
            else:
                self._tell({"op": "flush", "id": request_id, "tell": tell})

    def _flush_ended(self, message: Message) -> None:
        promise, _ = self._flushes.pop(str(message.get("id")), (None, False))
        if promise is None:
            return
        if message["op"] == "flushed":
            promise.resolve()
        else:
            promise.fail(OSError(errno.EIO, f"flush of {self.dir}: {message.get('error', 'failed')}"))

    # --- death -------------------------------------------------------------------------------------------------------------

    def _died(self, worker: WorkerProcess) -> None:
        hit("keeper.death.seen")
        self._read(worker)
        self._hang_up(worker)
        self._loop.unwatch(worker.pidfd)
        status = exit_status(worker)
        worker.let_go()
        if worker is not self.worker:
            self._standby_died(worker, status)
            return
        self.previous, self.worker = status, None
        if worker.bye is None:
            worker.bye = self._record.ended()  # it may have had no keeper to say bye to
        level = logging.INFO if worker.bye is not None or self.forced else logging.WARNING
        say(log, level, "worker ended", mount=self.id, worker=worker.pid, **self.previous)
        if worker.bye is not None:
            self.drop(worker.bye)
        elif self.forced:
            self.drop(False)
        elif self._standby_takes_over:
            self.start_worker()
        else:
            if worker.healthy():
                self.deaths = 0
            code = self.previous["code"]
            self._after_death(None if code is None else f"worker exited with code {code} before it was ready: {self.last_lines()}")

    def _after_death(self, failed: str | None) -> None:
        """Starts the successor, at once or after a while.  A first worker that ends by itself has no successor: the mount failed."""
        self.deaths += 1
        if failed is not None and not self.was_ready:
            self.forced = True
            self.ready.fail(WorkerFailed(failed))
            return
        delay_ms = backoff_ms(self.deaths)
        if delay_ms:
            say(log, logging.ERROR, "worker keeps dying", mount=self.id, deaths=self.deaths, delay_ms=delay_ms, last=self.last_lines())
            self._loop.later(delay_ms, self._start_again)
        else:
            self._start_again()

    def _start_again(self) -> None:
        if self.gone.done or self.forced or self.worker is not None:
            return
        if self._record.locked():  # by a worker that we do not know: it brings the mount, or it ends
            self._loop.later(LOCK_LOOK_MS, self._start_again)
            return
        self.start_worker()

    def last_lines(self) -> str:
        """Returns the last LAST_LINES_BYTES that the workers wrote to stderr, or words that say there are none."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_LINES_BYTES))
                return file.read().decode(errors="replace").strip() or "it wrote nothing"
        except OSError as error:
            return f"no log: {error}"

    def end(self) -> None:
        """Kills the worker (SIGKILL), whatever it does; it gets no successor."""
        self.forced = True
        if self.worker is not None:
            self.worker.kill()

    def drop(self, clean: bool) -> None:
        """Releases everything of a mount that has ended.  A worker that even SIGKILL did not end keeps its own descriptors."""
        if self.gone.done:
            return
        self.forced = True
        self._end_standby()
        if self.worker is not None:
            self._hang_up(self.worker)
            self._loop.unwatch(self.worker.pidfd)
            self.worker.let_go()
            self.worker = None
        self._record.set_ended(clean)
        self._in.holders.drop(self)
        wire.close_all(list(self.fds.values()))
        self.fds = {}
        for promise, _ in self._flushes.values():
            promise.fail(OSError(errno.ENODEV, f"{self.dir} was unmounted"))
        self._in.dropped(self)
        self.ready.fail(WorkerFailed("unmounted before the worker was ready"))
        say(log, logging.INFO if clean else logging.ERROR, "mount dropped", mount=self.id, dir=self.dir, clean=clean)
        self.gone.resolve(clean)

    @contextlib.contextmanager
    def unmounting(self) -> Iterator[None]:
        """The scope of a umount in order.  Raises OSError(EALREADY) while another one runs."""
        if self.busy:
            raise OSError(errno.EALREADY, f"{self.dir} is being unmounted")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def detach(self) -> None:
        """It was taken out of our tree, and is served on where it is still mounted."""
        self.detached = True
        self._note()

    def attached_again(self, asked_dir: str, dir: str) -> None:
        """It is in our tree again, at another directory perhaps."""
        self.spec |= {"asked_dir": asked_dir, "dir": dir}
        self.detached = False
        self._note()

    def remounted(self, spec: Message) -> None:
        """One of its directories has other options; those of the first one are the mount's own."""
        changed = ("readahead_kib", *(("options", "config") if spec["dir"] in (self.dir, self.spec["asked_dir"]) else ()))
        self.spec |= {key: spec[key] for key in changed}
        self._read_ahead()
        self._note()

    # --- another program ---------------------------------------------------------------------------------------------------

    def replace(self, argv: list[str], env: dict[str, str]) -> Sequence_:
        """Replaces the worker by one of another program; the sequence returns {"pid", "version"} and raises OSError.

        The standby is started and loaded before the worker is ended, so that callers wait for the takeover and not for a start.  A standby
        that does not load changes nothing, nor does one whose program does not know the format of what is in the memory of the mount.
        """
        if self._standby is not None or self.busy or self.worker is None or not self.worker.ready:
            raise OSError(errno.EBUSY, f"the worker of {self.dir} is not serving, or is being replaced; ask again")
        standby = self._standby = self._in.forker.start(argv, env, self.log_path)
        self._standby_spec = {"argv": argv, "env": env}
        self._attend(standby)
        before = self.worker
        try:
            yield self._loop.within(standby.loaded, STANDBY_LOADED_MS_MAX, f"the start of {argv[0]}")
            yield from self._flush_before()
            if not self._knows_memory(standby):
                raise OSError(errno.EBUSY, self._unknown_memory(standby, argv[0]))
        except OSError:
            self._end_standby()
            raise
        if self._standby is standby and self.worker is before:
            self._standby_takes_over = True
            before.kill()
        deadline = self._loop.within(self.gone, STANDBY_SERVES_MS_MAX, "the takeover")
        while not standby.ready and not deadline.done and standby in (self._standby, self.worker):
            yield self._loop.sleep(STANDBY_LOOK_MS)
        if not standby.ready:
            raise OSError(errno.EIO, f"{self.dir}: the worker of {argv[0]} did not take over: {self.last_lines()}")
        return {"pid": standby.pid, "version": standby.version}

    def _flush_before(self) -> Sequence_:
        """Flushes, so that the standby has less to do before it serves; a flush that fails does not stop the replacement."""
        try:
            yield self._loop.within(self.flush(f"heir-{os.urandom(4).hex()}"), STANDBY_FLUSH_MS_MAX, f"the flush of {self.dir}")
        except OSError as error:
            say(log, logging.WARNING, "worker replaced without a flush", mount=self.id, why=error)

    def _knows_memory(self, worker: WorkerProcess) -> bool:
        return worker.memory_format >= self._record.needs()

    def _unknown_memory(self, worker: WorkerProcess, program_name: str) -> str:
        return (
            f"the memory of {self.dir} has format {self._record.needs()}, and {program_name} knows {worker.memory_format}: "
            f"it would not see operations that are acknowledged; run `awsomefsd flush {self.dir}` and ask again, or use a newer program"
        )

    def _loaded_standby(self) -> WorkerProcess | None:
        """Returns the standby if it is loaded, and makes its program the mount's; else None."""
        standby, self._standby, self._standby_takes_over = self._standby, None, False
        if standby is None:
            return None
        if not standby.loaded.done or standby.loaded.error is not None:
            standby.kill()  # its pidfd has it reaped
            return None
        if not self._knows_memory(standby):  # since it was asked the first time
            say(log, logging.ERROR, "worker not replaced", mount=self.id, why=self._unknown_memory(standby, self._standby_spec["argv"][0]))
            standby.kill()
            return None
        self.spec |= self._standby_spec
        return standby

    def _end_standby(self) -> None:
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.kill()

    def _standby_died(self, standby: WorkerProcess, status: Message) -> None:
        say(log, logging.WARNING, "worker ended before it took over", mount=self.id, worker=standby.pid, **status)
        if self._standby is standby:
            self._standby = None
        standby.loaded.fail(OSError(errno.EIO, f"the worker that shall take over {self.dir} ended: {self.last_lines()}"))

    # --- description and hand-over -----------------------------------------------------------------------------------------

    def describe(self) -> Message:
        """Returns the mount as `list` shows it."""
        worker = self.worker
        state = "detached" if self.detached else "unmounting" if self.busy else "serving" if worker and worker.ready else "starting"
        if worker is None:
            state = "waiting"
        return {
            **{key: self.spec[key] for key in ("mount", "dir", "source", "device", "options", "config")},
            "state": state,
            "pid": worker.pid if worker else None,
            "workers": self.workers,
            "deaths": self.deaths,
            "version": worker.version if worker else "",
            "home": worker.home if worker else "",
            "starts": {key: self.spec[key] for key in ("argv", "env")},
            "last_error": self.last_lines() if self.deaths >= WORKER_DEATHS_BEFORE_BACKOFF else "",
        }

    def hand_over(self) -> Message:
        """Returns all that the next program of this process needs, as JSON can hold it; the descriptors keep their numbers."""
        worker = self.worker
        state: Message = {"spec": self.spec, "fds": self.fds, "detached": self.detached, "worker": None}
        state |= {"workers": self.workers, "deaths": self.deaths, "previous": self.previous, "was_ready": self.was_ready}
        if worker is not None:
            sock = None if worker.sock is None else worker.sock.fileno()
            state["worker"] = {"pid": worker.pid, "pidfd": worker.pidfd, "sock": sock, "child": worker.child, "started_s": worker.started_s}
            state["worker"] |= {"ready": worker.ready, "answered": worker.answered, "bye": worker.bye}
            state["worker_program"] = {"version": worker.version, "home": worker.home}
        return state

    @classmethod
    def taken_over(cls, surroundings: Surroundings, state: Message) -> Mount:
        """Returns the mount that `hand_over` described, in the next program of this process."""
        known = {key: state[key] for key in ("workers", "deaths", "previous", "was_ready", "detached")}
        mount = cls(surroundings, state["spec"], {name: int(fd) for name, fd in state["fds"].items()}, **known)
        held = state["worker"]
        if held is not None:
            sock = None if held["sock"] is None else socket.socket(fileno=held["sock"])
            worker = WorkerProcess(**{**held, "sock": sock})
            worker.tell_from(state.get("worker_program", {}))
            mount.take_up(worker, was_ready=worker.ready)
        else:
            mount.start_worker()
        return mount

    def descriptors(self) -> list[int]:
        """Returns every descriptor that must survive the exec."""
        held = list(self.fds.values())
        if self.worker is not None:
            held.append(self.worker.pidfd)
            if self.worker.sock is not None:
                held.append(self.worker.sock.fileno())
        return held


def default_argv() -> list[str]:
    """Returns the command line that starts a worker of this very program."""
    return program.command("worker")


_SPEC_KINDS: dict[str, type] = {
    **dict.fromkeys(("mount", "dir", "source", "fuse_options"), str),
    **dict.fromkeys(("options", "argv"), list),
    **dict.fromkeys(("env", "config"), dict),
    "readahead_kib": int,
}


def checked_spec(request: Message) -> Message:
    """Returns the parts of a mount request that describe the mount, checked.  Raises ProtocolError for a missing or wrong one."""
    spec: Message = {"options": [], "fuse_options": "", "readahead_kib": 0, "config": {}, "env": {}, "argv": default_argv()}
    for key, kind in _SPEC_KINDS.items():
        value = request.get(key, spec.get(key))
        if not isinstance(value, kind):
            raise ProtocolError(f"mount: {key} is missing or not of type {kind.__name__}")
        spec[key] = value
    if not 0 < len(spec["mount"]) <= 32 or not set(spec["mount"]) <= set("0123456789abcdef"):
        raise ProtocolError("mount: the id is up to 32 hexadecimal digits")
    if not spec["dir"].startswith("/") or not spec["argv"]:
        raise ProtocolError("mount: dir is an absolute path, argv not empty")
    if not all(isinstance(word, str) for word in [*spec["options"], *spec["argv"], *spec["env"], *spec["env"].values()]):
        raise ProtocolError("mount: options, argv and env are made of strings")
    return spec
