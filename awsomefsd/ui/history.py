"""Rates of this node over the last half hour, for the charts.

A thread reads the figures every SAMPLE_S as long as somebody looks, and WATCHED_S longer: a node that nobody looks at is to be idle.
Workers report every 5 s, so a rate is that of the last SPAN_S; a shorter one would jump between nothing and twice the truth.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from awsomefsd.admin.client import AdminClient
from awsomefsd.admin.rates import FUSE, WORKER, FiguresRead, Rates, read
from awsomefsd.base.errors import Error

logger = logging.getLogger(__name__)
SAMPLE_S = 5.0
SPAN_S = 15.0
WATCHED_S = 120.0
POINTS_MAX = 360
STOP_S = 2.0  # then it is left to a question that the daemon still has to answer


class Series(NamedTuple):
    name: str
    value: Callable[[Rates], float]


class Chart(NamedTuple):
    """A chart; `unit` is "a second", "bytes", "bytes a second" or "ms"."""

    name: str
    title: str
    unit: str
    series: tuple[Series, ...]


def _others(way: str) -> Callable[[Rates], float]:
    """Returns bytes a second with other nodes: all peers but the workers and the daemon here."""
    name = "awsomefsd_peer_bytes_total"
    return lambda one: one.per_second(name, way=way) - one.per_second(name, way=way, peer="local")


_SYNC = ("awsomefsd_meta_journal_sync_seconds_total", "awsomefsd_meta_journal_syncs_total")
_CHARTS = (
    Chart("requests", "Requests of the kernel to the mounts of this node", "a second", (
        Series("all", lambda one: sum(one.operations().values())),
        Series("reads", lambda one: one.per_second(FUSE, opcode="read")),
        Series("writes", lambda one: one.per_second(FUSE, opcode="write")),
        Series("fsyncs", lambda one: one.per_second(FUSE, opcode="fsync")),
    )),
    Chart("sync", "Mean time of a sync of the journal", "ms", (Series("sync", lambda one: one.mean(*_SYNC) * 1_000),)),
    Chart("metadata", "Metadata service of this node", "a second", (
        Series("requests", lambda one: one.per_second("awsomefsd_leader_requests_total")),
        Series("entries of the log", lambda one: one.per_second("awsomefsd_meta_entries_total")),
    )),
    Chart("network", "Metadata between this node and others", "bytes a second", (
        Series("requests", _others("client")), Series("copies of the log", _others("voter")),
    )),
    Chart("buffered", "Buffered bytes that are not committed", "bytes", (
        Series("buffered", lambda one: one.now.total(f"{WORKER}dirty_bytes")),
    )),
)  # fmt: skip
CHARTS = {one.name: one for one in _CHARTS}


class History:
    """The points of the charts.  `connect` is AdminClient's; any thread may call `told`, `close` ends the thread and waits for it."""

    def __init__(self, connect: Callable[[], AdminClient]) -> None:
        self._connect = connect
        self._lock = threading.Condition()
        self._points: deque[tuple[float, dict[str, list[float]]]] = deque(maxlen=POINTS_MAX)  # wall clock in seconds → values by chart
        self._read: deque[FiguresRead] = deque(maxlen=int(SPAN_S / SAMPLE_S) + 1)
        self._watched_until = 0.0
        self._closed = False
        self._thread: threading.Thread | None = None

    def told(self) -> dict[str, Any]:
        """Returns all charts and their points as JSON has them, and has the thread go on."""
        with self._lock:
            self._watched_until = time.monotonic() + WATCHED_S
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._watch, name="ui-figures", daemon=True)
                self._thread.start()
            points = list(self._points)
        return {
            "sample_s": SAMPLE_S,
            "at": [round(at, 1) for at, _ in points],
            "charts": [
                {
                    "name": one.name,
                    "title": one.title,
                    "unit": one.unit,
                    "series": [
                        {"name": series.name, "values": [round(values[one.name][number], 3) for _, values in points]}
                        for number, series in enumerate(one.series)
                    ],
                }
                for one in CHARTS.values()
            ],
        }

    def _watch(self) -> None:
        self._sample()
        while self._watched():
            self._sample()

    def _watched(self) -> bool:
        """Returns True if somebody still looks when the next reading is due; else this thread ends."""
        with self._lock:
            self._lock.wait_for(lambda: self._closed, SAMPLE_S)
            if self._closed or time.monotonic() > self._watched_until:
                self._thread = None
            return self._thread is not None

    def _sample(self) -> None:
        """Adds a point; none while the daemon does not answer, which the pages say."""
        try:
            with self._connect() as client:
                self._take(read(client))
        except Error as err:
            logger.debug("no figures for the charts", extra={"reason": str(err)})

    def _take(self, now: FiguresRead) -> None:
        """Adds the point of a reading."""
        if self._read and not 0 < now.at_s - self._read[-1].at_s <= SPAN_S:  # another boot, or nobody has looked meanwhile
            self._read.clear()
        self._read.append(now)
        if len(self._read) < 2:
            return
        rates = Rates(self._read[0], now)
        point = {one.name: [series.value(rates) for series in one.series] for one in CHARTS.values()}
        with self._lock:
            self._points.append((time.time(), point))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_S)
