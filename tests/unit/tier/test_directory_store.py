"""A directory as a store: durable in the right order, never half, never twice, no way out of it; and calls that do not come back."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.io.device.checksum import Bytes
from awsomefsd.tier import directory_store
from awsomefsd.tier.directory_store import STUCK_MAX, DirectoryStore
from awsomefsd.tier.errors import ObjectDamaged, ObjectMissing, ObjectUnnamed, StoreDown, StoreForeign, StoreRefused, StoreSlow
from awsomefsd.tier.store import Tries
from awsomefsd.tier.store_url import parse_store_url


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def open_store(root: Path) -> DirectoryStore:
    return DirectoryStore(parse_store_url(str(root)), Tries(first_pause_s=0.001))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_objects_come_back_whole_in_ranges_and_from_the_end(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    store, body = open_store(root), rng.randbytes(3_000_001)
    store.put("c/e/1", memoryview(body))
    store.put("c/e/1", bytearray(body))
    assert files(root) == {"c/e/1": body}
    ranges = [(rng.randrange(1_000_000), rng.randrange(1, 2_000_000)) for _ in range(5)]
    for start, length in [(0, len(body)), (0, 1), (len(body) - 1, 1), *ranges]:
        assert b"".join(bytes(chunk) for chunk in store.read("c/e/1", start, length)) == body[start : start + length]
    assert store.suffix("c/e/1", 128) == (body[-128:], len(body))
    store.put("small", b"abc")
    assert store.suffix("small", 128) == (b"abc", 3) and store.whole("small", 3) == b"abc"
    for start, length in ((0, 4), (3, 1), (100, 1)):
        with pytest.raises(ObjectDamaged, match="ends after"):
            list(store.read("small", start, length))
    with pytest.raises(ObjectDamaged, match="more than 2"):
        store.whole("small", 2)
    for _ in range(2):
        store.delete("c/e/1")
    assert files(root) == {"small": b"abc"}
    with pytest.raises(ObjectMissing, match=f"file://{root}: c/e/1: is not there"):
        store.whole("c/e/1", 1)
    store.close()


def test_a_name_is_never_written_twice(root: Path) -> None:
    store = open_store(root)
    store.put("a", b"first")
    for other in (b"other", b"", b"first and more"):
        with pytest.raises(ObjectDamaged, match="another content"):
            store.put("a", other)
    assert files(root) == {"a": b"first"}


def test_a_put_is_durable_when_it_is_acknowledged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes before the name, the name before the answer, and each new directory before what is in it."""
    steps: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(fd: int) -> None:
        steps.append(f"fsync {os.readlink(f'/proc/self/fd/{fd}')}".replace(str(root), "ROOT"))
        real_fsync(fd)

    def link(*args: Any, **options: Any) -> None:
        steps.append("link")
        real_link(*args, **options)

    monkeypatch.setattr(directory_store.os, "fsync", fsync)
    monkeypatch.setattr(directory_store.os, "link", link)
    store = open_store(root)
    store.put("a/b/name", b"abc")
    written = next(at for at, step in enumerate(steps) if step.startswith("fsync ROOT/tmp/"))
    linked = steps.index("link")
    assert written < linked and steps[linked + 1 :] == ["fsync ROOT/a/b"]
    assert {"fsync ROOT", "fsync ROOT/a"} <= set(steps[written:linked])
    steps.clear()
    store.put("a/b/other", b"abc")
    assert len(steps) == 3 and steps[1] == "link", "what is durable already is not asked for again"


@pytest.mark.parametrize("step", ["write", "fsync", "link"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EPERM])
def test_a_put_that_fails_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory_store.os, step, fails)
    with pytest.raises(StoreDown if number == errno.EIO else StoreRefused, match=os.strerror(number)):
        open_store(root).put("a/b", b"abc")
    assert files(root) == {}


PUTS = """
import sys, random
from awsomefsd.tier.directory_store import DirectoryStore
from awsomefsd.tier.store_url import parse_store_url
store, chance = DirectoryStore(parse_store_url(sys.argv[1])), random.Random(int(sys.argv[2]))
for number in range(1_000_000):
    store.put(f"d/{number % 7}/{number}", chance.randbytes(100_000))
    print(number, flush=True)
"""


def test_a_kill_leaves_all_that_was_acknowledged_and_nothing_half(root: Path, seed: int) -> None:
    for turn in range(3):
        place = root / f"turn-{turn}"
        place.mkdir()
        with subprocess.Popen([sys.executable, "-c", PUTS, str(place), str(seed + turn)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            acknowledged = [int(child.stdout.readline()) for _ in range(random.Random(seed + turn).randrange(1, 40))]
            child.kill()
            acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
        chance = random.Random(seed + turn)
        bodies = {f"d/{number % 7}/{number}": chance.randbytes(100_000) for number in range(len(acknowledged) + 1)}
        found = {name: body for name, body in files(place).items() if not name.startswith("tmp/")}
        assert {f"d/{number % 7}/{number}" for number in acknowledged} <= set(found)
        assert all(bodies[name] == body for name, body in found.items())


def test_links_of_others_lead_nowhere(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (root / "d").symlink_to(outside)
    (root / "f").symlink_to(outside / "secret")
    (root / "folder").mkdir()
    os.mkfifo(root / "fifo")
    store = open_store(root)
    asked = [
        lambda: store.whole("d/secret", 99), lambda: store.whole("f", 99), lambda: store.put("d/x", b"x"), lambda: store.delete("d/secret"),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(StoreRefused):
            ask()
    for name in ("fifo", "folder"):
        with pytest.raises(StoreForeign, match="something else"):
            store.whole(name, 10)
    assert files(outside) == {"secret": b"secret"}


@pytest.mark.parametrize("name", ["", "/a", "a/", "../a", "a/../b", "a//b", "a/./b", ".", "a\0b", "a b", "\u00e4"])
def test_no_other_names_are_taken(root: Path, name: str) -> None:
    store = open_store(root)
    asked = [
        lambda: store.put(name, b""), lambda: store.delete(name), lambda: store.whole(name, 1), lambda: store.suffix(name, 1),
        lambda: list(store.read(name, 0, 1)),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(ObjectUnnamed, match="no name of an object"):
            ask()


def test_names_are_looked_at_also_where_assertions_are_left_out() -> None:
    code = "from awsomefsd.tier.store import check_name\ncheck_name('../outside')"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ObjectUnnamed" in done.stderr, done


def test_a_directory_that_is_gone_is_down_and_comes_back(root: Path) -> None:
    store = open_store(root)
    store.put("a", b"abc")
    root.rename(root.with_name("away"))
    for ask in (lambda: store.whole("a", 3), lambda: store.put("b", b""), lambda: store.delete("a")):
        with pytest.raises(StoreDown, match="mounted"):
            ask()
    root.with_name("away").rename(root)
    assert store.whole("a", 3) == b"abc"


def test_calls_that_do_not_come_back_have_an_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(root).put("a", b"abc")
    seconds = 0.05
    back = threading.Event()
    real = os.fsync

    def hangs(fd: int) -> None:
        assert back.wait(60)
        real(fd)

    monkeypatch.setattr(directory_store.os, "fsync", hangs)
    store = DirectoryStore(parse_store_url(str(root)), Tries(tries=1), lambda _bytes: seconds)
    memory = bytearray(b"abc")
    for number in range(STUCK_MAX):
        with pytest.raises(StoreSlow, match="no end within"):
            store.put(f"n{number}", memory)
    memory[:] = b"xyz"  # the caller's again
    with pytest.raises(StoreDown, match="have not come back"):
        store.put("more", b"")
    with pytest.raises(StoreDown, match="have not come back"):
        store.whole("a", 3)
    waiting = [thread for thread in threading.enumerate() if thread.name == "directory store"]
    back.set()
    for thread in waiting:
        thread.join(60)
    assert files(root) == {"a": b"abc"}, "what was left behind has no effect"
    seconds = 60
    assert store.whole("a", 3) == b"abc"


def test_what_crashes_left_goes_and_what_is_under_way_stays(root: Path) -> None:
    (root / "tmp").mkdir()
    old, young = "0123456789abcdef" * 2, "f" * 32
    for name in (old, young):
        (root / "tmp" / name).write_bytes(b"x")
    os.utime(root / "tmp" / old, (1, 1))
    open_store(root).put("a", b"abc")
    assert sorted(files(root)) == ["a", f"tmp/{young}"]


def test_what_others_have_under_tmp_stays(root: Path) -> None:
    """Somebody names /var, or a home: what is in its `tmp` is not ours, however old it is."""
    (root / "tmp").mkdir()
    for name in ("thesis.txt", "0123456789abcdef", "0123456789ABCDEF" * 2, "0123456789abcdef" * 2 + "~"):
        (root / "tmp" / name).write_bytes(b"x")
        os.utime(root / "tmp" / name, (1, 1))
    before = files(root)
    open_store(root).put("a", b"abc")
    assert files(root) == before | {"a": b"abc"}


def test_many_at_once_put_each_object_whole(root: Path, seed: int) -> None:
    bodies = {f"d/{number % 3}/{number}": random.Random(seed + number).randbytes(50_000) for number in range(20)}
    store = open_store(root)
    threads = [threading.Thread(target=store.put, args=(name, body)) for name, body in bodies.items() for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert files(root) == bodies


class Interrupted(BaseException):
    """What a signal raises."""


def test_what_a_signal_interrupts_has_no_effect_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is ended removes what it has put; a PUT that goes on behind its back would stay."""
    interrupted = threading.Event()
    write = directory_store._write

    def handler(*_: object) -> None:
        interrupted.set()
        raise Interrupted

    def slow(fd: int, body: Bytes) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert interrupted.wait(60)
        write(fd, body)

    monkeypatch.setattr(directory_store, "_write", slow)
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with pytest.raises(Interrupted):
            DirectoryStore(parse_store_url(str(tmp_path))).put("a/x", b"abc")
    finally:
        signal.signal(signal.SIGUSR2, before)
    for thread in threading.enumerate():
        if thread.name == "directory store":
            thread.join(60)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
