"""What the same write costs at once again, and behind a wait: `python -m tests.bench.cold_code`.

A mount without a kernel, its device in memory, the metadata service in the same process; µs of CPU of the calling thread, so the load of
the machine changes them less than the time that passes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from buildtools.say import line
from tests.rigs.mount_without_kernel import rig

ROUNDS, OPERATIONS = 5, 200
PAUSES_S = (0.0, 0.002, 0.02)
BLOCK = bytes(4096)


def us_each(operation: Callable[[int], None], pause_s: float) -> float:
    used = 0
    for number in range(OPERATIONS):
        if pause_s:
            time.sleep(pause_s)
        began = time.thread_time_ns()
        operation(number)
        used += time.thread_time_ns() - began
    return used / OPERATIONS / 1_000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, rig(Path(folder)) as made:
        ino = made.file(b"x", bytes(4 * len(BLOCK)))
        fh = made.open(ino)

        def write(number: int) -> None:
            made.write(ino, fh, len(BLOCK) * (number % 4), BLOCK)

        def write_and_sync(number: int) -> None:
            write(number)
            made.fsync(ino, fh)

        found: dict[tuple[str, float], list[float]] = {}
        for _ in range(ROUNDS):
            for name, operation in (("4 KiB write", write), ("4 KiB write + fsync", write_and_sync)):
                for pause_s in PAUSES_S:
                    found.setdefault((name, pause_s), []).append(us_each(operation, pause_s))
                made.fsync(ino, fh)
    for (name, pause_s), each in found.items():
        line(f"{name}, after {pause_s * 1_000:g} ms: {statistics.median(each):,.0f} µs of CPU")


if __name__ == "__main__":
    main()
