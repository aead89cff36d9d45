"""Histograms of requests by kind: what a session counts, and what is left of it behind a kill and an older build."""

from __future__ import annotations

import random
from bisect import bisect_left

from awsomefsd.base.limits import REPORT_FIGURES_MAX
from awsomefsd.fuse import abi, control_area, latencies
from awsomefsd.fuse.abi import Opcode
from awsomefsd.fuse.control_area import CONTROL_BYTES, ControlArea
from awsomefsd.fuse.latencies import BOUNDS_US, TIMED
from awsomefsd.node.health import figures as described
from tests.conftest import SEED
from tests.unit.fuse.dict_filesystem import DictFs
from tests.unit.fuse.test_session import Kernel, mkdir, request


def area() -> ControlArea:
    return ControlArea(bytearray(CONTROL_BYTES), fresh=True)


def test_a_request_is_in_the_first_bucket_that_holds_it() -> None:
    rng = random.Random(SEED)
    control = area()
    times = [bound * 1_000 + step for bound in BOUNDS_US for step in (-1, 0, 1)] + [rng.randrange(20 * 10**9) for _ in range(100)]
    wanted: dict[str, int] = {}
    for took_ns in times:
        control.latencies.count(control.latencies.rows[Opcode.READ], took_ns)
        at = bisect_left([bound * 1_000 for bound in BOUNDS_US], took_ns)
        name = "request_read_le_" + (f"{BOUNDS_US[at]}us" if at < len(BOUNDS_US) else "inf")
        wanted[name] = wanted.get(name, 0) + 1
    assert control.latencies.figures() == {**wanted, "request_read_ns_sum": sum(times)}


def test_a_session_counts_what_it_answers_and_nothing_that_has_no_reply() -> None:
    kernel = Kernel()
    session = kernel.session(DictFs())
    for raw in (mkdir(b"one", 2), mkdir(b"one", 4), request(Opcode.STATFS, 6), request(Opcode.GETLK, 8, 1, bytes(48))):
        kernel.ours.send(raw)
        assert session.read_one(session.slots[0])
        kernel.answer()
    kernel.ours.send(request(Opcode.FORGET, 10, 1, abi.FORGET_IN.pack(1)))
    assert session.read_one(session.slots[0])
    found = session.control.latencies.figures()
    counts = {kind: sum(value for name, value in found.items() if name.startswith(f"request_{kind}_le_")) for kind in ("mkdir", "statfs")}
    assert counts == {"mkdir": 2, "statfs": 1}, "the one that failed, too"
    assert {name.split("_")[1] for name in found} == {"mkdir", "statfs"}


def test_a_request_that_a_successor_repeats_is_not_timed() -> None:
    kernel = Kernel()
    first = kernel.session(DictFs())
    first.control.update(negotiated=control_area.Negotiated(38, 0, 65536, 65536, 12))
    kernel.die(first, request(Opcode.STATFS, 2))
    second = kernel.session(DictFs(), previous={"signal": 9})
    second.recover()
    kernel.answer()
    assert second.control.counters()["fuse_statfs"] == 1 and second.control.latencies.figures() == {}


def test_they_outlive_the_worker_and_begin_again_with_the_area() -> None:
    memory = bytearray(CONTROL_BYTES)
    control = ControlArea(memory, fresh=True)
    control.latencies.count(control.latencies.rows[Opcode.WRITE], 40_000)
    successor = ControlArea(memory)
    successor.latencies.count(successor.latencies.rows[Opcode.WRITE], 50_000)
    assert successor.latencies.figures() == {"request_write_le_100us": 2, "request_write_ns_sum": 90_000}
    assert ControlArea(memory, fresh=True).latencies.figures() == {}


def test_an_area_of_a_worker_without_histograms_has_none() -> None:
    """Such a worker knows header, record and counters, as before; it uses its last counter too, and touches nothing behind."""
    memory = bytearray(CONTROL_BYTES)
    control = ControlArea(memory, fresh=True)
    for number in range(control_area.COUNTERS_MAX):
        control.counter(f"counter_{number}").set((1 << 64) - 1)
    assert ControlArea(memory).latencies.figures() == {}
    for opcode in TIMED:
        control.latencies.count(control.latencies.rows[opcode], 1)
    again = ControlArea(memory)
    assert len(again.counters()) == control_area.COUNTERS_MAX and set(again.counters().values()) == {(1 << 64) - 1}


def test_a_damaged_row_begins_again_and_no_request_is_harmed() -> None:
    control = area()
    row = control.latencies.rows[Opcode.READ]
    for at in (0, len(BOUNDS_US) + 1):
        control._words[row + at] = (1 << 64) - 1
        control.latencies.count(row, 5)
        assert control.latencies.figures() == {}
        control.latencies.count(row, 5)
        assert control.latencies.figures() == {"request_read_le_30us": 1, "request_read_ns_sum": 5}


def test_a_full_report_fits() -> None:
    control = area()
    for opcode in Opcode:
        control.counter(f"fuse_{opcode.name.lower()}")
    for opcode in TIMED:
        for bound in (*BOUNDS_US, 11_000_000):
            control.latencies.count(control.latencies.rows[opcode], bound * 1_000)
    of_requests = len(control.latencies.figures()) + len(control.counters())
    assert len(control.latencies.figures()) == len(TIMED) * (len(BOUNDS_US) + 2)
    assert of_requests + 60 <= REPORT_FIGURES_MAX, "a report with more is dropped; about forty figures are of other things"
    assert max(Opcode) * latencies.ROW_WORDS < latencies.LATENCY_WORDS


def test_the_page_has_cumulative_buckets_of_all_bounds() -> None:
    control = area()
    for took_us in (20, 20, 2_000, 50_000_000):
        control.latencies.count(control.latencies.rows[Opcode.READ], took_us * 1_000)
    control.latencies.count(control.latencies.rows[Opcode.FSYNC], 4_000_000)
    of_mount = (("volume", "v"), ("dir", "/d"))
    samples = list(described.of_worker({"dirty_bytes": 3, "fuse_read": 4, **control.latencies.figures()}, of_mount))
    reads = [one for one in samples if ("opcode", "read") in one.labels and one.kind == "histogram"]
    buckets = {dict(one.labels)["le"]: one.value for one in reads if one.name.endswith("_bucket")}
    assert list(buckets) == ["3e-05", "0.0001", "0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3", "1", "3", "10", "+Inf"]
    assert list(buckets.values()) == [2] * 4 + [3] * 8 + [4]
    assert {one.name.rpartition("_")[2]: one.value for one in reads[-2:]} == {"count": 4, "sum": 50.00204}
    assert all(one.labels[:2] == of_mount for one in samples)
    others = [one.name for one in samples if one.kind != "histogram"]
    assert others == ["awsomefsd_worker_dirty_bytes", "awsomefsd_worker_fuse_requests_total"]


def test_bounds_of_another_build_are_kept() -> None:
    row = {"request_read_le_30us": 1, "request_read_le_40us": 1, "request_read_le_inf": 1, "request_read_ns_sum": 7}
    buckets = [(dict(one.labels)["le"], one.value) for one in described.of_worker(row, ()) if one.name.endswith("_bucket")]
    assert buckets[:3] == [("3e-05", 1), ("4e-05", 2), ("0.0001", 2)] and buckets[-1] == ("+Inf", 3)


def test_a_daemon_without_histograms_takes_them_for_no_kind_of_request() -> None:
    """What it does with a figure that it does not know: a gauge of that name, as Prometheus allows."""
    control = area()
    for opcode in TIMED:
        control.latencies.count(control.latencies.rows[opcode], 10**12)
    for name in control.latencies.figures():
        sample = described.sample(f"worker_{name}", 1)
        assert sample.kind == "gauge" and sample.labels == () and sample.name == f"awsomefsd_worker_{name}" and sample.value == 1
