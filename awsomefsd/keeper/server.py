"""The keeper: holds the /dev/fuse descriptors and the shared memory of every mount, and replaces workers that die.

It survives everything else because it does next to nothing: the standard library, one thread, no file but its socket and its
lock.  Its own death does no harm either: workers go on serving, connect to the next keeper and hand it the descriptors
("adopt").  For mounts whose worker died with it, the holders do (holders.py): the daemon, and the service manager.  The FUSE
connection is closed only when all of them are gone together.  `upgrade` leaves no gap at all: the keeper execs the new program
with every descriptor kept, and their description in a memfd; the process stays the same, so its children stay its children.

After a start without a predecessor's memfd, requests wait ADOPT_GRACE_MS while mounts of ours are in the mount table: a
worker may be about to bring the mount of the request.  Rejected: a state file, which would be believed when it is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from awsomefsd import __version__
from awsomefsd.base import log as logs
from awsomefsd.base import program
from awsomefsd.base.errors import Error, ProtocolError
from awsomefsd.base.failpoints import hit
from awsomefsd.base.identity import lock_or_holder
from awsomefsd.base.limits import RECONNECT_MS_MAX
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.descriptor_store import from_service_manager
from awsomefsd.keeper.forker_client import Forker
from awsomefsd.keeper.holders import Holders
from awsomefsd.keeper.loop import Loop, Promise, Sequence_
from awsomefsd.keeper.mount import Surroundings, checked_spec
from awsomefsd.keeper.mount_syscalls import FSTYPE, mounts
from awsomefsd.keeper.process import WorkerProcess, is_child
from awsomefsd.keeper.requests import KeptMounts
from awsomefsd.keeper.wire import Message, say

log = logging.getLogger("awsomefsd.keeper")

ADOPT_GRACE_MS = 2 * RECONNECT_MS_MAX
STATE_VARIABLE = "AWSOMEFSD_KEEPER_STATE_FD"
STATE_VERSION = 1
CLIENTS_MAX = 256
ACCEPT_PAUSE_MS = 500


class KeeperConnection:
    """A connection of a client, or of a worker that has not adopted yet."""

    __slots__ = ("pid", "sock", "uid")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid, self.uid = wire.peer(sock)


class Keeper:
    """The keeper's socket, its clients, and their requests.  One thread, that of its loop, uses it."""

    def __init__(self, run_dir: Path, log_dir: Path, exec_argv: list[str]) -> None:
        self._exec_argv = exec_argv
        self._run_dir = run_dir
        self.loop = Loop()
        self._forker = Forker(self.loop, log_dir)
        place = run_dir / wire.SOCKET_NAME
        self._holders = Holders(self.loop)
        self._mounts = KeptMounts(self.loop, lambda dropped: Surroundings(self.loop, place, log_dir, self._forker, self._holders, dropped))
        self._clients: dict[int, KeeperConnection] = {}
        self._requests = 0  # that have not been answered
        self._settled = Promise()  # every worker that has a mount to bring has had the time
        self._expected: set[str] = set()  # devices that workers may bring
        self._lock = -1
        self._listener: socket.socket | None = None

    # --- start -------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Takes the lock and the socket.  Raises OSError, EBUSY when another keeper has them."""
        lock = lock_or_holder(self._run_dir / "keeper.lock")
        if isinstance(lock, str):
            raise OSError(errno.EBUSY, f"another keeper runs in {self._run_dir} (process {lock}); stop it first")
        self._lock = lock
        for mount, fds in from_service_manager().items():
            self._restore(list(fds), list(fds.values()))
            if mount not in self._mounts.by_id:
                self._holders.store.drop(mount, fds)
        self._listen(wire.listen(self._run_dir / wire.SOCKET_NAME))
        self._expected = {entry.device for entry in mounts() if entry.fstype == FSTYPE}
        self.loop.later(ADOPT_GRACE_MS, self._settled.resolve)  # those of other keepers never come
        self._settle_early()
        say(log, logging.INFO, "keeper started", version=__version__, run_dir=self._run_dir, mounts_to_expect=len(self._expected))

    def _settle_early(self) -> None:
        if self._expected <= {mount.device for mount in self._mounts.by_id.values()}:
            self._settled.resolve()

    def resume(self, state: Message) -> None:
        """Goes on where the program before the exec stopped; `state` is what that one wrote."""
        hit("keeper.exec.after")
        self._lock = state["lock"]
        self._listen(socket.socket(fileno=state["listener"]))
        self._settled.resolve()
        for fd in [state["lock"], state["listener"], *state["kept"]]:
            os.set_inheritable(fd, False)
        for mount in state["mounts"]:
            self._mounts.take_over(mount)
        say(log, logging.INFO, "keeper upgraded", version=__version__, mounts=len(state["mounts"]))
        if state["client"] is not None:
            client = KeeperConnection(socket.socket(fileno=state["client"]))
            self._attend(client)
            self._answer(client, {"ok": True, "request_id": state["request_id"], "pid": os.getpid(), "version": __version__})

    def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listener = listener
        self.loop.watch(listener.fileno(), self._accept)

    # --- connections -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptors left: the listen queue is served later, and not polled meanwhile
            say(log, logging.WARNING, "cannot accept a connection", why=error.strerror or error)
            fd = self._listener.fileno()
            self.loop.unwatch(fd)
            self.loop.later(ACCEPT_PAUSE_MS, lambda: self.loop.watch(fd, self._accept))
            return
        sock.setblocking(False)
        client = KeeperConnection(sock)
        if client.uid not in (0, os.getuid()) or len(self._clients) >= CLIENTS_MAX:
            say(log, logging.WARNING, "connection refused", peer=client.pid, uid=client.uid)
            sock.close()
            return
        self._attend(client)

    def _attend(self, client: KeeperConnection) -> None:
        client.sock.setblocking(False)
        self._clients[client.sock.fileno()] = client
        self.loop.watch(client.sock.fileno(), lambda: self._read(client))

    def _forget(self, client: KeeperConnection) -> None:
        """Stops watching this connection; its socket stays open (a worker's goes to its mount)."""
        self.loop.unwatch(client.sock.fileno())
        self._clients.pop(client.sock.fileno(), None)

    def _hang_up(self, client: KeeperConnection) -> None:
        if client.sock.fileno() >= 0:
            self._forget(client)
            client.sock.close()

    def _read(self, client: KeeperConnection) -> None:
        try:
            received = wire.receive(client.sock)
        except BlockingIOError:
            return
        except (ProtocolError, OSError) as error:
            say(log, logging.WARNING, "client dropped", peer=client.pid, why=error)
            received = None
        if received is None:
            self._hang_up(client)
            return
        message, fds = received
        op = message.get("op")
        if op == "adopt":
            self._adopt(client, message, fds)
        elif op == "held":
            self._restore(message.get("fds", []), fds)
        else:
            wire.close_all(fds)
            if op == "hold":
                self._forget(client)
                held = message.get("mounts")
                self._holders.attend(client.sock, client.pid, map(str, held if isinstance(held, list) else []))
            else:
                self._serve(client, message)

    def _answer(self, client: KeeperConnection, answer: Message) -> None:
        if client.sock.fileno() < 0:
            return  # the client has gone
        try:
            wire.send(client.sock, answer)
        except (OSError, ProtocolError) as error:
            say(log, logging.WARNING, "client not answered", peer=client.pid, why=error)
            self._hang_up(client)

    def _restore(self, names: list[str], fds: list[int]) -> None:
        """Takes up a mount that a holder brings."""
        try:
            self._mounts.restore(names, fds)
        except (ProtocolError, OSError, KeyError, TypeError, ValueError) as error:
            say(log, logging.ERROR, "mount not restored", why=error)
        self._settle_early()

    # --- adoption ----------------------------------------------------------------------------------------------------------

    def _adopt(self, client: KeeperConnection, message: Message, fds: list[int]) -> None:
        """Takes over the mount that a worker of an earlier keeper brings.  A second reader of one descriptor is refused, and ends."""
        try:
            hit("keeper.adopt.before")
            self._adopt_checked(client, message, fds)
            hit("keeper.adopt.after")
        except (ProtocolError, OSError, KeyError, TypeError, ValueError) as error:
            wire.close_all(fds)
            say(log, logging.ERROR, "adoption refused", peer=client.pid, mount=message.get("mount"), why=error)
            self._answer(client, {"op": "refused", "error": str(error)})
            self._hang_up(client)

    def _adopt_checked(self, client: KeeperConnection, message: Message, fds: list[int]) -> None:
        names = message["fds"]
        if message["pid"] != client.pid:
            raise ProtocolError(f"claims to be pid {message['pid']}, is {client.pid}")
        if names[:1] != ["fuse"] or len(names) != len(fds):
            raise ProtocolError("descriptors do not match their names")
        known = self._mounts.by_id.get(message["mount"])
        if known is not None:
            if known.worker is not None and known.worker.pid != client.pid:
                raise ProtocolError(f"mount {known.id} has another worker")
            self._forget(client)
            if known.worker is None:
                known.adopt(WorkerProcess(client.pid, os.pidfd_open(client.pid), client.sock, child=False), message)
            else:
                known.replace_socket(client.sock, message)
            wire.close_all(fds)
            return
        brought = message["spec"]
        spec = checked_spec({**brought, "config": message["config"]}) | {key: str(brought[key]) for key in ("device", "asked_dir")}
        if not isinstance(message["worker"], int):
            raise ProtocolError("worker is a number")
        pidfd = os.pidfd_open(client.pid)
        self._forget(client)
        worker = WorkerProcess(client.pid, pidfd, client.sock, is_child(pidfd))
        self._mounts.new(spec, dict(zip(names, fds, strict=True))).adopt(worker, message)
        self._settle_early()
        say(log, logging.INFO, "worker adopted", mount=message["mount"], dir=message["dir"], worker=client.pid, count=message["worker"])

    # --- requests ----------------------------------------------------------------------------------------------------------

    def _serve(self, client: KeeperConnection, request: Message) -> None:
        request.setdefault("request_id", os.urandom(4).hex())
        op = request.get("op", "")
        operations = {
            "ping": self._ping,
            "list": self._list,
            "mount": self._mounts.mount,
            "attach": self._mounts.attach,
            "remount": self._mounts.remount,
            "umount": self._mounts.umount,
            "flush": self._mounts.flush,
            "replace": self._mounts.replace,
            "stop": self._stop,
            "warm": self._warm,
        }
        if op == "upgrade":
            self._upgrade(client, request)
            return
        operation = operations.get(op)
        if operation is None:
            self._answer(client, _failure(request, ProtocolError(f"unknown op {op!r}")))
            return

        def perform() -> Sequence_:
            if op != "ping":
                yield self._settled
            return (yield from operation(request))

        self._requests += 1
        self.loop.start(perform()).then(lambda outcome: self._done(client, request, outcome))

    def _done(self, client: KeeperConnection, request: Message, outcome: Promise) -> None:
        self._requests -= 1
        if outcome.error is None:
            answer = {"ok": True, "request_id": request["request_id"], **(outcome.value or {})}
        else:
            answer = _failure(request, outcome.error)
        level = logging.DEBUG if request["op"] in ("ping", "list") else logging.INFO if answer["ok"] else logging.WARNING
        fields = {key: request.get(key) for key in ("op", "request_id", "mount", "dir")}
        say(log, level, "request", **fields, peer=client.pid, ok=answer["ok"], why=answer.get("error"))
        self._answer(client, answer)

    def _ping(self, _request: Message) -> Sequence_:
        yield from ()
        return {"pid": os.getpid(), "version": __version__, "home": program.HOME, "mounts": len(self._mounts.by_id)}

    def _list(self, _request: Message) -> Sequence_:
        yield from ()
        return {"mounts": [mount.describe() for mount in self._mounts.by_id.values()]}

    def _warm(self, request: Message) -> Sequence_:
        """Loads the program of workers to come; `ready` is true if it is loaded already."""
        yield from ()
        if not request.get("argv"):
            raise ProtocolError("warm: argv is missing")
        argv, env = _program_words(request, [], "warm")
        return {"ready": self._forker.warm(argv, env)}

    def _stop(self, request: Message) -> Sequence_:
        if request.get("umount"):
            yield from self._mounts.umount_all(request)
        self.loop.later(0, self.loop.stop)  # after the answer
        return {}

    def run(self) -> None:
        """Serves until `stop` is asked for; blocks."""
        self._holders.store.ready()
        self.loop.run()

    def stop(self, why: str) -> None:
        """Ends the loop, and leaves the workers to the next keeper."""
        say(log, logging.INFO, "keeper stops", why=why, mounts=len(self._mounts.by_id))
        self.loop.stop()

    # --- upgrade -----------------------------------------------------------------------------------------------------------

    def _upgrade(self, client: KeeperConnection, request: Message) -> None:
        """Execs the program that is installed now, or the one that the request names (argv, env).

        The new program sends the answer: the question is whether it started.
        """
        if self._requests or self.loop.chores:
            error = OSError(errno.EBUSY, f"{self._requests} requests are being served; ask again")
            self._answer(client, _failure(request, error))
            return
        try:
            self._exec(client, request, *_program_of(request, self._exec_argv))
        except (OSError, ProtocolError) as error:
            say(log, logging.ERROR, "upgrade failed", why=error)
            self._answer(client, _failure(request, error))

    def _exec(self, client: KeeperConnection, request: Message, argv: list[str], env: dict[str, str]) -> None:
        assert self._listener is not None
        held = [mount.descriptors() for mount in self._mounts.by_id.values()]
        kept = [fd for of_mount in held for fd in of_mount] + [client.sock.fileno()]
        state = {"version": STATE_VERSION, "lock": self._lock, "listener": self._listener.fileno(), "kept": kept}
        state |= {"client": client.sock.fileno(), "request_id": request["request_id"]}
        state |= {"mounts": [mount.hand_over() for mount in self._mounts.by_id.values()]}
        memfd = os.memfd_create("awsomefs-keeper-state")
        try:
            hit("keeper.exec.before")
            self._forker.close()
            os.write(memfd, json.dumps(state).encode())
            os.lseek(memfd, 0, os.SEEK_SET)
            passed = [memfd, self._lock, self._listener.fileno(), *kept]
            for fd in passed:
                os.set_inheritable(fd, True)
            os.execve(argv[0], argv, {**env, STATE_VARIABLE: str(memfd)})
        finally:  # only reached when exec failed
            for fd in [self._lock, self._listener.fileno(), *kept]:
                os.set_inheritable(fd, False)
            os.close(memfd)


def _program_of(request: Message, installed: list[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the program to exec, and its environment."""
    argv, env = _program_words(request, installed, "upgrade")
    return argv, {**program.environment(), **env}


def _program_words(request: Message, installed: list[str], op: str) -> tuple[list[str], dict[str, str]]:
    argv, env = request.get("argv") or installed, request.get("env") or {}
    if not isinstance(argv, list) or not isinstance(env, dict) or not all(isinstance(word, str) for word in [*argv, *env, *env.values()]):
        raise ProtocolError(f"{op}: argv and env are made of strings")
    return argv, env


def _failure(request: Message, error: Exception) -> Message:
    number = error.errno if isinstance(error, (OSError, Error)) else None
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not isinstance(error, (OSError, Error)):
        log.error("request failed by a bug", exc_info=error)
    return {"ok": False, "request_id": request["request_id"], "error": words, "errno": number or errno.EIO}


def _watch_signals(keeper: Keeper) -> None:
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    def arrived() -> None:
        names = {signal.Signals(number).name for number in reader.recv(64)}
        if names & {"SIGTERM", "SIGINT"}:
            keeper.stop(", ".join(sorted(names)))
        assert writer.fileno() >= 0  # keeps it alive as long as this callback

    keeper.loop.watch(reader.fileno(), arrived)


def _shield() -> None:
    """Makes the kernel's OOM killer choose any other process first; only root may."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000")


def _inherited_state() -> Message | None:
    number = os.environ.pop(STATE_VARIABLE, "")
    if not number:
        return None
    with os.fdopen(int(number), "rb") as file:
        state: Message = json.load(file)
    if state["version"] != STATE_VERSION:  # workers bring their mounts to the keeper that is started next
        raise SystemExit(f"keeper state of version {state['version']} is not known here")
    return state


def run_keeper(run_dir: Path | str, *, log_dir: Path | str | None = None, exec_argv: list[str] | None = None) -> int:
    """Serves until `stop` or SIGTERM, and returns the exit code; workers stay.  `log_dir` is where workers write (default run_dir/log).

    The main thread calls it: it sets signal handlers, and the directory of the process to /.
    """
    run_dir = Path(run_dir).absolute()
    log_dir = Path(log_dir).absolute() if log_dir else run_dir / "log"
    argv = exec_argv or program.again()
    for directory in (run_dir, log_dir):
        directory.mkdir(parents=True, exist_ok=True)
    os.chdir("/")  # keeps no mount busy
    keeper = Keeper(run_dir, log_dir, argv)
    state = _inherited_state()
    try:
        keeper.begin() if state is None else keeper.resume(state)
    except OSError as error:
        say(log, logging.ERROR, "keeper not started", why=error.strerror or error)
        return 1
    _shield()
    _watch_signals(keeper)
    keeper.run()
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="awsomefsd keeper", description="hold the mounts of this host")
    parser.add_argument("--run-dir", required=True)
    parser.add_argument("--log-dir")
    parser.add_argument("--log-level", default="info", choices=logs.LEVELS)
    parser.add_argument("--log-format", default="text", choices=logs.FORMATS)
    words = parser.parse_args(argv)
    logs.setup("keeper", words.log_level, words.log_format)
    return run_keeper(words.run_dir, log_dir=words.log_dir)


if __name__ == "__main__":
    sys.exit(main())
