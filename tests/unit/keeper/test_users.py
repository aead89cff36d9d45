"""Who uses a mount is said in words that a terminal shows and UTF-8 holds, whatever names processes and files were given."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.keeper import mount_syscalls
from tests.unit.keeper.keeper_host import until

NAMED = "import ctypes, sys; ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[1]), 0, 0, 0); print(flush=True); sys.stdin.read()"
EVIL = b"a\x1b[31m\xff\nb"
SHOWN = r"a\x1b[31m\xff\x0ab"


@contextlib.contextmanager
def process(directory: Path, *before: str) -> Iterator[int]:
    """A process with a name that is no UTF-8, and commands for a terminal; its working directory is `directory`."""
    words = [*before, sys.executable, "-c", NAMED, EVIL.hex()]
    with subprocess.Popen(words, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdout.readline()
        yield running.pid
        running.stdin.close()


def await_name(pid: int, name: str) -> None:
    """It is its program's a moment after exec(2) has closed the pipe by which Popen knows that it began."""
    until(f"a process called {name}", lambda: Path(f"/proc/{pid}/comm").read_text() == f"{name}\n")


def test_the_users_of_a_directory_have_printable_names(tmp_path: Path) -> None:
    with process(tmp_path) as pid:
        assert mount_syscalls.users_of(str(tmp_path)) == [f"{SHOWN} (pid {pid}, working directory)"]


def test_files_that_are_open_have_printable_names(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/" + EVIL, "wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
        await_name(cat.pid, "cat")
        assert mount_syscalls.users_of(str(tmp_path)) == [f"cat (pid {cat.pid}, has {tmp_path}/{SHOWN} open)"]
        assert cat.stdin is not None
        cat.stdin.close()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_holders_of_a_filesystem_have_printable_names(tmp_path: Path) -> None:
    device = next(entry.device for entry in mount_syscalls.mounts() if entry.dir == "/proc")
    with process(tmp_path, "unshare", "--mount", "--propagation", "private") as pid:
        held = mount_syscalls.holders_of(device, count_max=1_000)
    assert f"{SHOWN} (pid {pid}, at /proc in another mount namespace)" in held


def test_no_maps_are_read_where_somebody_is_found_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the maps of every process of a busy machine took longer than umount waits for the names."""
    monkeypatch.setattr(mount_syscalls, "_mapped", lambda *_: pytest.fail("maps were read"))
    with (tmp_path / "file").open("wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()]) as cat:
        await_name(cat.pid, "cat")
        found = mount_syscalls.users_of(str(tmp_path))
        cat.kill()
    assert found == [f"cat (pid {cat.pid}, has {tmp_path}/file open)"]


def test_who_only_maps_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_syscalls, "_use_by", lambda *_: None)
    with process(tmp_path) as pid:
        monkeypatch.setattr(mount_syscalls, "_mapped", lambda path, _dir: "maps x" if path.name == str(pid) else None)
        assert mount_syscalls.users_of(str(tmp_path)) == [f"{SHOWN} (pid {pid}, maps x)"]
