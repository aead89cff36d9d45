"""Budgets over time: what the processes of a node hold while they are killed under load again and again, and what large things cost.

Everything here is for `build.py soak`.  AWSOMEFSD_TEST_SOAK_S is how long the load runs (ten minutes if it is not set).
"""

from __future__ import annotations

import os
import random
import time

import pytest

from awsomefsd.base.limits import DAEMON_MEMORY_BYTES, MIB, WORKER_MEMORY_BYTES
from buildtools import chaos
from tests.faults.rig import errors_of, held

pytestmark = [pytest.mark.root, pytest.mark.soak, pytest.mark.timeout(14_400)]

SOAK_S = float(os.environ.get("AWSOMEFSD_TEST_SOAK_S") or 600)
ROLES = ("worker", "daemon", "keeper", "supervisor")
KILLS = (("worker",), ("daemon",), ("worker",), ("keeper",), ("worker", "daemon"))
GROWTH_MIB_MAX = 40  # between the first and the last third of a run: above it something grows


def sample(node) -> dict[str, int]:
    row: dict[str, int] = {}
    for role in ROLES:
        try:
            row |= {f"{role}_{name}": value for name, value in held(node.pid(role)).items()}
        except OSError:
            continue  # killed just now
    figures = node.ask("status")["figures"]
    row |= {name: int(float(figures[name])) for name in ("store_map_bytes", "journal_bytes", "results_held", "sessions")}
    return row


def trend(rows: list[dict[str, int]], name: str) -> tuple[int, int, int]:
    """(median of the first third, of the last third, most)."""
    values = [row[name] for row in rows if name in row]
    third = max(len(values) // 3, 1)
    return sorted(values[:third])[third // 2], sorted(values[-third:])[third // 2], max(values)


def test_nothing_grows_over_a_soak_with_kills(make_node, figures, seed):
    node = make_node(size_bytes=4 << 30)
    running = chaos.Clients(node.mountpoint / "soak", 4, seed)
    rows: list[dict[str, int]] = []
    dice = random.Random(seed)
    ends, kills = time.monotonic() + SOAK_S, 0
    try:
        while time.monotonic() < ends:
            running.await_progress(dice.choice((20, 60, 200)))
            roles = KILLS[kills % len(KILLS)]
            for role, pid in node.kill(*roles).items():
                node.replaced(role, pid)
            kills += 1
            running.await_progress(20)
            rows.append(sample(node))
        finals = running.finish(600)
    finally:
        running.abandon()
    assert errors_of(finals) + chaos.check_counters(node.mountpoint / "soak", finals) == []
    operations = sum(final["ops"] for final in finals)
    figures.append(f"soak: {SOAK_S:.0f} s, {kills} rounds of kills, {operations:,} verified operations; first third, last third, most:")
    grown = []
    for name in sorted({name for row in rows for name in row}):
        first, last, most = trend(rows, name)
        figures.append(f"  {name:22s} {first:>12,} {last:>12,} {most:>12,}")
        bound = GROWTH_MIB_MAX * 1024 if name.endswith("_kib") else GROWTH_MIB_MAX * MIB if name.endswith("_bytes") else max(first // 2, 16)
        if last - first > bound:
            grown.append(f"{name} from {first:,} to {last:,}")
    assert not grown
    assert trend(rows, "worker_anon_kib")[2] + trend(rows, "worker_memfd_kib")[2] < WORKER_MEMORY_BYTES // 1024
    assert trend(rows, "daemon_anon_kib")[2] < DAEMON_MEMORY_BYTES // 1024


@pytest.fixture(scope="module")
def node(make_node):
    return make_node(size_bytes=4 << 30)


def inside_budgets(node, figures, what: str, began: float) -> None:
    worker, daemon = held(node.pid("worker")), held(node.pid("daemon"))
    used = worker["anon_kib"] + worker["memfd_kib"]
    figures.append(f"{what}: {time.monotonic() - began:.1f} s, worker {used / 1024:.0f} MiB, daemon {daemon['anon_kib'] / 1024:.0f} MiB")
    assert used < WORKER_MEMORY_BYTES // 1024
    assert daemon["anon_kib"] < DAEMON_MEMORY_BYTES // 1024


def test_ten_thousand_open_files(node, figures):
    began, files = time.monotonic(), []
    directory = node.mountpoint / "open"
    directory.mkdir()
    try:
        for number in range(10_000):
            files.append(os.open(directory / f"f{number}", os.O_CREAT | os.O_RDWR, 0o600))
            os.write(files[-1], b"%d" % number)
        inside_budgets(node, figures, "10,000 files made, written and open", began)
        assert all(os.pread(fd, 10, 0) == b"%d" % number for number, fd in enumerate(files))
    finally:
        for fd in files:
            os.close(fd)
    inside_budgets(node, figures, "  and closed", began)


def test_a_sparse_file_of_a_tebibyte(node, figures, seed):
    """Written at 4,000 places all over; each reads back, the holes are zeros, and cutting it off is quick."""
    began, dice = time.monotonic(), random.Random(seed)
    size = 1 << 40
    places = [dice.randrange(size // 4096) * 4096 for _ in range(4_000)]
    with open(node.mountpoint / "sparse", "w+b", buffering=0) as file:
        file.truncate(size)
        for place in places:
            os.pwrite(file.fileno(), place.to_bytes(8, "little") * 512, place)
        os.fsync(file.fileno())
        inside_budgets(node, figures, "1 TiB sparse, 4,000 places written and synced", began)
        for place in places:
            assert os.pread(file.fileno(), 8, place) == place.to_bytes(8, "little")
        assert os.pread(file.fileno(), 4096, size - 4096 - (size - 4096 in places) * 4096) == bytes(4096)
        assert os.fstat(file.fileno()).st_size == size
        file.truncate(0)
    inside_budgets(node, figures, "  read back and truncated", began)
