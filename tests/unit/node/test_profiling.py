"""Profiles of a mount: sums by kind and place, and what the command says of them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Refused, Unavailable
from awsomefsd.cli import main as command_line
from awsomefsd.cli.looking import profile as command
from awsomefsd.cli.main import Invocation
from awsomefsd.fuse.access_log import LoggedRequest, LogPage
from awsomefsd.node import profiling
from awsomefsd.node.profiling import Profile, ask, program_of


def entry(operation: str, ino: int, took_ms: float, name: bytes = b"", found: int = 0, pid: int = 5, number: int = 0) -> LoggedRequest:
    return LoggedRequest(operation, ino, name, found, 1000, pid, int(took_ms * 1e6), number)


ENTRIES = [
    entry("write", 30, 2), entry("write", 30, 4, pid=6), entry("write", 30, 6), entry("unlink", 1, 5, b"gone", number=errno.ENOENT),
    entry("create", 20, 1, b"made", 31), entry("fsync", 31, 20), entry("getattr", 99, 0.5), entry("statfs", 1, 0.1),
]  # fmt: skip


class FakeDaemon:
    def __init__(self, directory: str) -> None:
        self.directories = [directory]
        self.paths = {1: "/", 20: "/d", 30: "/d/f"}
        self.knows_paths = True

    def __enter__(self) -> FakeDaemon:
        return self

    def __exit__(self, *_exc: object) -> None: ...

    def call(self, rpc: str, **fields: Any) -> Any:
        if rpc == "ListMounts":
            return pb.ListMountsReply(mounts=[pb.MountPoint(directory=one, volume="v") for one in self.directories])
        assert rpc == "GetPaths" and fields["volume"] == "v"
        if not self.knows_paths:
            raise Unavailable("an older daemon")
        return pb.GetPathsReply(paths=[pb.InodePath(inode=ino, path=self.paths.get(ino, "")) for ino in fields["inodes"]])


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    fake = FakeDaemon(str(tmp_path))
    monkeypatch.setattr(Invocation, "client", lambda _self: fake)
    monkeypatch.setattr(command, "watch", lambda _fd, _seconds, found: found.add(LogPage(3, False, ENTRIES)))
    monkeypatch.setattr(command, "program_of", lambda pid: f"program{pid}")
    return fake


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert command_line.run(["profile", *words, "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["operations"], told["lost"], told["volume"]) == (len(ENTRIES), 3, "v")
    return list(told["rows"])


def test_kinds_and_places_by_the_time_that_they_took(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    (directory,) = daemon.directories
    found = rows(capsys, directory)
    assert [(one["operation"], one["path"].removeprefix(directory)) for one in found] == [
        ("fsync", "/d/made"), ("write", "/d/f"), ("unlink", "/gone"), ("create", "/d/made"), ("getattr", "inode 99"), ("statfs", ""),
    ]  # fmt: skip
    assert found[1] == {
        "operation": "write", "path": f"{directory}/d/f", "count": 3, "errors": 0, "total_ms": 12.0, "mean_ms": 4.0, "most_ms": 6.0,
        "programs": ["program5", "program6"], "uids": [1000],
    }  # fmt: skip
    assert found[2]["errors"] == 1
    assert [one["operation"] for one in rows(capsys, directory, "--count", "2")] == ["fsync", "write"]
    assert command_line.run(["profile", directory]) == 0
    shown = capsys.readouterr().out
    assert "/d/made" in shown and "program5, program6" in shown
    assert "8 operations; 6 pairs of kind and path, 3 more operations not told" in shown


def test_without_paths_numbers_stand_for_them(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.knows_paths = False
    assert [one["path"] for one in rows(capsys, *daemon.directories)][:3] == ["inode 31", "inode 30", "inode 1/gone"]


def test_a_mount_may_be_named_by_a_link(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert rows(capsys, str(link))[1]["path"] == f"{tmp_path}/d/f"


def test_what_is_no_mount_is_refused_with_those_that_are(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for there, words in (([str(tmp_path), "/b"], f"mounts are /b, {tmp_path}"), ([], "it has no mounts")):
        daemon.directories = there
        for path in (str(tmp_path / "nothing"), "/proc"):
            assert command_line.run(["profile", path]) == 2
            assert f"{path} is no mount of this node; {words}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("number", "kind", "words"), [
    (errno.EPERM, Refused, "only root"), (errno.EBUSY, Unavailable, "already"), (errno.ENOTTY, Unavailable, "earlier build"),
])  # fmt: skip
def test_refusals_say_why(number: int, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_words: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(profiling.fcntl, "ioctl", refused)
    with pytest.raises(kind, match=words):
        ask(0)


def test_paths_of_many_places_are_asked_in_slices(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PATHS_AT_ONCE", 2)
    asked: list[int] = []
    call = daemon.call

    def counted(rpc: str, **fields: Any) -> Any:
        asked.append(len(fields["inodes"]))
        return call(rpc, **fields)

    monkeypatch.setattr(daemon, "call", counted)
    found = Profile(lambda pid: "")
    found.add(LogPage(0, False, ENTRIES))
    paths = command._paths(daemon, pb.MountPoint(volume="v"), {1, 30, 31, 99}, found)
    assert paths[1] == "/" and paths[30] == "/d/f" and paths[31] == "/d/made" and max(asked) == 2


def test_places_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "PLACES_MAX", 2)
    found = Profile(lambda pid: "")
    found.add(LogPage(0, False, [entry("read", ino, 1) for ino in (1, 2, 3, 1)]))
    assert (found.count, found.lost, len(found.sums)) == (3, 1, 2)
    found.add(LogPage(0, False, [entry("read", 1, 1, b"same", found=1_000 + number, pid=number) for number in range(9)]))
    found.add(LogPage(0, False, [entry("read", 1, 1, found=1_000 + number, pid=number) for number in range(9)]))
    assert len(found.found) == 2 and len(found._programs) <= 2


def test_programs_have_names() -> None:
    assert program_of(os.getpid()) == Path("/proc/self/comm").read_text().strip()
    assert program_of(0) == "" and program_of(1 << 30) == profiling.GONE
