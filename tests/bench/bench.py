"""build.py bench: the same client on our mount, on ext4 and on a null FUSE server, in one run, as rates and as ratios.

The targets take turns measure by measure and run by run, so that a noisy minute hits all of them; the median of the runs is shown.
Figures of one machine say little, the ratios of one run say more; `--json` keeps both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from buildtools.nodes import Node, await_true
from buildtools.say import BuildError, bad, warn
from tests.bench.measures import FULL, MEASURES, QUICK, Amounts
from tests.bench.targets import Ext4, Null, Ours, Target

RUNS, RUNS_QUICK = 5, 1
GOALS = {
    "create + close": "at least 4,000/s, durable",
    "1 MiB sequential write + fsync": "60 % of ext4, or 400 MiB/s",
    "1 MiB sequential read, cold": "60 % of ext4, or 400 MiB/s",
}
Rates = dict[str, dict[str, list[float]]]
Costs = dict[str, dict[str, list[float]]]  # measure → "target: process" → µs of CPU for each operation or MiB


# --- rates --------------------------------------------------------------------------------------------------------------------
def measure_all(targets: list[Target], amounts: Amounts, runs: int) -> tuple[Rates, Costs]:
    rates: Rates = {name: {target.name: [] for target in targets} for name, *_ in MEASURES}
    costs: Costs = {name: {} for name, *_ in MEASURES}
    failed: set[tuple[str, str]] = set()
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=runs * len(MEASURES) * len(targets))
        for number in range(runs):
            for target in targets:
                (target.folder / f"run{number}").mkdir()
            for name, _, measure, preparation in MEASURES:
                for target in targets:
                    progress.update(task, description=f"{name} on {target.name}", advance=1)
                    if preparation == "cold":
                        target.remount()
                    before = target.cpu_us()
                    try:
                        done = measure(target.folder / f"run{number}", amounts)
                    except OSError as err:
                        if isinstance(target, Ours):
                            raise
                        failed.add((target.name, f"{name}: {err}"))  # the null server keeps no data, some measures end there
                        continue
                    rates[name][target.name].append(done.rate)
                    for process, used in target.cpu_us().items():
                        costs[name].setdefault(f"{target.name}: {process}", []).append((used - before[process]) / done.count)
            for target in targets:
                shutil.rmtree(target.folder / f"run{number}", ignore_errors=target.name == Null.name)
    for row in sorted(failed):
        warn(f"not measured on {row[0]}: {row[1]}")
    return rates, costs


def medians(rates: Rates) -> dict[str, dict[str, float]]:
    return {name: {target: statistics.median(found) for target, found in row.items() if found} for name, row in rates.items()}


# --- the node itself ----------------------------------------------------------------------------------------------------------
def memory_mib(pid: int) -> tuple[float, float]:
    """(RSS, PSS) in MiB."""
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return tuple(int(rows[key].split()[0]) / 1024 for key in ("Rss", "Pss"))  # type: ignore[return-value]


def since_start_ms(pid: int) -> float:
    """How long a process has been running; its start is known to a clock tick (10 ms)."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")) * 1000


def worker_start_ms(node: Node) -> float:
    """From the start of the successor's process to its first answer (statfs is never cached): spawn to ready, and one request more."""
    old = node.kill("worker")["worker"]
    os.statvfs(node.mountpoint)
    return since_start_ms(node.replaced("worker", old))


def daemon_start_ms(node: Node) -> float:
    """From the start of the new daemon's process until its admin socket takes connections."""
    old = node.kill("daemon")["daemon"]
    new = node.replaced("daemon", old)

    def connects() -> bool:
        folder = os.open(node.run, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"/proc/self/fd/{folder}/admin.sock")
                return True
        except OSError:
            return False
        finally:
            os.close(folder)

    await_true("the admin socket", connects, 20, 0.002)
    return since_start_ms(new)


def measure_node(node: Node, times: int) -> dict[str, float]:
    rss, pss = memory_mib(node.pid("worker"))
    return {
        "idle worker, RSS MiB": rss,
        "idle worker, PSS MiB": pss,
        "worker start, ms": statistics.median(worker_start_ms(node) for _ in range(times)),
        "daemon start, ms": statistics.median(daemon_start_ms(node) for _ in range(times)),
    }


# --- what is shown --------------------------------------------------------------------------------------------------------------
def show(console: Console, found: dict[str, dict[str, float]], names: list[str]) -> None:
    """`names`: of ours first."""
    ours = [name for name in names if name.startswith(Ours.name)]
    others = names[len(ours) :]
    table = Table(title="median rates; ratios of ours to the others", title_justify="left")
    table.add_column("measure")
    for name in names:
        table.add_column(name, justify="right")
    for other in others:
        table.add_column(f"to {other}", justify="right")
    table.add_column("to reach")
    for name, unit, *_ in MEASURES:
        row = found[name]
        cells = [f"{row[target]:,.0f} {unit}" if target in row else "-" for target in names]
        ratios = [" ".join(f"{row[one] / row[other]:.2f}" for one in ours) if other in row else "-" for other in others]
        table.add_row(name, *cells, *ratios, GOALS.get(name, ""))
    console.print(table)


def show_costs(console: Console, found: dict[str, dict[str, float]]) -> None:
    processes = list(dict.fromkeys(process for row in found.values() for process in row))
    table = Table(title="median µs of CPU for each operation or MiB", title_justify="left")
    table.add_column("measure")
    for process in processes:
        table.add_column(process, justify="right")
    for name, row in found.items():
        table.add_row(name, *(f"{row[process]:,.0f}" if process in row else "-" for process in processes))
    console.print(table)


def show_node(console: Console, own: dict[str, float]) -> None:
    goals = {"idle worker, RSS MiB": "under 60", "worker start, ms": "under 150", "daemon start, ms": "under 1,000"}
    extra = Table(title="the node", title_justify="left")
    for heading in ("what", "figure", "to reach"):
        extra.add_column(heading, justify="right" if heading == "figure" else "left")
    for name, value in own.items():
        extra.add_row(name, f"{value:,.0f}", goals.get(name, ""))
    console.print(extra)


def run(amounts: Amounts, runs: int, json_path: str) -> None:
    console = Console(width=max(Console().width, 130))
    with contextlib.ExitStack() as stack:
        ours = Ours()
        stack.callback(ours.close)
        own = measure_node(ours.node, 3 if runs == 1 else 5)
        delegated = Ours(names="delegated")
        stack.callback(delegated.close)
        targets: list[Target] = [ours, delegated]
        for kind in (Ext4, Null):
            try:
                target = kind()
            except BuildError as err:
                warn(f"without {kind.name}: {err}")
                continue
            stack.callback(target.close)
            targets.append(target)
        rates, costs = measure_all(targets, amounts, runs)
    found, spent = medians(rates), medians(costs)
    show(console, found, [target.name for target in targets])
    show_costs(console, spent)
    show_node(console, own)
    if json_path:
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()}
        all_of_it = {"machine": machine, "medians": found, "cpu": spent, "runs": rates, "node": own}
        Path(json_path).write_text(json.dumps(all_of_it, indent=2) + "\n")


def main() -> int:
    arguments = argparse.ArgumentParser(description="figures beside ext4 and a null FUSE server")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--json", default="")
    chosen = arguments.parse_args()
    if os.geteuid() != 0:
        bad("the benchmark mounts and drops caches: it needs root")
        return 1
    try:
        run(QUICK if chosen.quick else FULL, RUNS_QUICK if chosen.quick else RUNS, chosen.json)
    except BuildError as err:
        bad(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
