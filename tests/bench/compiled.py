"""The compiled program beside the interpreted one, in one run: `python -m tests.bench.compiled`.

Two nodes with the measures of bench.py, in turn on both; medians of the rounds, and ratios.  The interpreted one is the venv's, the
compiled one what AWSOMEFSD_BINARY names, else the last build.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from buildtools import binary
from buildtools.say import BuildError, line
from tests.bench import measures
from tests.bench.bench import daemon_start_ms, worker_start_ms
from tests.bench.places import Ours, drop_caches

SIDES = ("interpreted", "compiled")


def _round(place: Ours, number: int, amounts: measures.Amounts) -> dict[str, float]:
    folder, node = place.folder / f"round{number}", place.node
    folder.mkdir()
    found = {"create + close (durable), /s": measures.create(folder, amounts), "stat, names dropped, /s": measures.stat(folder, amounts)}
    found["write a 4 KiB file, /s"] = measures.small_write(folder, amounts)
    found["1 MiB sequential write + fsync, MiB/s"] = measures.stream_write(folder, amounts)
    drop_caches()
    found["1 MiB sequential read, pages dropped, MiB/s"] = measures.stream_read(folder, amounts)
    began = time.perf_counter()
    subprocess.run([*node.program, "--help"], check=True, stdout=subprocess.DEVNULL, env=node.environment())
    found["--help, ms"] = (time.perf_counter() - began) * 1000
    found["worker start, ms"], found["daemon start, ms"] = worker_start_ms(node), daemon_start_ms(node)
    return found


def _place(side: str, compiled: Path) -> Ours:
    os.environ.pop("AWSOMEFSD_BINARY", None)
    if side == "compiled":
        os.environ["AWSOMEFSD_BINARY"] = str(compiled)
    return Ours()


def measure(rounds: int, amounts: measures.Amounts) -> dict[str, tuple[float, float]]:
    """figure -> medians of (interpreted, compiled)."""
    compiled = binary.executable()
    if compiled is None:
        raise BuildError("no binary: python3 build.py binary")
    places: list[Ours] = []
    try:
        for side in SIDES:
            places.append(_place(side, compiled))
        rows = [[_round(place, number, amounts) for place in places] for number in range(rounds)]
    finally:
        for place in places:
            place.close()
    return {name: tuple(statistics.median(row[side][name] for row in rows) for side in (0, 1)) for name in rows[0][0]}  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    line(f"load of the machine: {os.getloadavg()[0]:.1f}")
    line(f"| figure | {' | '.join(SIDES)} | ratio |\n| --- | --- | --- | --- |")
    for name, (before, after) in measure(chosen.rounds, measures.QUICK if chosen.quick else measures.FULL).items():
        line(f"| {name} | {before:,.0f} | {after:,.0f} | {after / before:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
