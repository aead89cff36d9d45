"""The daemon of the leader looks after pools, in one thread: stale bays are trimmed, and what segments lack is mended.

All its state is in the log and in the servers' answers, so whoever leads next goes on where this one was.  On a node that does not lead
the thread sleeps: it asks nobody.  Where it leads it asks for the pool when something was applied, when something is left to do, and every
FULL_LOOK_S; of an idle pool it asks nothing.

An order to a segment server may come late, when another node leads: every order names what the log said, the server asks the leader
before it does anything that cannot be undone, and what is proposed afterwards is compared with the rows.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.tls import TlsNow
from awsomefsd.io.pool.remote_server import RemoteServer
from awsomefsd.meta.api.messages.pools import GetPool, Pool, PoolDeviceInfo
from awsomefsd.meta.client.endpoints import endpoint_of
from awsomefsd.node.maintenance.healing import Healing
from awsomefsd.node.maintenance.pool_census import PoolCounting
from awsomefsd.node.maintenance.pool_trimming import PoolTrimming

POOL = 1  # there is one
LOOK_S = 1.0
FULL_LOOK_S = 30.0
RETRY_S_MAX = 30.0
_LED_NOT = -1

log = logging.getLogger(__name__)


class PoolServers:
    """Segment servers of the nodes, for orders.  `own`, `own_socket`: this node, and the socket of its server.  Thread-safe."""

    def __init__(self, own: str, own_socket: str, tls: TlsNow) -> None:
        self._own, self._own_socket, self._tls = own, own_socket, tls
        self._lock = threading.Lock()
        self._servers: dict[str, RemoteServer] = {}  # by endpoint

    def of(self, device: PoolDeviceInfo) -> RemoteServer | None:
        """Returns the server of a device; None if none has attached it, or it says nowhere where it is."""
        endpoint = self._own_socket if device.server == self._own else endpoint_of_device(device)
        if not device.server or not endpoint:
            return None
        with self._lock:
            server = self._servers.get(endpoint)
            if server is None:
                server = self._servers[endpoint] = RemoteServer(endpoint, self._own, self._tls)
            return server

    def close(self) -> None:
        with self._lock:
            servers = list(self._servers.values())
            self._servers.clear()
        for server in servers:
            server.close()


def endpoint_of_device(device: PoolDeviceInfo) -> str:
    """Returns where other nodes reach the server of a device ("UUID@HOST:PORT"); "" if they do not."""
    unusable = not device.server or not device.address or "@" in device.address or "/" in device.address
    return "" if unusable else endpoint_of(device.server, device.address)


class PoolUpkeep:
    """The thread.  `start` and `stop` are called once.  `leads`: whether this node leads; `applied`: how far the log is, 0 if unknown.

    `servers` for trimming, `copying` for copies, whose orders take long.  `node`: this one.
    """

    def __init__(
        self, ask: Callable[[Any], Any], propose: Callable[[Any], Any], servers: PoolServers, copying: PoolServers,
        leads: Callable[[], bool], applied: Callable[[], int], node: str = "",
    ) -> None:  # fmt: skip
        self._ask, self._servers, self._leads, self._applied = ask, (servers, copying), leads, applied
        self._trimming = PoolTrimming(ask, propose, servers.of)
        self._news = threading.Event()  # a copy has ended, or this thread is to end
        self._healing = Healing(ask, propose, copying.of, self._news.set)
        self._counting = PoolCounting(ask, node, self._healing.census)
        self._ending = threading.Event()
        self._seen = _LED_NOT  # `applied` before the last look that found nothing to do
        self._look_s = 0.0
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="pool-upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it is doing, and waits for it."""
        self._ending.set()
        self._news.set()
        self._healing.rest()
        for servers in self._servers:
            servers.close()
        if self._thread.is_alive():
            self._thread.join()
        self._healing.rest()
        self._healing.join()

    def _run(self) -> None:
        pause_s = LOOK_S
        while self._wait(pause_s):
            trouble = ""
            try:
                trouble = self._turn()
            except FsError as err:
                if err.errno != errno.EPERM:  # EPERM: another node leads by now
                    trouble = str(err)
            except (Error, OSError) as err:
                trouble = str(err)
            except Exception as err:  # a bug must neither end this thread nor stay silent
                log.exception("the upkeep of the pool failed")
                trouble = f"a bug: {err!r}"
            if trouble and trouble != self._said and not self._ending.is_set():
                log.warning("the pool cannot be looked after now; it is tried again: %s", trouble)
            self._said = trouble
            pause_s = min(2 * pause_s, RETRY_S_MAX) if trouble else LOOK_S

    def _wait(self, pause_s: float) -> bool:
        """Returns False when the thread is to end; early when a copy has ended."""
        self._news.wait(pause_s)
        self._news.clear()
        return not self._ending.is_set()

    def _turn(self) -> str:
        """Does what is to be done now; returns what was in the way of some of it."""
        if not self._leads():
            if self._seen != _LED_NOT:
                self._seen = _LED_NOT
                self._healing.rest()
                self._counting.rest()
            return ""
        applied, now = self._applied(), time.monotonic()
        if applied and applied == self._seen and now < self._look_s:
            return ""
        pool = self._pool()
        trouble, busy = self._upkeep(pool, applied) if pool is not None else ("", False)
        self._seen, self._look_s = (0, 0.0) if busy else (applied, now + FULL_LOOK_S)
        return trouble

    def _pool(self) -> Pool | None:
        try:
            pool: Pool = self._ask(GetPool(POOL))
        except FsError as err:
            if err.errno == errno.ENOENT:
                return None
            raise
        return pool

    def _upkeep(self, pool: Pool, applied: int) -> tuple[str, bool]:
        """Returns what was in the way, and whether something is left that no entry announces."""
        freed, error = self._trimming.turn(pool)
        if freed:
            log.info("bays are free again", extra={"bays": freed})
        if self._healing.turn(pool):
            self._news.set()
        self._counting.turn(applied)
        busy = self._healing.waits or self._counting.waits or any(device.stale for device in pool.devices)
        return str(error) if error is not None else "", busy
