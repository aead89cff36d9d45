"""Figures of this node, read again and again, and what they grew by in a second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
WORKER = "awsomefsd_worker_"
FUSE = f"{WORKER}fuse_requests_total"
LATENCY = f"{WORKER}fuse_request_seconds"


class FiguresRead:
    """All figures of one moment."""

    def __init__(self, at_s: float, values: dict[Key, float]) -> None:
        self.at_s = at_s
        self.values = values

    def total(self, name: str, **labels: str) -> float:
        """Returns the sum of a figure over all its labels that fit; 0 where it is not there."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.values.items() if found == name and wanted <= dict(has).items())

    def label_values(self, name: str, label: str) -> list[str]:
        return sorted({dict(has)[label] for found, has in self.values if found == name and label in dict(has)})

    def operations(self) -> list[str]:
        """Returns the kinds of requests of the kernel that a worker has counted."""
        return self.label_values(FUSE, "opcode")


class Rates:
    """What grew between two readings, a second."""

    def __init__(self, before: FiguresRead, now: FiguresRead) -> None:
        self.before = before
        self.now = now
        self.seconds = max(now.at_s - before.at_s, 1e-6)

    def grown(self, name: str, **labels: str) -> float:
        """Returns by how much a figure grew in all; a figure that began again (a restart) counts from 0."""
        now, before = self.now.total(name, **labels), self.before.total(name, **labels)
        return now - before if now >= before else now

    def per_second(self, name: str, **labels: str) -> float:
        return self.grown(name, **labels) / self.seconds

    def operations(self, **labels: str) -> dict[str, float]:
        """Returns the requests of the kernel a second, by kind; of one mount with its labels."""
        return {kind: self.per_second(FUSE, opcode=kind, **labels) for kind in self.now.operations()}

    def mean(self, total: str, count: str) -> float:
        """Returns what one of `count` took of `total` on average; 0 if there was none."""
        number = self.grown(count)
        return self.grown(total) / number if number else 0.0


    def latency_s(self, **labels: str) -> float | None:
        """Returns how long a request of the kernel took on average; None if no timed one ended."""
        number = self.grown(f"{LATENCY}_count", **labels)
        return self.grown(f"{LATENCY}_sum", **labels) / number if number else None

    def latency_quantile_s(self, quantile: float, **labels: str) -> float | None:
        """Returns the time within which this part of the requests was answered, as Prometheus' histogram_quantile estimates it."""
        name = f"{LATENCY}_bucket"
        bounds = sorted((float(bound), bound) for bound in self.now.label_values(name, "le"))
        counts = [(bound, self.grown(name, le=word, **labels)) for bound, word in bounds]
        if not counts or not counts[-1][1]:
            return None
        rank = quantile * counts[-1][1]
        below, less = 0.0, 0.0
        for bound, count in counts:
            if count >= rank:
                break
            below, less = bound, count
        return below if math.isinf(bound) else below + (bound - below) * (rank - less) / (count - less)


def read(client: AdminClient) -> FiguresRead:
    reply = client.call("GetFigures")
    values = {(one.name, tuple(sorted(one.labels.items()))): one.value for one in reply.figures}
    return FiguresRead(reply.monotonic_s, values)


def rates(client: AdminClient, interval_s: float, count: int) -> Iterator[Rates]:
    """Yields the rates of each interval; for ever if `count` is 0.  Sleeps between."""
    before = read(client)
    made = 0
    while not count or made < count:
        time.sleep(interval_s)
        now = read(client)
        yield Rates(before, now)
        before = now
        made += 1
