"""Directories of many entries and inodes of many names.  They are filled below the vfs (tests/posix/bulk_create.py), so the mount begins
cold.

What must not grow with the directory: the memory of worker and daemon (budgets of base/limits.py), and the cost of one name.  The latter is
printed under "figures", not asserted.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from awsomefsd.base.limits import DAEMON_MEMORY_BYTES, LINKS_MAX, WORKER_MEMORY_BYTES
from buildtools.nodes import Node
from tests.posix.bulk_create import Below
from tests.posix.directory_stream import Walk

pytestmark = pytest.mark.root
MILLION = 1_000_000


@pytest.fixture(scope="module")
def node(make_node) -> Node:
    return make_node()


def name(number: int) -> str:
    return f"entry-{number:08}"


@pytest.mark.parametrize("count", [20_500, pytest.param(MILLION, marks=[pytest.mark.soak, pytest.mark.timeout(7_200)])])
def test_a_directory_of_many_entries(node: Node, seed: int, figures: list[str], count: int) -> None:
    """More than a worker keeps of one directory, in either size."""
    timed = _timer(figures, count)
    with Below(node) as below, timed("made below the vfs"):
        below.files(below.mkdir(f"of-{count}"), map(name, range(count)))
    folder = node.mountpoint / f"of-{count}"
    with timed("listed with os.listdir"):
        listed = os.listdir(folder)
    assert len(listed) == count and set(listed) == set(map(name, range(count)))
    with timed("listed with ls -f"):
        assert run("sh", "-c", f"ls -f {folder} | wc -l").strip() == str(count + 2)
    with timed("listed and stat(2)ed with ls -l"):
        assert run("sh", "-c", f"ls -U -l {folder} | wc -l").strip() == str(count + 1)
    _look_up(folder, count, random.Random(seed))
    _walk(folder, count, random.Random(seed))
    figures.append(f"{count:,} entries: {_memory(node)}")
    if count == MILLION:
        with timed("removed with rm -r"):
            run("rm", "-r", str(folder))
        assert not folder.exists()
        figures.append(f"{count:,} entries, removed: {_memory(node)}")


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=3_600).stdout


def _look_up(folder: Path, count: int, rng: random.Random) -> None:
    for number in rng.sample(range(count), 300):
        assert os.stat(folder / name(number)).st_size == 0
        with pytest.raises(FileNotFoundError):
            os.stat(folder / name(count + number))
    old, new = folder / name(count // 2), folder / "renamed"
    old.rename(new)
    new.rename(old)
    with pytest.raises(FileExistsError):
        os.mkdir(old)


def _walk(folder: Path, count: int, rng: random.Random) -> None:
    walk = Walk(folder)
    try:
        cookies: list[tuple[int, str]] = []
        every, seen = max(count // 200, 1), 0
        while True:
            cookie = walk.tell() if seen % every == 0 else 0
            found = walk.next()
            if not found:
                break
            if cookie or not seen:
                cookies.append((cookie, found))
            seen += 1
        assert seen == count + 2
        rng.shuffle(cookies)
        for cookie, found in cookies:
            walk.seek(cookie)
            assert walk.next() == found
    finally:
        walk.close()


def _memory(node: Node) -> str:
    """Of worker and daemon, now and at most; asserted against their budgets."""
    words = []
    for role, budget in (("worker", WORKER_MEMORY_BYTES), ("daemon", DAEMON_MEMORY_BYTES)):
        rows = dict(row.split(":", 1) for row in Path(f"/proc/{node.pid(role)}/status").read_text().splitlines())
        now = int(rows["RssAnon"].split()[0]) << 10
        assert now <= budget, (role, now)
        words.append(f"{role} {now >> 20} MiB")
    return ", ".join(words)


def _timer(figures: list[str], count: int) -> Callable[[str], object]:
    @contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        took = time.monotonic() - start
        figures.append(f"{count:,} entries {what}: {took:.1f} s, {took / count * 1e6:.0f} us each")

    return timed


def test_emlink(node: Node) -> None:
    with Below(node) as below:
        folder = below.mkdir("links")
        below.files(folder, ["hub"])
        hub = below.lookup(folder, "hub")
        below.links(hub, folder, map(name, range(LINKS_MAX - 2)))
    hub_path, links = node.mountpoint / "links" / "hub", node.mountpoint / "links"
    assert os.stat(hub_path).st_nlink == LINKS_MAX - 1
    os.link(hub_path, links / "last")
    for source in (hub_path, links / "last", links / name(7)):
        with pytest.raises(OSError, match="Too many links") as refused:
            os.link(source, links / "one more")
        assert refused.value.errno == errno.EMLINK
    assert os.stat(links / name(7)).st_nlink == LINKS_MAX and not (links / "one more").exists()
    os.rename(links / "last", links / "moved")  # no further link
    os.unlink(links / "moved")
    os.link(hub_path, links / "again")
    assert os.stat(hub_path).st_nlink == LINKS_MAX


def test_a_listing_ends_although_each_entry_found_is_renamed(place: Path) -> None:
    """In a page of the kernel, and in many; as a cleaner does it that moves what it has seen."""
    for count in (10, 3_000):
        folder = place / f"of-{count}"
        folder.mkdir()
        for number in range(count):
            (folder / name(number)).touch()
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                found.append(entry.name)
                os.rename(entry.path, folder / f"seen-{entry.name}")
                assert len(found) <= count, "it lists what was renamed"
        assert sorted(found) == [name(number) for number in range(count)]
        assert sorted(os.listdir(folder)) == [f"seen-{name(number)}" for number in range(count)]
