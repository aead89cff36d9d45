"""SIGKILL of everything at once, keeper included, as a machine's death: what fsync confirmed is there, byte for byte, and fsck is clean.

The manifest is written outside the mount, one line a file, only after fsync of the file and of its directory returned.  What was written
but not fsynced may be there or not: its outcome is unknown, and only names that the writer tried may show up.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildtools.nodes import await_true

ROUNDS = 4
FILES_MIN = 150  # fsynced before each death: fewer prove nothing

WRITER = r"""
import hashlib, os, random, sys
directory, manifest, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
choose = random.Random(seed)
folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
number = 0
with open(manifest, "a", buffering=1) as told:
    while True:
        number += 1
        name = f"{seed}-{number}"
        data = choose.randbytes(choose.choice((1, 500, 4096, 30_000, 400_000)))
        fd = os.open(os.path.join(directory, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, data)
        kind = choose.randrange(4)
        if kind == 1:  # append after a first fsync
            os.fsync(fd)
            more = choose.randbytes(700)
            os.write(fd, more)
            data += more
        os.fsync(fd)
        os.close(fd)
        if kind == 2:  # the way of editors: replace by rename
            os.rename(os.path.join(directory, name), os.path.join(directory, name + ".final"))
            name += ".final"
        os.fsync(folder)
        if kind == 3:
            os.truncate(os.path.join(directory, name), len(data) // 2)
            data = data[: len(data) // 2]
            fd = os.open(os.path.join(directory, name), os.O_RDWR)
            os.fsync(fd)
            os.close(fd)
        told.write(f"{name} {hashlib.sha256(data).hexdigest()}\n")
        # not fsynced: may be lost, must not harm
        with open(os.path.join(directory, f"loose-{seed}-{number}"), "wb") as loose:
            loose.write(data[:1000])
"""


def confirmed(manifest: Path) -> dict[str, str]:
    """Complete lines only: the last one may have been cut by the kill of the writer."""
    whole = manifest.read_text().rpartition("\n")[0] if manifest.exists() else ""
    return dict(row.split(" ") for row in whole.splitlines())


def wrong_files(directory: Path, wanted: dict[str, str]) -> list[str]:
    import hashlib

    wrong = []
    for name, digest in wanted.items():
        path = directory / name
        if not path.exists():
            wrong.append(f"{name} is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            wrong.append(f"{name} differs ({path.stat().st_size} bytes)")
    return wrong


def write_until(directory: Path, manifest: Path, seed: int, files: int) -> subprocess.Popen[bytes]:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(directory), str(manifest), str(seed)], stderr=subprocess.DEVNULL)
    before = len(confirmed(manifest))
    await_true(f"{files} fsynced files", lambda: writer.poll() is not None or len(confirmed(manifest)) >= before + files, 90)
    assert writer.poll() is None, "the writer failed before anything was killed"
    return writer


@pytest.mark.root
@pytest.mark.timeout(300)
def test_everything_fsynced_survives_the_death_of_everything(make_node, figures, seed, tmp_path):
    node = make_node()
    directory = node.mountpoint / "fsynced"
    directory.mkdir()
    manifest = tmp_path / "manifest"
    for number in range(ROUNDS):
        writer = write_until(directory, manifest, seed + number, FILES_MIN)
        try:
            roles = {role: set(node.pids(role)) for role in ("supervisor", "keeper", "daemon", "worker")}
            assert all(roles.values()), f"not everything was running: {roles}"
            hit = set(node.kill_everything())
            assert all(pids & hit for pids in roles.values()), "a process of each kind was hit"
            node.detach_mount()
        finally:
            writer.kill()
            writer.wait(60)
        node.cli("fsck", timeout_s=120)
        node.up()
        wanted = confirmed(manifest)
        assert len(wanted) >= FILES_MIN * (number + 1), "void: too few files were confirmed"
        assert wrong_files(directory, wanted) == []
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)
    figures.append(f"death of everything: {ROUNDS} times, {len(confirmed(manifest)):,} fsynced files, all there; fsck clean")
