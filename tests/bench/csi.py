"""What a volume costs in Kubernetes: `.venv/bin/python tests/bench/csi.py [N]` on a machine where nodes may be made (root, /dev/fuse).

Six volumes one after another and the rest at once, each from CreateVolume to the first write in a mounted target; then the memory of
all that are mounted (PSS, so that what processes share counts once).  Beside it what this machine takes at this moment to start a Python
process that does nothing: a worker that were started for each volume would cost that, several times.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from buildtools import procs  # noqa: E402
from tests.conftest import making_nodes  # noqa: E402
from tests.csi.rig import Player, playing  # noqa: E402

ALONE, SETTLE_S = 6, 10.0


def timed_ms(times: list[float]) -> list[int]:
    return [round((after - before) * 1_000) for before, after in itertools.pairwise(times)]


def live(player: Player, name: str) -> tuple[str, str, list[int]]:
    """A volume up to its first write: (volume, pod, ms of CreateVolume, stage, publish, write)."""
    times = [time.monotonic()]
    volume = player.create(f"pvc-{name}")
    times.append(time.monotonic())
    player.stage(volume)
    times.append(time.monotonic())
    place = player.publish(volume, f"pod-{name}")
    times.append(time.monotonic())
    (place / "file").write_text("x")
    return volume, f"pod-{name}", timed_ms([*times, time.monotonic()])


def start_of_python_ms() -> int:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return round((time.monotonic() - began) * 1_000)


def pss_mib(pid: int) -> float:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("Pss:")).split()[1]) / 1024


def memory(player: Player) -> None:
    every = [(role or "forker", pss_mib(pid)) for pid, role in procs.owned(str(player.node.directory)).items()]
    for role in sorted({role for role, _ in every}):
        sizes = [size for one, size in every if one == role]
        print(f"memory: {len(sizes)} {role}, {sum(sizes):.0f} MiB, {statistics.median(sizes):.1f} each")
    print(f"memory of all: {sum(size for _, size in every):.0f} MiB")


def run(player: Player, count: int) -> None:
    made = [live(player, f"one-{n}") for n in range(ALONE)]
    base = statistics.median(start_of_python_ms() for _ in range(5))
    totals = [sum(steps) for *_, steps in made]
    for *_, (create, stage, publish, write) in made:
        print(f"one: create {create}, stage {stage}, publish {publish}, write {write} ms")
    print(f"one, median: {statistics.median(totals):.0f} ms; a start of Python: {base} ms; ratio {statistics.median(totals) / base:.1f}")
    volume, pod, _ = made[0]
    player.unpublish(volume, pod)
    player.unstage(volume)
    began = time.monotonic()
    player.stage(volume)
    staged = time.monotonic()
    player.publish(volume, pod)
    stage, publish = timed_ms([began, staged, time.monotonic()])
    print(f"existing: stage {stage}, publish {publish} ms")
    began = time.monotonic()
    with ThreadPoolExecutor(max(1, count - ALONE)) as pool:
        made += pool.map(lambda n: live(player, f"all-{n}"), range(count - ALONE))
    print(f"{count - ALONE} at once: {time.monotonic() - began:.1f} s; load {os.getloadavg()[0]:.0f}")
    time.sleep(SETTLE_S)  # freed memory is given back by a look each second
    memory(player)
    for volume, pod, _ in made:
        player.unpublish(volume, pod)
        player.unstage(volume)
        player.delete(volume)
    player.await_nothing_left()


if __name__ == "__main__":
    with contextmanager(making_nodes)() as make, playing(make(up=False, size_bytes=64 << 30)) as one:
        run(one, int(sys.argv[1]) if len(sys.argv) > 1 else 106)
