"""The process `awsomefsd segments`: one of a node, with one thread that looks and others that serve.

Every SEGMENT_LOOK_MS it asks the leader who is a member and which devices of pools are this node's: each of those gets a thread
(pool_device.py), nodes that were removed or have another role are cut off, and the node's row is told where this server is reached.
Without a leader all stays as it was: what is open is read and appended to, and nothing new is opened.

It is started while the file POOL_DEVICES is in the state directory, which the daemon keeps there as long as this node has devices of pools,
and ends by itself when the leader says that there are none and the file is gone.

It has no state on disk, so it may be killed at any moment: the kernel ends its connections, which closes all bays, and the locks on its
devices go when its I/O is over.  SIGTERM ends it in this order: no more connections, those there are end and what they have under way is
awaited, then each device is closed.  A device that hangs is not waited for longer than SEGMENT_STOP_MS: the process ends all the same,
and its successor gets the lock on that device when the I/O is over.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from awsomefsd import __version__
from awsomefsd.base import log as logs
from awsomefsd.base import sockets
from awsomefsd.base.errors import ConfigError, Error, Refused
from awsomefsd.base.identity import POOL_DEVICES, lock_or_holder, make_directory
from awsomefsd.base.limits import (
    NS_PER_MS,
    PORT_QUEUE,
    SEGMENT_LOOK_MS,
    SEGMENT_STOP_MS,
    SEGMENT_THREAD_STACK_BYTES,
    SEGMENT_TIDY_MS,
)
from awsomefsd.base.tls import TlsFiles
from awsomefsd.io.pool.gate import Gate
from awsomefsd.io.pool.server import KnownNode, SegmentServer
from awsomefsd.io.pool.server_state import BAYS_SOCKET, ServerState, StateSocket
from awsomefsd.meta.client.endpoints import Endpoints
from awsomefsd.node.metadata_access import LeaderAccess
from awsomefsd.segments.config import SegmentsConfig, take_over
from awsomefsd.segments.leader import LeaderRows, PoolsOfNode, look, tell_address
from awsomefsd.segments.pool_device import PoolDevice

log = logging.getLogger("awsomefsd.segments")
LOCK = "segments.lock"  # in the run directory
THREAD_DIED_EXIT_CODE = 70
_PORT = "port"  # a subject of trouble
_NO_MEMBER = "this node was removed from its cluster; nobody is served"


class SegmentsProcess:
    """All parts, serving when constructed.  One thread calls `look` and `close`.  Raises Refused where another process serves this node."""

    def __init__(self, config: SegmentsConfig) -> None:
        self._config = config
        run_dir = Path(config.run_dir)
        make_directory(run_dir, 0o711)
        lock = lock_or_holder(run_dir / LOCK)
        if isinstance(lock, str):
            raise Refused(f"another segment server runs in {run_dir} (process {lock}); stop it first")
        self._lock = lock
        tls = TlsFiles(*config.tls)
        places = Endpoints(config.meta_sock, node=config.node, file=config.endpoints, fixed=config.places, tls=lambda: tls)
        self._access = LeaderAccess(places, "", config.state_dir)
        self._gate, self._changed = Gate(), threading.Condition()
        self._bays_listener = sockets.listen_unix(run_dir / BAYS_SOCKET, 0o600)
        self._server = SegmentServer(
            config.node, config.role, [], self._gate, self._changed, LeaderRows(self._access), tls, [self._bays_listener]
        )  # fmt: skip
        self._server.start()
        self._devices: dict[int, PoolDevice] = {}
        self._leaving: list[PoolDevice] = []  # devices that are being given up
        self.is_needless = False  # this node has no devices of pools: nobody needs this process
        self._port_open = False
        self._address = ""  # as the node's row was told
        self._trouble: dict[str, str] = {}  # what is wrong now, by subject
        self._tidy_ns = 0
        self._state_socket = StateSocket(run_dir, self.state)

    def state(self) -> ServerState:
        """Any thread."""
        devices = [device.state() for device in list(self._devices.values())]
        trouble = self._trouble
        return ServerState(
            os.getpid(), __version__, devices, self._address, "; ".join(trouble.values()), self._server.figures(), trouble.get(_PORT, "")
        )  # fmt: skip

    # --- looking ------------------------------------------------------------------------------------------------------------
    def look(self) -> None:
        """Takes up what has changed.  Blocks for the leader, SEGMENT_ASK_MS_MAX for each question at most; raises nothing of the world."""
        self._open_port()
        try:
            found = look(self._access, self._config.node)
            self._note("leader", "" if found is not None else _NO_MEMBER)
            self._take(found)
            self.is_needless = not (found and found.devices) and not self._leaving and not self._is_wanted()
        except Error as err:
            self._note("leader", f"the leader cannot be asked: {err}")
        if time.monotonic_ns() >= self._tidy_ns:
            self._tidy_ns = time.monotonic_ns() + SEGMENT_TIDY_MS * NS_PER_MS
            self._server.tidy()

    def _take(self, found: PoolsOfNode | None) -> None:
        """Takes up the cluster as the leader has it.  Raises Error."""
        config = self._config
        if found is None:
            self._server.members({})
            return
        self._server.members({config.node: KnownNode(config.role), **found.members})
        for number in [number for number in self._devices if number not in found.devices]:
            device = self._devices.pop(number)
            device.tell_end()
            self._leaving.append(device)
        self._forget_ended()
        leaving = {device.number for device in self._leaving}
        for number, info in found.devices.items():
            if number in self._devices:
                self._devices[number].take(info)
            elif number not in leaving:
                self._devices[number] = PoolDevice(
                    info, config.cluster, config.node, self._access, self._server, self._gate, self._changed
                )  # fmt: skip
                self._devices[number].start()
        self._tell_address(found)

    def _tell_address(self, found: PoolsOfNode) -> None:
        """Has this node's row name the port, once it is open; a node without devices of pools needs none."""
        self._address = self._advertised() if self._port_open and found.devices else ""
        row = found.members.get(self._config.node)
        if row is not None and self._port_open and row.address != self._address:
            tell_address(self._access, self._config.node, self._address)
            log.info("the node's row has the address of this segment server", extra={"address": self._address})

    def _advertised(self) -> str:
        """Returns where others reach this server: under the name that the settings give the node, or the address at which it listens, or
        that of the interface which routes to the others.  "" where there is none."""
        assert self._config.listen is not None
        host, port = self._config.listen
        host = self._config.advertise or ("" if sockets.is_unspecified(host) else host) or sockets.own_address()
        return sockets.join_host(host, port) if host else ""

    def _open_port(self) -> None:
        """Listens for other nodes as soon as this one has a certificate; a port that somebody else has is tried again."""
        config = self._config
        if self._port_open or config.listen is None or not os.path.exists(config.tls[1]):
            return
        host, port = config.listen
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server.listen(socket.create_server((host, port), family=family, backlog=PORT_QUEUE))
        except OSError as err:
            self._note(_PORT, f"cannot listen on segments.listen = {sockets.join_host(host, port)}: {err.strerror}")
            return
        self._port_open = True
        self._note(_PORT, "")
        log.info("listening", extra={"at": sockets.join_host(host, port)})

    def _is_wanted(self) -> bool:
        return os.path.exists(os.path.join(self._config.state_dir, POOL_DEVICES))

    def _note(self, subject: str, trouble: str) -> None:
        if trouble and self._trouble.get(subject) != trouble:
            log.warning("%s", trouble)
        if trouble:
            self._trouble = {**self._trouble, subject: trouble}
        else:
            self._trouble = {name: words for name, words in self._trouble.items() if name != subject}

    def _forget_ended(self) -> None:
        self._leaving = [device for device in self._leaving if not device.join(0)]

    # --- the end ------------------------------------------------------------------------------------------------------------
    def ask_no_more(self) -> None:
        """Ends the questions to the leader, those under way too: where nobody leads they would hold up the end.  Any thread."""
        self._access.end("the segment server ends")

    def close(self) -> None:
        """Ends everything in order.  Blocks for what is under way, which a device that hangs may keep for ever."""
        devices = [*self._devices.values(), *self._leaving]
        for device in devices:
            device.tell_end()
        self._server.stop()
        self._access.close()
        for device in devices:
            device.join()
        self._state_socket.close()
        os.close(self._lock)


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """A thread ended by a bug: what it did would never be done again, so this process ends, and its successor begins anew."""
    log.critical("thread %s died, ending", args.thread.name if args.thread is not None else "?", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(THREAD_DIED_EXIT_CODE)


def _end_questions(process: SegmentsProcess, ending: threading.Event) -> None:
    """Body of a thread: the main thread may wait for the leader's answer when it is told to end."""
    ending.wait()
    process.ask_no_more()


def serve(config: SegmentsConfig) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status.  Called by the main thread."""
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = SegmentsProcess(config)
    log.info("serving", extra={"node": config.node, "run_dir": config.run_dir})
    threading.Thread(target=_end_questions, args=(process, ending), name="segments-end", daemon=True).start()
    process.look()
    gc.collect()
    gc.freeze()
    sockets.notify_systemd("READY=1")
    while not process.is_needless and not ending.wait(SEGMENT_LOOK_MS / 1_000):
        process.look()
    if process.is_needless:
        log.info("no device of a pool is this node's, so nobody needs this process; it is started again when one is added")
    sockets.notify_systemd("STOPPING=1")
    closing = threading.Thread(target=process.close, name="segments-close", daemon=True)
    closing.start()
    closing.join(SEGMENT_STOP_MS / 1_000)
    if closing.is_alive():
        log.warning("a device does not end; this process ends without it")
    log.info("ended")
    return 0


def main(words: list[str]) -> int:
    """Entry of `awsomefsd segments --config-fd N`, which the command of that name executes."""
    if len(words) != 2 or words[0] != "--config-fd" or not words[1].isdecimal():
        sys.stderr.write("awsomefsd segments takes its configuration from the command of that name\n")
        return 2
    os.chdir("/")  # keeps no mount busy
    threading.stack_size(SEGMENT_THREAD_STACK_BYTES)
    threading.excepthook = _thread_died
    try:
        config = take_over(int(words[1]))
        logs.setup("segments", config.log_level, config.log_format)
        code = serve(config)
    except (ConfigError, Refused) as err:
        sys.stderr.write(f"awsomefsd: {err}\n")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread that waits for a device that hangs would keep the interpreter
