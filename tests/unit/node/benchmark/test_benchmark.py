"""What `awsomefsd bench` measures, on directories, files and ports of this host."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

import pytest

from awsomefsd.node.benchmark import host, mount
from awsomefsd.node.benchmark.rows import MIB, MS, ROWS, Measured, of_times, rate, times


def test_times_are_those_of_what_was_done() -> None:
    found = times("mount.stat", "here", lambda number: time.sleep(0.02 if number else 0.05), most=4, seconds=60)
    assert found.samples == 4 and found.worst >= 50 and 20 <= found.median < found.worst
    assert times("mount.stat", "here", lambda _: None, most=1_000, seconds=0).samples == 3, "as few as that, in no time"
    assert of_times("mount.stat", "here", [float(number) for number in range(100)]).worst == 98


def test_a_rate_is_of_all_and_its_worst_of_the_slowest_piece() -> None:
    found = rate("mount.read", "here", [(8 * MIB, 0.1), (8 * MIB, 0.3)])
    assert found.median == pytest.approx(40) and found.worst == pytest.approx(80 / 3) and found.samples == 2


def test_times_have_an_upper_limit_and_rates_a_lower_one() -> None:
    for row in ROWS.values():
        slow, fast = (row.limit * 2, row.limit / 2) if row.unit == MS else (row.limit / 2, row.limit * 2)
        assert not Measured(row.name, "", slow, slow, 1).within and Measured(row.name, "", fast, fast, 1).within
        assert row.what and row.advice


def test_a_mount_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    heard: list[str] = []
    found = mount.measure(str(tmp_path), 17 * MIB + 5, 0.05, heard.append)
    assert {one.name for one in found} == {name for name in ROWS if name.startswith("mount.")}
    assert next(one.samples for one in found if one.name == "mount.read") == 3, "8 + 8 MiB, and the rest"
    assert heard == ["names", "syncs", "data"] and not os.listdir(tmp_path)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EDQUOT, "quota")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="quota"):
        mount.measure(str(tmp_path), MIB, 0.05, lambda _: None)
    assert not os.listdir(tmp_path)


def test_a_file_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="give a smaller --size"):
        mount.measure(str(tmp_path), 1 << 50, 0.05, lambda _: None)
    assert not os.listdir(tmp_path)


def test_a_file_that_comes_back_short_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "short", os.O_CREAT | os.O_RDWR)
    try:
        with pytest.raises(OSError, match="ends at byte 0"):
            mount._read(fd, 10, 0)
    finally:
        os.close(fd)


def test_a_state_directory_and_a_device(tmp_path: Path) -> None:
    assert [one.name for one in host.disk(tmp_path, 0.05)] == ["disk.sync"] and not os.listdir(tmp_path)
    device = tmp_path / "device"
    device.write_bytes(os.urandom(3 * MIB))
    before = device.stat()
    small, stream = host.device(str(device), 3 * MIB, 5)
    assert (small.name, stream.name, stream.samples) == ("device.read", "device.stream", 3)
    assert device.stat().st_mtime_ns == before.st_mtime_ns
    assert [one.name for one in host.device(str(device), 4096, 0.05)] == ["device.read"], "one that is smaller than 1 MiB"


def test_peers_are_connected_to_and_one_that_is_away_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        found = host.network([("one", address)])
    assert (found[0].name, found[0].of, found[0].samples) == ("network.connect", "one", host.CONNECTS)
    with pytest.raises(OSError, match=r"node two at 127\.0\.0\.1:1: "):
        host.network([("two", "127.0.0.1:1")])
