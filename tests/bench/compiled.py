"""The compiled program beside the interpreted one, in one run: `python -m tests.bench.compiled`.

Two nodes with the measures of bench.py, in turn on both; medians of the rounds, and ratios.  The interpreted one is the venv's, the
compiled one what AWSOMEFSD_BINARY names, else the last build.  Then the starts, each as often as `--starts` says, again in turn; of a
worker twice: forked (decision 89), and as a process of its own on nodes that have no forker because failpoints are named.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from awsomefsd.keeper.client import KeeperClient
from buildtools import binary
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError, line
from tests.bench import measures
from tests.bench.bench import daemon_start_ms, worker_start_ms
from tests.bench.targets import Ours, cpu_us_of, drop_caches

Measured = Callable[[Ours, int], dict[str, float]]
SIDES = ("interpreted", "compiled")


def _round(target: Ours, number: int, amounts: measures.Amounts) -> dict[str, float]:
    folder = target.folder / f"round{number}"
    folder.mkdir()
    found = {
        "create + close (durable), /s": measures.create(folder, amounts).rate,
        "stat, names dropped, /s": measures.stat(folder, amounts).rate,
    }
    found["write a 4 KiB file, /s"] = measures.small_write(folder, amounts).rate
    found["1 MiB sequential write + fsync, MiB/s"] = measures.stream_write(folder, amounts).rate
    drop_caches()
    found["1 MiB sequential read, pages dropped, MiB/s"] = measures.stream_read(folder, amounts).rate
    return found


def _forked_ms(node: Node) -> float:
    client = KeeperClient(node.run)
    await_true("a forker that has loaded", lambda: client.warm(**client.list()[0]["starts"]), 60)
    return worker_start_ms(node)


def _starts(target: Ours) -> dict[str, float]:
    node = target.node
    began, cpu = time.perf_counter(), os.times()
    subprocess.run([*node.program, "--help"], check=True, stdout=subprocess.DEVNULL, env=node.environment())
    found = {"--help, ms": (time.perf_counter() - began) * 1000}
    spent = os.times()
    found["--help, ms of CPU"] = (spent.children_user + spent.children_system - cpu.children_user - cpu.children_system) * 1000
    found["worker start, forked, ms"] = _forked_ms(node)
    found["worker start, forked, ms of CPU"] = cpu_us_of(node.pid("worker")) / 1e3
    found["daemon start, ms"] = daemon_start_ms(node)
    return found | {"daemon start, ms of CPU": cpu_us_of(node.pid("daemon")) / 1e3}


def _alone(target: Ours) -> dict[str, float]:
    found = {"worker start, a process of its own, ms": worker_start_ms(target.node)}
    return found | {"worker start, a process of its own, ms of CPU": cpu_us_of(target.node.pid("worker")) / 1e3}


def _target(side: str, compiled: Path, settings: dict[str, str]) -> Ours:
    os.environ.pop("AWSOMEFSD_BINARY", None)
    if side == "compiled":
        os.environ["AWSOMEFSD_BINARY"] = str(compiled)
    return Ours(settings)


def in_turn(times: int, compiled: Path, measured: Measured, **settings: str) -> dict[str, tuple[float, float]]:
    """figure -> medians of (interpreted, compiled); a node of each, measured so often."""
    targets: list[Ours] = []
    try:
        for side in SIDES:
            targets.append(_target(side, compiled, settings))
        rows = [[measured(target, number) for target in targets] for number in range(times)]
    finally:
        for target in targets:
            target.close()
    return {name: tuple(statistics.median(row[side][name] for row in rows) for side in (0, 1)) for name in rows[0][0]}  # type: ignore[misc]


def measure(rounds: int, starts: int, amounts: measures.Amounts) -> dict[str, tuple[float, float]]:
    compiled = binary.executable()
    if compiled is None:
        raise BuildError("no binary: python3 build.py binary")
    found = in_turn(rounds, compiled, lambda target, number: _round(target, number, amounts)) if rounds else {}
    if starts:
        found |= in_turn(starts, compiled, lambda target, number: _starts(target))
        found |= in_turn(starts, compiled, lambda target, number: _alone(target), AWSOMEFSD_FAILPOINTS="")  # then no forker
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    line(f"load of the machine: {os.getloadavg()[0]:.1f}")
    line(f"| figure | {' | '.join(SIDES)} | ratio |\n| --- | --- | --- | --- |")
    for name, (before, after) in measure(chosen.rounds, chosen.starts, measures.QUICK if chosen.quick else measures.FULL).items():
        line(f"| {name} | {before:,.0f} | {after:,.0f} | {after / before:.2f} |")
    line(f"load of the machine at the end: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
