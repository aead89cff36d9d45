"""Counters that cost one addition: hot threads count with them, and the daemon's exporter turns them into Prometheus text.

No lock and no prometheus import: every counter has one writer thread (or tolerates a lost increment under the GIL's rules for ``+=`` on
an attribute, which figures may), and readers only read.  prometheus_client's own counters take a lock and 1 µs an increment; they
live in node/health/exporter.py alone.  Names are awsomefsd_<subject>_<unit or _total>, as Prometheus wants them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from awsomefsd.base.errors import Error

Labels = tuple[tuple[str, str], ...]
SECONDS_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure at one moment.  `kind` is "counter" or "gauge"; a counter's name ends in _total."""

    name: str
    kind: str
    help: str
    value: float
    labels: Labels = ()


class Counter:
    """A figure that only grows.  One thread adds to it, any thread reads it."""

    __slots__ = ("help", "labels", "name", "value")

    def __init__(self, name: str, help: str, labels: Labels = ()) -> None:
        assert name.startswith("awsomefsd_") and name.endswith("_total"), name
        self.name, self.help, self.labels, self.value = name, help, labels, 0

    def add(self, count: int = 1) -> None:
        self.value += count

    def samples(self) -> Iterable[Sample]:
        yield Sample(self.name, "counter", self.help, self.value, self.labels)


class Gauge:
    """A figure that goes up and down.  One thread sets it, any thread reads it."""

    __slots__ = ("help", "labels", "name", "value")

    def __init__(self, name: str, help: str, labels: Labels = ()) -> None:
        assert name.startswith("awsomefsd_") and not name.endswith("_total"), name
        self.name, self.help, self.labels, self.value = name, help, labels, 0.0

    def set(self, value: float) -> None:
        self.value = value

    def samples(self) -> Iterable[Sample]:
        yield Sample(self.name, "gauge", self.help, self.value, self.labels)


class Histogram:
    """Durations in buckets of seconds, exported as cumulative counters the way Prometheus reads histograms.  One thread observes."""

    __slots__ = ("bounds", "buckets", "help", "labels", "name", "sum")

    def __init__(self, name: str, help: str, labels: Labels = (), bounds: tuple[float, ...] = SECONDS_BUCKETS) -> None:
        assert name.startswith("awsomefsd_") and name.endswith("_seconds"), name
        self.name, self.help, self.labels, self.bounds = name, help, labels, bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def samples(self) -> Iterable[Sample]:
        total = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.buckets, strict=True):
            total += count
            yield Sample(f"{self.name}_bucket", "histogram", self.help, total, (*self.labels, ("le", bound)))
        yield Sample(f"{self.name}_count", "histogram", self.help, total, self.labels)
        yield Sample(f"{self.name}_sum", "histogram", self.help, self.sum, self.labels)


Figure = TypeVar("Figure", Counter, Gauge, Histogram)
Source = Callable[[], Iterable[Sample]]


class Registry:
    """All figures of a process: its own counters, and sources that are called at each reading (status of the service, mounts)."""

    def __init__(self) -> None:
        self._own: list[Counter | Gauge | Histogram] = []
        self._sources: list[Source] = []
        self._failures = self.counter("awsomefsd_scrape_errors_total", "Sources of figures that could not answer.")

    def counter(self, name: str, help: str, **labels: str) -> Counter:
        return self._keep(Counter(name, help, tuple(sorted(labels.items()))))

    def gauge(self, name: str, help: str, **labels: str) -> Gauge:
        return self._keep(Gauge(name, help, tuple(sorted(labels.items()))))

    def histogram(self, name: str, help: str, **labels: str) -> Histogram:
        return self._keep(Histogram(name, help, tuple(sorted(labels.items()))))

    def _keep(self, figure: Figure) -> Figure:
        """Adds a figure of this process; the thread that counts with it keeps it."""
        self._own.append(figure)
        return figure

    def source(self, source: Source) -> None:
        """Adds a callable that is asked for samples at every reading, on the reader's thread.

        It must return soon, and may raise nothing but domain errors.
        """
        self._sources.append(source)

    def samples(self) -> list[Sample]:
        """Returns all figures of this moment; calls every source, and blocks as long as they do.

        A source that raises a domain error loses its own figures, which awsomefsd_scrape_errors_total counts; the others are there.
        """
        found: list[Sample] = []
        for source in self._sources:
            try:
                found.extend(list(source()))
            except Error:
                self._failures.add()
        return [sample for figure in self._own for sample in figure.samples()] + found
