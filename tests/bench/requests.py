"""How many requests to the leader the work with names costs on a shared mount: counts, which no load of the machine changes.

`python -m tests.bench.requests`: three nodes on one disk, plain loops, by one node alone in its directory, by two in a directory each, by
three in one.  Requests that only time brings are left out.  A loop ends when all that it left behind is flushed, so that commits count too.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.bench.shared_targets import Ours

RENEWALS = frozenset(("Renew", "Report", "NodeReport", "ReportDevices", "GetStatus", "GetReports", "GetSessions", "ListNodes", "Hello"))
BY_THE_CLOCK = RENEWALS | {"GetOrphans", "GetSparse", "GetDevices"}
Work = Callable[[Path, str, int], None]
DATA = os.urandom(4096)
COUNT = 100


def create(place: Path, name: str, count: int) -> None:
    for number in range(count):
        fd = os.open(place / f"{name}{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, DATA)
        os.close(fd)


def create_empty(place: Path, name: str, count: int) -> None:
    for number in range(count):
        os.close(os.open(place / f"e{name}{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def append(place: Path, name: str, count: int) -> None:
    for number in range(count):
        fd = os.open(place / f"{name}{number}", os.O_WRONLY | os.O_APPEND)
        os.write(fd, DATA)
        os.close(fd)


def stat_new(place: Path, name: str, count: int) -> None:
    for number in range(count):
        assert not (place / f"no{name}{number}").exists()


def stat_own(place: Path, name: str, count: int) -> None:
    for number in range(count):
        assert (place / f"{name}{number}").stat().st_size


def rename(place: Path, name: str, count: int) -> None:
    for number in range(count):
        os.rename(place / f"{name}{number}", place / f"r{name}{number}")


def unlink(place: Path, name: str, count: int) -> None:
    for number in range(count):
        os.unlink(place / f"r{name}{number}")


def mkdir(place: Path, name: str, count: int) -> None:
    for number in range(count):
        os.mkdir(place / f"d{name}{number}")


WORKS: dict[str, Work] = {
    "create, write 4 KiB, close": create, "create, close": create_empty, "append 4 KiB": append, "stat of no name": stat_new,
    "stat of own files": stat_own, "rename": rename, "unlink": unlink, "mkdir": mkdir,
}  # fmt: skip


def together(work: Work, places: list[Path], count: int) -> None:
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(places[number], f"n{number}-", count)
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def measure(ours: Ours, places: list[Path], work: Work, count: int) -> tuple[Counter[str], float]:
    """Requests for each 1,000 operations, by kind; operations a second, without the flush behind them."""
    before, began = ours.cluster.requests(), time.perf_counter_ns()
    together(work, places, count)
    took = (time.perf_counter_ns() - began) / 1e9
    for node in ours.cluster.nodes:
        node.cli("flush", str(node.mountpoint))
    asked = ours.cluster.requests() - before
    done = len(places) * count
    found = {kind: round(number * 1000 / done) for kind, number in asked.items() if kind not in BY_THE_CLOCK}
    return Counter(found), done / took


def situations(ours: Ours) -> dict[str, list[Path]]:
    leader = ours.cluster.await_leader()
    roots = [node.mountpoint for node in ours.cluster.nodes if node is not leader] + [leader.mountpoint]
    for name in ("alone", "first", "second", "all"):
        (roots[0] / name).mkdir()
    return {
        "one node alone": [roots[0] / "alone"],
        "two nodes, a directory each": [roots[0] / "first", roots[1] / "second"],
        "three nodes, one directory": [root / "all" for root in roots],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    count = parser.parse_args().count
    ours = Ours()
    try:
        for where, places in situations(ours).items():
            print(f"{where}: requests per 1,000 operations")
            for what, work in WORKS.items():
                asked, rate = measure(ours, places, work, count)
                kinds = ", ".join(f"{kind} {number}" for kind, number in asked.most_common())
                print(f"  {what:28}{sum(asked.values()):7}  ({rate:,.0f}/s, load {os.getloadavg()[0]:.0f}): {kinds}", flush=True)
    finally:
        ours.close()


if __name__ == "__main__":
    sys.exit(main())
