"""build.py bench: the same client on our mount, on ext4 and on a null FUSE server, in one run, as rates and as ratios.

The targets take turns measure by measure and run by run, so that a noisy minute hits all of them; the median of the runs is shown.
Figures of one machine say little, the ratios of one run say more; `--json` and `--record` keep both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT, BuildError, bad, good, warn
from tests.bench import one_node_page, record
from tests.bench.measures import CALLS, FULL, QUICK, Amounts, Row, settle
from tests.bench.peers import PEERS
from tests.bench.programs import PROGRAMS, NotInstalled
from tests.bench.targets import Ext4, Null, Ours, Target

RUNS, RUNS_QUICK = 5, 1
MEASURES = [*CALLS, *PROGRAMS]
Rates = dict[str, dict[str, list[float]]]
Costs = dict[str, dict[str, list[float]]]  # measure → "target: process" → µs of CPU for each operation or MiB


# --- rates --------------------------------------------------------------------------------------------------------------------
def prepare(target: Target, folder: Path, amounts: Amounts, row: Row) -> None:
    _, _, measure, preparation = row
    if callable(preparation):
        preparation(folder, amounts)
        settle(folder, amounts)
    elif preparation == "cold":
        target.remount()
    elif preparation == "warm":
        measure(folder, amounts)
    elif preparation == "settled":
        settle(folder, amounts)


def measure_all(targets: list[Target], amounts: Amounts, runs: int) -> tuple[Rates, Costs]:
    rates: Rates = {name: {target.name: [] for target in targets} for name, *_ in MEASURES}
    costs: Costs = {name: {} for name, *_ in MEASURES}
    failed: set[tuple[str, str]] = set()
    with Progress(transient=True) as progress:
        task = progress.add_task("measuring", total=runs * len(MEASURES) * len(targets))
        for number in range(runs):
            for target in targets:
                (target.folder / f"run{number}").mkdir()
            for row in MEASURES:
                name, _, measure, _ = row
                for target in targets:
                    progress.update(task, description=f"{name} on {target.name}", advance=1)
                    folder = target.folder / f"run{number}"
                    try:
                        prepare(target, folder, amounts, row)
                        before = target.cpu_us()
                        done = measure(folder, amounts)
                    except OSError as err:
                        if isinstance(target, Ours) and not isinstance(err, NotInstalled):
                            raise
                        failed.add((target.name, f"{name}: {err}"))  # the null server keeps no data, some measures end there
                        continue
                    rates[name][target.name].append(done.rate)
                    for process, used in target.cpu_us().items():
                        costs[name].setdefault(f"{target.name}: {process}", []).append((used - before[process]) / done.count)
            for target in targets:
                shutil.rmtree(target.folder / f"run{number}", ignore_errors=target.name == Null.name)
    for where, why in sorted(failed):
        warn(f"not measured on {where}: {why}")
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
        goals = ", ".join(f"{least:g} × {other}" for other, least in one_node_page.GOALS.get(name, {}).items())
        table.add_row(name, *cells, *ratios, goals)
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


def targets(stack: contextlib.ExitStack, ours: Ours, peers: bool) -> list[Target]:
    """All that could be made; `stack` closes them."""
    durable = Ours(names="durable")
    stack.callback(durable.close)
    made: list[Target] = [ours, durable]
    for kind in (Ext4, Null, *(PEERS if peers else ())):
        try:
            target = kind()
        except (BuildError, OSError, subprocess.TimeoutExpired) as err:
            warn(f"without {kind.name}: {err}")
            continue
        stack.callback(target.close)
        made.append(target)
    return made


def run(amounts: Amounts, runs: int, peers: bool) -> record.Run:
    """Measures, shows, and returns the figures as they are kept (record.py)."""
    console, before = Console(width=max(Console().width, 150)), os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        ours = Ours(names="delegated")
        stack.callback(ours.close)
        own = measure_node(ours.node, 3 if runs == 1 else 5)
        made = targets(stack, ours, peers)
        rates, costs = measure_all(made, amounts, runs)
    found, spent, names = medians(rates), medians(costs), [target.name for target in made]
    show(console, found, names)
    show_costs(console, spent)
    show_node(console, own)
    units = {name: unit for name, unit, *_ in MEASURES}
    measures = {
        name: {
            "unit": units[name],
            "rates": {target: [record.digits(value) for value in values] for target, values in row.items() if values},
            "cpu_us": {process: record.digits(value) for process, value in spent[name].items()},
        }
        for name, row in rates.items()
    }
    return record.made(measures, own, names, runs, (before, os.getloadavg()[0]))


def main() -> int:
    arguments = argparse.ArgumentParser(description="figures beside ext4 and a null FUSE server")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--peers", action="store_true", help="beside MooseFS and GlusterFS too")
    arguments.add_argument("--record", action="store_true", help="keep the figures in docs/figures and make the page again")
    arguments.add_argument("--json", default="")
    chosen = arguments.parse_args()
    if os.geteuid() != 0:
        bad("the benchmark mounts and drops caches: it needs root")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nodes, namespaces and loop devices go then too
    try:
        figures = run(QUICK if chosen.quick else FULL, RUNS_QUICK if chosen.quick else RUNS, chosen.peers)
        if chosen.json:
            Path(chosen.json).write_text(json.dumps(figures, indent=1) + "\n")
        if chosen.record:
            good(f"kept in {record.keep(figures).relative_to(CHECKOUT)}")
            return one_node_page.main()
    except BuildError as err:
        bad(str(err))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
