"""build.py bench --voters: metadata on 1, 3 and 5 voters beside three members of etcd; starting with many inodes; catching up.

Voters and members are processes on this machine with TLS between them, each with its own light client (voter_load.py; etcd's `benchmark`).
They take turns run by run, each run on fresh directories, so that a noisy minute hits all; medians are shown, and their ratio to etcd's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from buildtools.say import BuildError, warn
from tests.bench import inodes
from tests.bench.etcd import Etcd, build_tool
from tests.rigs.voter_certificates import Authority
from tests.rigs.voter_daemons import Cluster, Daemon, awaited

CLIENTS = {1: 1_500, 8: 6_000, 64: 16_000}  # clients → operations of one run
LOAD = Path(__file__).with_name("voter_load.py")
ETCD = "etcd, 3"
MIB = 1 << 20
Figures = dict[str, float]


def load(socket: Path, kind: str, clients: int, count: int, source: Path | None = None) -> Figures:
    env = os.environ | {"PYTHONPATH": str(source or Path(__file__).parents[2])}
    argv = [sys.executable, str(LOAD), str(socket), kind, str(clients), str(count)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=1_800)
    if done.returncode:
        raise BuildError(f"load {kind}: {done.stderr[-1000:]}")
    found: Figures = json.loads(done.stdout)
    return found


# --- commits ------------------------------------------------------------------------------------------------------------------
def commits(runs: int, divide: int, tool: Path | None) -> dict[str, dict[int, list[Figures]]]:
    found: dict[str, dict[int, list[Figures]]] = {}
    for _ in range(runs):
        for voters in (1, 3, 5):
            row = found.setdefault(f"voters, {voters}", {})
            with closing(Cluster(voters)) as cluster:
                cluster.start()
                leader = cluster.leader()
                for clients, count in CLIENTS.items():
                    before = cpu_ms(cluster.pids())
                    row.setdefault(clients, []).append(load(leader.socket, "put", clients, count // divide))
                    row[clients][-1]["cpu_us"] = (cpu_ms(cluster.pids()) - before) * 1000 / (count // divide)
        if tool is not None:
            with closing(Etcd(3, tool)) as etcd:
                for clients, count in CLIENTS.items():
                    before = cpu_ms(etcd.pids())
                    runs_of = found.setdefault(ETCD, {}).setdefault(clients, [])
                    runs_of.append(etcd.put(clients, count // divide))
                    runs_of[-1]["cpu_us"] = (cpu_ms(etcd.pids()) - before) * 1000 / (count // divide)
    return found


def median(figures: list[Figures], key: str) -> float:
    return statistics.median(one[key] for one in figures)


def show_commits(console: Console, found: dict[str, dict[int, list[Figures]]]) -> None:
    table = Table(title="commits: median of the runs (lowest to highest rate)", title_justify="left")
    for heading in ("who", "clients", "commits/s", "p50 ms", "p99 ms", "CPU µs each", "rate to etcd"):
        table.add_column(heading, justify="left" if heading == "who" else "right")
    for who, rows in found.items():
        for clients, runs in rows.items():
            rate = median(runs, "rate")
            rates = sorted(one["rate"] for one in runs)
            ratio = f"{rate / median(found[ETCD][clients], 'rate'):.2f}" if ETCD in found else "-"
            spread = f"{rate:,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"
            table.add_row(
                who,
                str(clients),
                spread,
                f"{median(runs, 'p50_ms'):.2f}",
                f"{median(runs, 'p99_ms'):.1f}",
                f"{median(runs, 'cpu_us'):,.0f}",
                ratio,
            )
    console.print(table)


# --- starting with many inodes ------------------------------------------------------------------------------------------------
def memory(pid: int) -> Figures:
    """Own memory, and pages of files (LMDB's map, the program itself), in MiB."""
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"own_mib": int(rows["RssAnon"].split()[0]) / 1024, "mapped_mib": int(rows["RssFile"].split()[0]) / 1024}


def cpu_ms(pids: list[int]) -> float:
    """Used so far by these processes: unlike rates, not much disturbed by others on the machine."""
    ticks = 0
    for pid in pids:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def started(daemon: Daemon, name: str) -> Figures:
    """From the start of the process to the first answer of the metadata service."""
    began = time.monotonic()
    daemon.start()
    awaited("the metadata service", daemon.asked, 0.005)
    return {f"{name}_ms": (time.monotonic() - began) * 1000, f"{name}_cpu_ms": cpu_ms([daemon.pid])}


def starting(count: int) -> Figures:
    directory = Path(tempfile.mkdtemp(prefix="awsomefsd-inodes-"))
    cluster, node = str(uuid.uuid4()), str(uuid.uuid4())
    daemon = Daemon(directory, node, cluster, "", Authority())
    try:
        inodes.build(daemon.state / "meta", cluster, node, count)
        found = {"inodes": float(count), "store_mib": (daemon.state / "meta/store/data.mdb").stat().st_blocks * 512 / MIB}
        Path("/proc/sys/vm/drop_caches").write_text("3")
        found |= started(daemon, "start_cold")
        daemon.end()
        found |= started(daemon, "start")
        found |= {f"idle_{name}": value for name, value in memory(daemon.pid).items()}
        found["looks_rate"] = load(daemon.socket, "look", 8, 20_000)["rate"]
        wide = load(daemon.socket, "wide", 64, 30_000)
        found |= {"wide_rate": wide["rate"], "wide_p99_ms": wide["p99_ms"]}
        found["commit_ms_max"] = float(daemon.asked()["store_commit_ms_max"])
        found |= {f"busy_{name}": value for name, value in memory(daemon.pid).items()}
        daemon.end()
        found |= started(daemon, "start_after_kill")
        return found
    finally:
        daemon.end()
        shutil.rmtree(directory)


# --- catching up ----------------------------------------------------------------------------------------------------------------
def catch_up(entries: int, fill: int) -> Figures:
    """A follower that was away while `entries` were committed, and `fill` values of 60,000 bytes."""
    with closing(Cluster(3)) as cluster:
        cluster.start()
        leader = cluster.leader()
        away = next(daemon for daemon in cluster.all if daemon is not leader)
        awaited("three voters", lambda: away.asked().get("leader") == leader.node)
        away.end()
        before = leader.asked()["last_index"]
        time.sleep(11)  # longer than a leader keeps entries for one that does not answer (VOTER_DOUBT_MS)
        if fill:
            load(leader.socket, "fill", 16, fill)
        load(leader.socket, "put", 64, entries)
        wanted = leader.asked()["applied"]
        began = time.monotonic()
        away.start()
        awaited("its first answer", away.asked, 0.01)
        answered = time.monotonic() - began
        awaited("what was missed", lambda: away.asked().get("applied", 0) >= wanted, 0.01)
        took = time.monotonic() - began
        snapshots = away.asked()["snapshots_installed"]
        size = (away.state / "meta/store/data.mdb").stat().st_size / MIB if snapshots else (wanted - before) * 450 / MIB
        return {
            "entries": wanted - before, "snapshots": snapshots, "mib": size, "started_s": answered, "level_s": took,
            "mib_per_s": size / (took - answered), "entries_per_s": (wanted - before) / (took - answered),
        }  # fmt: skip


# --- all of it --------------------------------------------------------------------------------------------------------------------
def show(console: Console, title: str, figures: Figures) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.1f}")
    console.print(table)


def run(console: Console, chosen: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "commits" in chosen.parts:
        try:
            tool = build_tool(Path(chosen.tool))
        except BuildError as err:
            warn(f"without etcd: {err}")
            tool = None
        found["commits"] = commits(chosen.runs, 5 if chosen.quick else 1, tool)
        show_commits(console, found["commits"])
    if "start" in chosen.parts:
        for count in [100_000] if chosen.quick else chosen.inodes:
            found[f"start {count}"] = starting(count)
            show(console, f"a daemon with {count:,} inodes", found[f"start {count}"])
    if "catchup" in chosen.parts:
        for title, entries, fill in [("log", 15_000, 0), ("snapshot", 30_000, 1_000 if chosen.quick else 4_000)]:
            found[f"catch-up by {title}"] = catch_up(entries, fill)
            show(console, f"a follower that was away, by {title}", found[f"catch-up by {title}"])
    return found


def main() -> int:
    arguments = argparse.ArgumentParser(description="metadata on several voters, beside etcd")
    arguments.add_argument("parts", nargs="*", default=["commits", "start", "catchup"], help="commits, start, catchup (default: all)")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--runs", type=int, default=5, help="of the commits")
    arguments.add_argument("--inodes", type=int, nargs="*", default=[1_000_000, 10_000_000])
    arguments.add_argument("--tool", default=str(Path.home() / ".cache/awsomefsd-bench"), help="place of etcd's benchmark tool")
    arguments.add_argument("--json", default="")
    chosen = arguments.parse_args()
    found = run(Console(width=max(Console().width, 110)), chosen)
    if chosen.json:
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()}
        Path(chosen.json).write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
