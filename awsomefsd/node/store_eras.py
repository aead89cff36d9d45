"""The daemon of the leader begins an era in each store that a recovery has left without one; until then nothing is put there.

It looks when something was applied, and again while a store is without an era: that may not answer, or its keys did not outlive the
recovery.  Whoever leads next goes on with an era that is named already (node/stores.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from awsomefsd.base.errors import Error
from awsomefsd.base.types import STORE_RECOVERED, StoreInfo
from awsomefsd.node.stores import StoreCatalog

LOOK_S = 1.0
RETRY_S_MAX = 60.0

log = logging.getLogger(__name__)


class StoreEras:
    """The thread.  `start` and `stop` are called once.  `leads`: whether this node leads; `applied`: how far the log is, 0 if unknown."""

    def __init__(
        self, stores: StoreCatalog, knows_stores: Callable[[], bool], leads: Callable[[], bool], applied: Callable[[], int]
    ) -> None:
        self._stores, self._knows_stores, self._leads, self._applied = stores, knows_stores, leads, applied
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._end_work: Callable[[], object] | None = None  # of the child that works at a store now
        self._seen = -1  # `applied` before the last look
        self._waiting: dict[int, tuple[float, float]] = {}  # store → when it is tried again, and the pause before that
        self._said: dict[int, str] = {}
        self._thread = threading.Thread(target=self._run, name="store-eras", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and what it is doing at a store, and waits for both."""
        with self._lock:
            self._ending.set()
            if self._end_work is not None:
                self._end_work()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(LOOK_S):
            try:
                self.turn()
            except Error as err:  # the leader is gone, or another one leads: it is asked again
                log.debug("stores cannot be looked at now", extra={"reason": str(err)})
            except Exception:  # a bug must neither end this thread nor stay silent
                log.exception("the eras of stores failed")

    def turn(self) -> None:
        """Begins what eras are to be begun now.  Raises the Errors of the metadata service."""
        if not self._leads():
            self._seen, self._waiting = -1, {}
            return
        applied, now = self._applied(), time.monotonic()
        due = any(at <= now for at, _ in self._waiting.values())
        if not due and applied and applied == self._seen:
            return
        if not self._knows_stores():
            self._seen = applied
            return
        without = [info for info in self._stores.all() if info.state == STORE_RECOVERED]
        self._waiting = {info.store: self._waiting.get(info.store, (now, 0.0)) for info in without}
        self._said = {number: words for number, words in self._said.items() if number in self._waiting}
        for info in without:
            if self._waiting[info.store][0] <= now and not self._ending.is_set():
                self._begin(info)
        self._seen = applied

    def _begin(self, info: StoreInfo) -> None:
        try:
            work = self._stores.begin_era(info, self._leave)
            try:
                while True:
                    next(work)
            except StopIteration as ended:
                log.info("an era of a store has begun", extra={"store": info.name, "url": info.url, "era": ended.value.era_number})
                del self._waiting[info.store]
            finally:
                work.close()
        except Error as err:
            pause_s = min(max(LOOK_S, 2 * self._waiting[info.store][1]), RETRY_S_MAX)
            self._waiting[info.store] = time.monotonic() + pause_s, pause_s
            if str(err) != self._said.get(info.store) and not self._ending.is_set():
                log.warning("the cluster was recovered, and nothing is sent to store %s before its era has begun there: %s", info.name, err)
            self._said[info.store] = str(err)
        finally:
            with self._lock:
                self._end_work = None

    def _leave(self, end: Callable[[], object]) -> None:
        with self._lock:
            self._end_work = end
            if self._ending.is_set():
                end()
