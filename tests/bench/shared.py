"""build.py bench --shared: three nodes on one disk beside MooseFS and GlusterFS with three clients, and ext4 as the machine's limit.

All on this machine, in turn in one run: measure by measure, round by round, so a noisy minute hits all; medians are shown, and ratios of
ours to the others.  The load of the machine is said, for it decides more than anything else.  What compares and what not is said in
shared_targets.py.  Ours alone: processor time beside what the machine gives (shared_limits.py), requests to the leader, recalls of leases
(shared_recalls.py), and how long a dead node's lock and files are kept from the others (shared_failover.py).

A filesystem that is not there, or fails, costs its column or its cell and not the run; one of ours that fails is shown as failed, the rest
is measured, and the exit code says it.  `--json` keeps all single values, of which `python -m tests.bench.shared_tables FILE` makes the
tables again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from buildtools.cluster import Cluster
from buildtools.say import BuildError, bad, good, line, step, warn
from tests.bench import requests, shared_failover, shared_limits, shared_recalls
from tests.bench.shared_limits import Processors
from tests.bench.shared_measures import FULL, HANDOVER, IN_ONE, MEASURES, QUICK, READ_AGAIN, READS, WRITES, Amounts, Wrong
from tests.bench.shared_tables import tables
from tests.bench.shared_targets import Gluster, Local, Moose, Ours, SharedTarget

ROUNDS, ROUNDS_QUICK = 5, 1
ROUNDS_S = 600.0  # after that no round begins: on a slow machine there are fewer, and the whole run stays below 20 minutes
ENDS, ENDS_QUICK = 3, 1
STRICT = "shared"
UNCACHED = "shared,cache=none"
LOOSE = "shared,consistency=close-to-open"  # reads through pages of the kernel; all else is as it is without the option
FOREIGN = (Local, Moose, Gluster)
COMMANDS = {"MooseFS": ("mfsmaster", "-v"), "GlusterFS": ("glusterfs", "--version")}
ROWS = dict[str, dict[str, list[Any]]]


def table() -> ROWS:
    return defaultdict(lambda: defaultdict(list))


class Run:
    """What was measured so far."""

    def __init__(self, amounts: Amounts) -> None:
        self.amounts = amounts
        self.found, self.processors, self.requests = table(), table(), table()
        self.wrong: dict[str, dict[str, str]] = defaultdict(dict)

    def measure(self, target: SharedTarget, number: int) -> None:
        """All measures once, in a directory of their own, which is removed."""
        began = time.monotonic()
        folders = [folder / f"{target.name}-{number}" for folder in target.folders]
        folders[0].mkdir()
        for name, _, measure in MEASURES:
            if target.name == LOOSE and name != READ_AGAIN:
                continue
            try:
                with self.counted(name, target):
                    self.found[name][target.name].append(measure(folders, self.amounts))
            except (Wrong, OSError) as err:
                self.wrong[name][target.name] = str(err)
                (bad if isinstance(target, Ours) else warn)(f"{name}, {target.name}: {err}")
        with contextlib.suppress(OSError):
            shutil.rmtree(folders[0])
        os.sync()  # what one target leaves to be written later is not the next one's
        good(f"round {number + 1}, {target.name}: {time.monotonic() - began:.1f} s, load {os.getloadavg()[0]:.1f}")

    @contextlib.contextmanager
    def counted(self, name: str, target: SharedTarget) -> Any:
        """Processor time, and requests to the leader, of what is done inside."""
        cluster = target.cluster if isinstance(target, Ours) else None
        roles = shared_limits.roles(cluster) if cluster else {}
        asked = cluster.requests() if cluster else Counter()
        own = {role: shared_limits.of_processes(pids) for role, pids in roles.items()}
        before = Processors.now()
        yield
        row = Processors.now().since(before)
        for role, pids in roles.items():
            row[f"{role}_s"] = shared_limits.of_processes(pids) - own[role]
        self.processors[name][target.name].append(row)
        if cluster:
            done = cluster.requests() - asked
            self.note(name, target.name, sum(count for kind, count in done.items() if kind not in requests.RENEWALS))

    def note(self, name: str, target: str, asked: int) -> None:
        if name in WRITES:
            self.requests[f"per GiB: {name}"][target].append(asked * 1024 / ((1 + WRITES.index(name)) * self.amounts.stream_mib))
        elif name in READS:
            self.requests[f"per GiB: {name}"][target].append(asked * 1024 / ((1 + READS.index(name)) * self.amounts.stream_mib))
        elif name == IN_ONE:
            self.requests[f"per 1,000: {name}"][target].append(asked * 1_000 / (3 * self.amounts.creates))
        elif name == HANDOVER:
            self.requests[f"each: {name}"][target].append(asked / self.amounts.turns)

    def told(self) -> dict[str, Any]:
        return {"runs": self.found, "processors": self.processors, "requests": self.requests, "wrong": self.wrong}


def asked_for_names(ours: Ours, count: int) -> dict[str, dict[str, Any]]:
    """Requests to the leader for each 1,000 creates, by who works where."""
    found: dict[str, dict[str, Any]] = {}
    for where, places in requests.situations(ours).items():
        found[where] = {}
        for what in ("create, close", "create, write 4 KiB, close"):
            asked, rate = requests.measure(ours, places, requests.WORKS[what], count)
            found[where][what] = {"requests": sum(asked.values()), "rate": rate, "kinds": dict(asked.most_common())}
    return found


def settle(cluster: Cluster) -> None:
    """What measures left is written out and removed, so that it does not meet what comes next."""
    for node in cluster.nodes:
        node.cli("flush", str(node.mountpoint))


class Bench:
    """The whole run; `found` is what `--json` keeps, and is complete up to where it stopped."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.amounts = QUICK if chosen.quick else FULL
        self.rounds = chosen.rounds or (ROUNDS_QUICK if chosen.quick else ROUNDS)
        self.run = Run(self.amounts)
        self.loads = [os.getloadavg()[0]]
        machine = {"kernel": platform.release(), "processors": os.cpu_count(), "python": platform.python_version()}
        self.found: dict[str, Any] = {
            "began": time.strftime("%Y-%m-%d %H:%M:%S"), "machine": machine, "amounts": asdict(self.amounts), "rounds": 0,
            "units": {name: unit for name, unit, _ in MEASURES}, "ttl_s": shared_failover.TTL_S, "loads": self.loads, "failed": "",
            "others_percent": [], "versions": {name: version(*words) for name, words in COMMANDS.items()},
        }  # fmt: skip

    def targets(self, stack: contextlib.ExitStack) -> list[SharedTarget]:
        made: list[SharedTarget] = []
        for kind in FOREIGN[:1] if self.chosen.alone else FOREIGN:
            try:
                target = kind()
            except (BuildError, OSError, subprocess.TimeoutExpired) as err:
                warn(f"without {kind.name}: {err}")
                self.found.setdefault("without", {})[kind.name] = str(err)
                continue
            stack.callback(target.close)
            made.append(target)
        return made

    def measure(self) -> None:
        with contextlib.ExitStack() as stack:
            step("What the machine gives")
            self.found["others_percent"] = [shared_limits.others_percent()]
            self.found["limits"] = shared_limits.machine(self.amounts.stream_mib, self.rounds)
            step("Setting up")
            ours = Ours()
            stack.callback(ours.close)
            targets = self.targets(stack)
            modes = [STRICT, *filter(knows, (UNCACHED, LOOSE))]
            self.found["places"] = [*modes, *(target.name for target in targets)]
            self.found["idle"] = shared_limits.idle(ours.cluster)
            step("Measuring")
            until = time.monotonic() + ROUNDS_S
            while self.found["rounds"] < self.rounds and time.monotonic() < until:
                for mode in modes:
                    ours.remount(mode)
                    self.run.measure(ours, self.found["rounds"])
                for target in targets:
                    self.run.measure(target, self.found["rounds"])
                self.found["rounds"] += 1
                self.loads.append(os.getloadavg()[0])
            self.alone(ours)

    def alone(self, ours: Ours) -> None:
        ours.remount(STRICT)
        settle(ours.cluster)
        step("Requests to the leader")
        self.found["names"] = asked_for_names(ours, min(self.amounts.creates, requests.COUNT))
        step("Recalls")
        settle(ours.cluster)
        self.found["recalls"] = shared_recalls.measure(ours.cluster, self.amounts.samples)
        if not self.chosen.no_deaths:
            step("Nodes that end")
            self.found["ends"] = shared_failover.measure(ours.cluster, ENDS_QUICK if self.chosen.quick else ENDS)

    def go(self) -> int:
        began = time.monotonic()
        try:
            self.measure()
        except KeyboardInterrupt:
            self.found["failed"] = "interrupted"
        except Exception as err:  # whatever it is, what was measured before it is kept
            self.found["failed"] = f"{type(err).__name__}: {err}"
            traceback.print_exc()
        self.found["others_percent"].append(shared_limits.others_percent())
        self.loads.append(os.getloadavg()[0])
        self.found |= self.run.told() | {"minutes": (time.monotonic() - began) / 60}
        if self.chosen.json:
            Path(self.chosen.json).write_text(json.dumps(self.found, indent=1) + "\n")
        line("\n" + tables(self.found))
        if self.found["failed"]:
            bad(self.found["failed"])
        own = [f"{name}, {target}" for name, row in self.run.wrong.items() for target in row if target.startswith(STRICT)]
        return 1 if own or self.found["failed"] else 0


def version(*words: str) -> str:
    """What a program says of itself first; "" if it is not there."""
    path = shutil.which(words[0], path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        return ""
    done = subprocess.run([path, *words[1:]], capture_output=True, text=True, timeout=30, check=False)
    return next(iter((done.stdout + done.stderr).splitlines()), "")


def knows(options: str) -> bool:
    from awsomefsd.base.errors import ConfigError
    from awsomefsd.config import mount_options

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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nodes, namespaces and loop devices go then too
    return Bench(chosen).go()


if __name__ == "__main__":
    sys.exit(main())
