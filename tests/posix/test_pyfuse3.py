"""The pyfuse3 adapter: a part of the smoke tests over it, and what it does at its end."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools.nodes import Node, await_true
from tests.posix import test_smoke as smoke

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(importlib.util.find_spec("pyfuse3") is None, reason="pyfuse3 is not installed: pip install .[pyfuse3]"),
]
VOLUME = "through-libfuse"

SMOKE = (
    "test_names_of_every_kind",
    "test_name_errors",
    "test_directories",
    "test_big_directory_lists_each_name_once_while_it_changes",
    "test_rename_and_its_flags",
    "test_links",
    "test_open_file_lives_without_a_name",
    "test_attributes",
    "test_special_files",
    "test_permissions_of_another_user",
    "test_random_writes_match_a_model",
    "test_append_from_two_handles",
    "test_mmap_shared_and_private",
    "test_lock_of_another_process",
    "test_waiting_lock_ends_with_a_signal",
    "test_sqlite_in_both_journal_modes",
    "test_script_and_binary_execute",
    "test_git_commits_and_clones",
)
globals().update({name: getattr(smoke, name) for name in SMOKE})


class Adapter:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.place = node.directory / VOLUME
        self.place.mkdir(exist_ok=True)
        self.start()

    def start(self) -> None:
        words = [*self.node.command, "mount-pyfuse3", VOLUME, str(self.place)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.node.environment())
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said.startswith("serving"), said + self.process.stdout.read()
        await_true("the mount", lambda: os.path.ismount(self.place), 60)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def adapter(make_node) -> Iterator[Adapter]:
    node = make_node()
    node.cli("volume", "create", VOLUME, "--names", "delegated")  # of which it decides none, and warns of nothing
    made = Adapter(node)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.stop(signal.SIGKILL)
        subprocess.run(["umount", "-i", "-l", str(made.place)], capture_output=True, check=False)


@pytest.fixture
def place(adapter, request) -> Path:
    folder = adapter.place / "".join(c if c.isalnum() else "_" for c in request.node.name)[:80]
    folder.mkdir()
    return folder


def test_what_was_written_is_there_in_the_next_mount_and_in_one_of_our_own(adapter, place):
    (place / "f").write_bytes(b"x" * 300_000)
    (place / "small").write_text("small")
    assert adapter.stop() == 0 and not os.path.ismount(adapter.place)
    node = adapter.node
    node.cli("mount", VOLUME, str(adapter.place))
    assert (place / "f").read_bytes() == b"x" * 300_000 and (place / "small").read_text() == "small"
    node.cli("umount", str(adapter.place))
    adapter.start()
    assert (place / "small").read_text() == "small"
    subprocess.run(["umount", str(adapter.place)], check=True)
    assert adapter.process.wait(60) == 0
    adapter.start()


def test_its_limits(place):
    (place / "f").write_bytes(bytes(10))
    with open(place / "f", "r+b") as one, open(place / "f", "r+b") as two:
        with pytest.raises(OSError, match=rf"\[Errno {errno.EOPNOTSUPP}\]"):
            _fallocate(one.fileno())
        fcntl.flock(one, fcntl.LOCK_EX)  # the kernel's own
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fallocate(fd: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, 1, ctypes.c_int64(0), ctypes.c_int64(100)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")
