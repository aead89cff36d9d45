"""The flags of a mount, out of a mount table that changes."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from awsomefsd.fuse import mount_flags
from awsomefsd.fuse.mount_flags import MountFlags

LINE = "36 35 0:{minor} / /mnt/{number} {options} - fuse.awsomefs vol {super},user_id=0\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.touch()
    monkeypatch.setattr(mount_flags, "TABLE", str(path))
    monkeypatch.setattr(mount_flags.select, "poll", Poll)
    return path


class Poll:
    """A file is always ready: each look reads."""

    def register(self, *_: object) -> None:
        pass

    def poll(self, _: int) -> bool:
        return True


def write(table: Path, *rows: str, of_filesystem: str = "rw", minor: int = 7) -> None:
    table.write_text("".join(LINE.format(minor=minor, number=at, options=row, super=of_filesystem) for at, row in enumerate(rows)))


def test_where_nothing_is_found_the_first_options_count(table: Path) -> None:
    for device in ("", "0:7"):
        write(table, "ro,noatime", minor=9)
        flags = MountFlags(device, read_only=True, atime=("strictatime", True))
        assert flags.read_only() and flags.atime() == ("noatime", False)
        flags = MountFlags(device, read_only=False, atime=("strictatime", False))
        assert not flags.read_only() and flags.atime() == ("strictatime", False)


def test_read_only_is_what_has_no_writable_directory(table: Path) -> None:
    flags = MountFlags("0:7", read_only=True, atime=("relatime", True))
    for rows, of_filesystem, expected in (
        (["rw,relatime"], "rw", False), (["ro,relatime"], "rw", True), (["rw,relatime"], "ro", True),
        (["ro,relatime", "rw,nosuid"], "rw", False), (["ro", "ro"], "rw", True),
    ):  # fmt: skip
        write(table, *rows, of_filesystem=of_filesystem)
        assert flags.read_only() == expected, rows


def test_names_are_synchronous_by_an_option_of_the_filesystem(table: Path) -> None:
    flags = MountFlags("0:7", read_only=False, atime=("relatime", True))
    for of_filesystem, expected in (("rw", False), ("rw,sync", True), ("rw,dirsync", True), ("rw,lazytime", False)):
        write(table, "rw,relatime", of_filesystem=of_filesystem)
        assert flags.synchronous() == expected, of_filesystem
    write(table, "rw,relatime", of_filesystem="rw,sync", minor=9)
    assert not flags.synchronous(), "another filesystem"


def test_a_change_is_seen_without_a_descriptor_left(table: Path) -> None:
    flags = MountFlags("0:7", read_only=False, atime=("relatime", True))
    write(table, "ro,relatime", of_filesystem="rw,sync")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert flags.read_only() and flags.synchronous()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_times_count_as_where_most_is_written_down(table: Path) -> None:
    flags = MountFlags("0:7", read_only=False, atime=("relatime", True))
    for rows, expected in (
        (["rw,relatime"], ("relatime", True)), (["rw,noatime"], ("noatime", True)), (["rw"], ("strictatime", True)),
        (["rw,relatime,nodiratime"], ("relatime", False)), (["rw,noatime", "rw,nodiratime,relatime"], ("relatime", True)),
        (["ro", "rw,noatime"], ("noatime", True)), (["ro"], ("noatime", False)),
    ):  # fmt: skip
        write(table, *rows)
        assert flags.atime() == expected, rows
