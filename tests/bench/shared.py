"""build.py bench --shared: three nodes on one disk beside MooseFS and GlusterFS with three clients, and ext4 as the machine's limit.

All on this machine, in turn in one run: measure by measure, round by round, so a noisy minute hits all; medians are shown, and ratios of
ours to the others.  The load of the machine is said, for it decides more than anything else.  What compares and what not is said in
shared_places.py.  Ours alone: requests to the leader, and how long a dead node's lock and files are kept from the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from buildtools import sharing
from buildtools.cluster import Cluster
from buildtools.nodes import await_true
from buildtools.say import BuildError, bad, good, line, step, warn
from tests.bench.shared_measures import FULL, MEASURES, QUICK, READ_AGAIN, Amounts, Wrong
from tests.bench.shared_places import Gluster, Local, Moose, Ours, SharedPlace

ROUNDS, ROUNDS_QUICK = 3, 1
UNCACHED = "shared,cache=none"
LOOSE = "shared,consistency=close-to-open"  # reads through pages of the kernel; all else is as it is without the option
FOREIGN = (Local, Moose, Gluster)
BY_THE_CLOCK = frozenset(("Renew", "Report", "NodeReport", "ReportDevices", "GetStatus", "GetReports", "GetSessions", "ListNodes", "Hello"))
Found = dict[str, dict[str, list[float]]]


class Run:
    """What was measured so far."""

    def __init__(self, amounts: Amounts) -> None:
        self.amounts = amounts
        self.found: Found = {name: defaultdict(list) for name, *_ in MEASURES}
        self.wrong: dict[tuple[str, str], str] = {}
        self.requests: dict[tuple[str, str], list[float]] = defaultdict(list)

    def measure(self, place: SharedPlace, number: int) -> None:
        began = time.monotonic()
        folders = [folder / f"{place.name}-{number}" for folder in place.folders]
        folders[0].mkdir()
        for name, _, measure in MEASURES:
            if place.name == LOOSE and name != READ_AGAIN:
                continue
            before = place.cluster.requests() if isinstance(place, Ours) else None
            try:
                self.found[name][place.name].append(measure(folders, self.amounts))
            except (Wrong, OSError) as err:
                if isinstance(place, Ours):
                    raise BuildError(f"{name} on {place.name}: {err}") from err
                self.wrong[name, place.name] = str(err)
            if isinstance(place, Ours) and before is not None:
                asked = place.cluster.requests() - before
                self.note(name, place.name, sum(count for kind, count in asked.items() if kind not in BY_THE_CLOCK))
        good(f"round {number + 1}, {place.name}: {time.monotonic() - began:.1f} s, load {os.getloadavg()[0]:.1f}")

    def note(self, name: str, place: str, asked: int) -> None:
        nodes = 3
        if name == "3 nodes write, a file each":
            self.requests["requests to the leader per GiB written", place].append(asked * 1024 / (nodes * self.amounts.stream_mib))
        elif name == "3 nodes create in one directory":
            self.requests["requests to the leader per 1,000 creates", place].append(asked * 1_000 / (nodes * self.amounts.creates))
        elif name == "read on B after a write on A":
            self.requests["requests to the leader per handover", place].append(asked / self.amounts.turns)


def deaths(cluster: Cluster) -> dict[str, float]:
    """Seconds from the end of a node until another has its lock and reads what it wrote."""
    found = {}
    for what, leads, how in (
        ("a node is killed that does not lead", False, sharing.kill),
        ("the leading node is killed", True, sharing.kill),
        ("a node is stopped cleanly", False, sharing.stop),
    ):
        leader = cluster.await_leader()
        victim = leader if leads else next(node for node in reversed(cluster.nodes) if node is not leader)
        found[f"{what}: its lock and file are another's after, s"] = sharing.node_ends(cluster, victim, lambda text: None, how).heir_s
        await_true("three voters again", cluster.whole, 120, 0.1)
    return found


def show(run: Run, own: dict[str, float], names: list[str]) -> None:
    table = Table(title="medians; ratios of the first to the others (greater is better)", title_justify="left")
    table.add_column("measure")
    for name in names:
        table.add_column(name, justify="right")
    for name in names[1:]:
        table.add_column(f"to {name}", justify="right")
    for name, unit, _ in MEASURES:
        row = {place: statistics.median(values) for place, values in run.found[name].items() if (name, place) not in run.wrong}
        cells = []
        for place in names:
            cells.append(run.wrong.get((name, place), "-") if place not in row else f"{row[place]:,.{2 if unit == 'ms' else 0}f} {unit}")
        for place in names[1:]:
            both = place in row and names[0] in row and row[names[0]] and row[place]
            cells.append("-" if not both else f"{(row[place] / row[names[0]] if unit == 'ms' else row[names[0]] / row[place]):.2f}")
        table.add_row(name, *cells)
    console = Console(width=max(Console().width, 150))
    console.print(table)
    for place in names:
        rates = run.found["1 node writes"].get(place), run.found["3 nodes write, a file each"].get(place)
        if rates[0] and rates[1]:
            line(f"  3 nodes write {statistics.median(rates[1]) / statistics.median(rates[0]):.2f} times what one does: {place}")
    for (what, place), values in sorted(run.requests.items()):
        line(f"  {what}, {place}: {statistics.median(values):,.1f}")
    for what, value in own.items():
        line(f"  {what}: {value:.1f}")


def measure_all(amounts: Amounts, rounds: int, beside: bool, die: bool) -> dict[str, Any]:
    loads = [os.getloadavg()[0]]
    run, own = Run(amounts), dict[str, float]()
    with contextlib.ExitStack() as stack:
        step("Setting up")
        ours = Ours()
        stack.callback(ours.close)
        places: list[SharedPlace] = []
        for kind in FOREIGN if beside else FOREIGN[:1]:
            try:
                place = kind()
            except BuildError as err:
                warn(f"without {kind.name}: {err}")
                continue
            stack.callback(place.close)
            places.append(place)
        modes = ["shared", *filter(knows, (UNCACHED, LOOSE))]
        step("Measuring")
        try:
            for number in range(rounds):
                for mode in modes:
                    ours.remount(mode)
                    run.measure(ours, number)
                for place in places:
                    run.measure(place, number)
                loads.append(os.getloadavg()[0])
        except KeyboardInterrupt:
            warn("interrupted: figures are of fewer rounds")
        if die:
            step("Nodes that end")
            ours.remount("shared")
            own = deaths(ours.cluster)
    names = [*modes, *(place.name for place in places)]
    show(run, own, names)
    line(f"  load of the machine: {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} processors")
    return {"loads": loads, "runs": run.found, "wrong": {" ".join(key): said for key, said in run.wrong.items()}, "ends": own}


def knows(options: str) -> bool:
    from awsomefsd import mount_options
    from awsomefsd.errors import ConfigError

    try:
        mount_options.parse(mount_options.split(options))
    except ConfigError:
        return False
    return True


def main() -> int:
    arguments = argparse.ArgumentParser(description="three nodes on one disk beside MooseFS, GlusterFS and ext4")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--alone", action="store_true", help="only beside ext4")
    arguments.add_argument("--no-deaths", action="store_true", help="end no nodes")
    arguments.add_argument("--rounds", type=int, default=0)
    arguments.add_argument("--json", default="")
    chosen = arguments.parse_args()
    if os.geteuid() != 0:
        bad("the benchmark mounts and makes network namespaces: it needs root")
        return 1
    try:
        rounds = chosen.rounds or (ROUNDS_QUICK if chosen.quick else ROUNDS)
        found = measure_all(QUICK if chosen.quick else FULL, rounds, not chosen.alone, not chosen.no_deaths)
    except BuildError as err:
        bad(str(err))
        return 1
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
