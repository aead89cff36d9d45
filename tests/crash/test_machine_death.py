"""SIGKILL of everything at once, keeper included, as a machine's death: what fsync confirmed is there, byte for byte, and fsck is clean.

The manifest is written outside the mount, one line a file, only after fsync of the file and of its directory returned.  What was written
but not fsynced may be there or not: its outcome is unknown, and only names that the writer tried may show up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buildtools.nodes import Node, await_true

ROUNDS = 4
MORE_OPTIONS = ["sync", "shared,cache=none"]
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
    await_true(f"{files} fsynced files", lambda: writer.poll() is not None or len(confirmed(manifest)) >= before + files, 240)
    assert writer.poll() is None, "the writer failed before anything was killed"
    return writer


@pytest.mark.root
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("names", ["delegated", "durable"])
def test_everything_fsynced_survives_the_death_of_everything(make_node, figures, seed, tmp_path, names):
    node = make_node(up=False)
    node.names = names
    node.up()
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
    figures.append(f"death of everything, {names} names: {ROUNDS} times, {len(confirmed(manifest)):,} fsynced files, all there; fsck clean")


@pytest.fixture(scope="module")
def sharing(make_node: Callable[..., Node]) -> Node:
    """One whose device others may see, so that its volume may be mounted with `shared`."""
    node = make_node(up=False)
    node.shared = True
    node.up()
    return node


@pytest.mark.root
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("options", ["", "shared", "shared,sync", *(pytest.param(more, marks=pytest.mark.soak) for more in MORE_OPTIONS)])
def test_a_synchronous_write_survives_the_death_of_everything(sharing: Node, figures: list[str], options: str, seed: int) -> None:
    """In every way that Linux has (synchronous_writer.py), and without one fsync."""
    node = sharing
    node.umount()
    node.stop()  # its volume is served on as long as any process of the machine, in a mount namespace of its own, has a copy of the mount
    node.mount_options = options
    node.up()
    directory = node.mountpoint / (options.replace(",", "-") or "exclusive")
    directory.mkdir()
    words = [sys.executable, str(Path(__file__).with_name("synchronous_writer.py")), str(directory), str(seed)]
    words += ["every write"] if "sync" in options.split(",") else []
    writer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        wanted = {name: bytes.fromhex(data) for name, data in json.loads(writer.stdout.readline()).items()}
        roles = {role: set(node.pids(role)) for role in ("supervisor", "keeper", "daemon", "worker")}
        hit = set(node.kill_everything())
        assert all(pids and pids & hit for pids in roles.values()), "a process of each kind was hit"
        node.detach_mount()
    finally:
        writer.kill()
        writer.communicate()
    node.up()
    found = {name: (directory / name).read_bytes() for name in wanted}
    assert [name for name in wanted if found[name] != wanted[name]] == []
    loose = directory / "loose"
    lost = not loose.exists() or loose.stat().st_size == 0  # its name was not synced either
    figures.append(f"death of everything, options {options!r}: {len(wanted)} synchronous writes kept; one that was not is lost: {lost}")
