"""Do on one node, look on the others: every kind of operation, seen by every way, on nodes that have looked before.

Each operation has a directory of its own with the same few things in it.  All nodes watch it (views.py), one does the operation, then all
look again: they must show the same, and it must be what the operation is for.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.differential.strategies import ACCESS_KEY, ACLS, DEFAULT_KEY
from tests.shared import rig
from tests.shared.tasks import LIBC, checked, fallocate, renameat2
from tests.shared.views import Watcher, differences

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
everywhere = pytest.mark.parametrize("shared_volume", rig.all_modes(), indirect=True)
FILLED = bytes(range(1, 251)) * 40  # 10,000 bytes
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, NOREPLACE, EXCHANGE = 1, 2, 16, 1, 2
Fds = dict[str, int]
Do = Callable[[Path, Fds], object]  # in the directory as the doer's node shows it, with what was open there before
Seen = Callable[[Path, Fds], bool]


def fill(place: Path) -> None:
    (place / "f").write_bytes(FILLED)
    os.setxattr(place / "f", "user.old", b"old")
    (place / "g").write_bytes(b"other")
    os.link(place / "g", place / "h")
    (place / "d").mkdir()
    (place / "e").mkdir()
    (place / "e" / "in").write_bytes(b"in")
    (place / "s").symlink_to("f")


def has(name: str, data: bytes) -> Seen:
    return lambda p, _: (p / name).read_bytes() == data


def gone(name: str) -> Seen:
    return lambda p, _: not os.path.lexists(p / name)


def mode_is(name: str, kind: Callable[[int], bool]) -> Seen:
    return lambda p, _: kind((p / name).lstat().st_mode)


def mapped_store(p: Path, fds: Fds) -> None:
    with mmap.mmap(fds["f"], len(FILLED)) as area:
        area[4_000:4_200] = b"m" * 200
        area.flush()


def unnamed_then_linked(p: Path, fds: Fds) -> None:
    fd = os.open(p, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"unnamed")
    checked(LIBC.linkat(-100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(p / "new"), 0x400))
    os.close(fd)


def append(p: Path, fds: Fds) -> None:
    with (p / "f").open("ab", buffering=0) as file:
        file.write(b"appended")


def truncating_open(p: Path, fds: Fds) -> None:
    os.close(os.open(p / "f", os.O_WRONLY | os.O_TRUNC))


def copied(p: Path, fds: Fds) -> None:
    with (p / "f").open("rb") as source, (p / "g").open("r+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 8_000, 1_000, 3) == 8_000


def refused(p: Path, fds: Fds) -> None:
    """The name was made elsewhere a moment ago; what has changed is something else."""
    with pytest.raises(FileExistsError):
        renameat2(p / "f", p / "g", NOREPLACE)
    renameat2(p / "f", p / "new", NOREPLACE)


def put(data: bytes, at: int) -> bytes:
    base = FILLED + bytes(max(0, at - len(FILLED)))
    return base[:at] + data + base[at + len(data) :]


OPERATIONS: dict[str, tuple[str, Do, Seen]] = {  # what it concerns, what is done, what it is for
    "create": ("new", lambda p, _: (p / "new").touch(), has("new", b"")),
    "create-write": ("new", lambda p, _: (p / "new").write_bytes(b"new"), has("new", b"new")),
    "mkdir": ("new", lambda p, _: (p / "new").mkdir(), lambda p, _: os.listdir(p / "new") == []),
    "mkdir-in": ("d d/moved", lambda p, _: (p / "d" / "moved").mkdir(), lambda p, _: os.listdir(p / "d") == ["moved"]),
    "symlink": ("new g", lambda p, _: (p / "new").symlink_to("g"), has("new", b"other")),
    "link": (
        "f new", lambda p, _: os.link(p / "f", p / "new"),
        lambda p, fds: os.fstat(fds["f"]).st_nlink == 2 and has("new", FILLED)(p, fds),
    ),
    "mknod": ("new", lambda p, _: os.mknod(p / "new", 0o600 | stat.S_IFIFO), mode_is("new", stat.S_ISFIFO)),
    "mknod-device": ("new", lambda p, _: os.mknod(p / "new", 0o600 | stat.S_IFCHR, os.makedev(1, 3)), mode_is("new", stat.S_ISCHR)),
    "tmpfile-linkat": ("new", unnamed_then_linked, has("new", b"unnamed")),
    "unlink": ("f", lambda p, _: (p / "f").unlink(), lambda p, fds: os.fstat(fds["f"]).st_nlink == 0 and gone("f")(p, fds)),
    "unlink-one-of-two": ("g h", lambda p, _: (p / "g").unlink(), lambda p, fds: os.fstat(fds["g"]).st_nlink == 1 and gone("g")(p, fds)),
    "unlink-symlink": ("s", lambda p, _: (p / "s").unlink(), gone("s")),
    "rmdir": ("d", lambda p, _: (p / "d").rmdir(), gone("d")),
    "rename": ("f new", lambda p, _: os.rename(p / "f", p / "new"), lambda p, fds: gone("f")(p, fds) and has("new", FILLED)(p, fds)),
    "rename-replace": (
        "f g h", lambda p, _: os.rename(p / "f", p / "g"),
        lambda p, fds: has("g", FILLED)(p, fds) and has("h", b"other")(p, fds),
    ),
    "rename-exchange": (
        "f e f/in e/in", lambda p, _: renameat2(p / "f", p / "e", EXCHANGE),
        lambda p, fds: has("e", FILLED)(p, fds) and has("f/in", b"in")(p, fds),
    ),
    "rename-noreplace": ("f g new", refused, lambda p, fds: gone("f")(p, fds) and has("new", FILLED)(p, fds)),
    "rename-into": ("f d d/moved", lambda p, _: os.rename(p / "f", p / "d" / "moved"), has("d/moved", FILLED)),
    "rename-directory": (
        "e new e/in new/in", lambda p, _: os.rename(p / "e", p / "new"),
        lambda p, fds: has("new/in", b"in")(p, fds) and gone("e")(p, fds),
    ),
    "rename-over-directory": (
        "e d d/in", lambda p, _: os.rename(p / "e", p / "d"),
        lambda p, fds: os.listdir(p / "d") == ["in"] and gone("e")(p, fds),
    ),
    "rename-directory-into": ("e d d/moved d/moved/in", lambda p, _: os.rename(p / "e", p / "d" / "moved"), has("d/moved/in", b"in")),
    "chmod": ("f", lambda p, _: os.chmod(p / "f", 0o751), mode_is("f", lambda mode: stat.S_IMODE(mode) == 0o751)),
    "chmod-directory": ("d", lambda p, _: os.chmod(p / "d", 0o1770), mode_is("d", lambda mode: stat.S_IMODE(mode) == 0o1770)),
    "fchmod": ("f", lambda p, fds: os.fchmod(fds["f"], 0o604), mode_is("f", lambda mode: stat.S_IMODE(mode) == 0o604)),
    "chown": ("f", lambda p, _: os.chown(p / "f", 11, 12), lambda p, fds: (os.fstat(fds["f"]).st_uid, (p / "f").stat().st_gid) == (11, 12)),
    "utimens": (
        "f", lambda p, _: os.utime(p / "f", ns=(5, 7)),
        lambda p, fds: (p / "f").stat().st_mtime_ns == 7 == os.fstat(fds["f"]).st_mtime_ns,
    ),
    "truncate-down": ("f", lambda p, _: os.truncate(p / "f", 4_097), lambda p, fds: os.pread(fds["f"], 9_999, 0) == FILLED[:4_097]),
    "truncate-up": ("f", lambda p, _: os.truncate(p / "f", 20_001), lambda p, fds: os.pread(fds["f"], 30_000, 0) == FILLED + bytes(10_001)),
    "ftruncate": ("f", lambda p, fds: os.ftruncate(fds["f"], 0), lambda p, fds: os.fstat(fds["f"]).st_size == 0),
    "open-truncating": ("f", truncating_open, has("f", b"")),
    "replace-contents": ("f", lambda p, _: (p / "f").write_bytes(b"short"), lambda p, fds: os.pread(fds["f"], 99, 0) == b"short"),
    "write-beginning": ("f", lambda p, fds: os.pwrite(fds["f"], b"BEGIN", 0), has("f", put(b"BEGIN", 0))),
    "write-middle": ("f", lambda p, fds: os.pwrite(fds["f"], b"M" * 5_000, 4_000), lambda p, fds: os.pread(fds["f"], 9, 4_000) == b"M" * 9),
    "write-end": ("f", lambda p, fds: os.pwrite(fds["f"], b"END", len(FILLED) - 1), has("f", put(b"END", len(FILLED) - 1))),
    "write-behind-end": ("f", lambda p, fds: os.pwrite(fds["f"], b"far", 100_000), has("f", put(b"far", 100_000))),
    "append": ("f", append, has("f", FILLED + b"appended")),
    "fallocate": ("f", lambda p, fds: fallocate(fds["f"], 0, 9_000, 9_000), has("f", FILLED + bytes(8_000))),
    "fallocate-keep-size": (
        "g h", lambda p, fds: fallocate(fds["g"], KEEP_SIZE, 0, 90_000),
        lambda p, fds: (p / "h").stat().st_blocks >= 175,
    ),
    "punch": ("f", lambda p, fds: fallocate(fds["f"], PUNCH_HOLE | KEEP_SIZE, 100, 5_000), has("f", put(bytes(5_000), 100))),
    "zero": ("f", lambda p, fds: fallocate(fds["f"], ZERO_RANGE, 9_999, 100), has("f", put(bytes(100), 9_999))),
    "copy-file-range": ("f g", copied, lambda p, fds: os.pread(fds["g"], 99_999, 0) == b"oth" + FILLED[1_000:9_000]),
    "setxattr": ("f", lambda p, _: os.setxattr(p / "f", "user.new", b"1"), lambda p, fds: os.getxattr(fds["f"], "user.new") == b"1"),
    "setxattr-replace": ("f", lambda p, _: os.setxattr(p / "f", "user.old", b"2"), lambda p, fds: os.getxattr(p / "f", "user.old") == b"2"),
    "removexattr": ("f", lambda p, _: os.removexattr(p / "f", "user.old"), lambda p, fds: os.listxattr(fds["f"]) == []),
    "setxattr-directory": (
        "d", lambda p, _: os.setxattr(p / "d", "user.new", b"1"),
        lambda p, fds: os.getxattr(fds["d"], "user.new") == b"1",
    ),
    "acl": ("f", lambda p, _: os.setxattr(p / "f", ACCESS_KEY, ACLS[3]), mode_is("f", lambda mode: stat.S_IMODE(mode) == 0o654)),
    "acl-default": (
        "d", lambda p, _: os.setxattr(p / "d", DEFAULT_KEY, ACLS[2]),
        lambda p, fds: os.getxattr(fds["d"], DEFAULT_KEY) == ACLS[2],
    ),
    "mmap-msync": ("f", mapped_store, has("f", put(b"m" * 200, 4_000))),
}  # fmt: skip


def ping(places: list[Path], kind: str, home: int, doer: int) -> list[str]:
    """One operation; what is wrong about it."""
    names, do, seen = OPERATIONS[kind]
    (places[home] / kind).mkdir()
    fill(places[home] / kind)
    watchers = [Watcher(place / kind, names.split()) for place in places]
    try:
        mine = watchers[doer]
        others = [watcher for watcher in watchers if watcher is not mine]
        wrong = [f"before it: {row}" for other in others for row in differences(mine.before, other.before)]
        do(mine.place, mine.fds)
        seen_there = [other.look() for other in others]
        after = mine.look()
        if after == mine.before:
            wrong.append("nothing has changed")
        wrong += [row for got in seen_there for row in differences(after, got)]
        wrong += ["not what it is for" for watcher in watchers if not seen(watcher.place, watcher.fds)]
        return [f"{kind} on node {doer}: {row}" for row in wrong]
    finally:
        for watcher in watchers:
            watcher.close()


def all_kinds(places: list[Path], seed: int, turn: int) -> None:
    wrong: list[str] = []
    for number, kind in enumerate(kind for kind in OPERATIONS if rig.MAPPINGS or kind != "mmap-msync"):
        home = random.Random(f"{seed} {number} {turn}").randrange(3)  # who made the things
        wrong += ping(places, kind, home, (number + turn) % 3)
    assert not wrong, "\n".join([f"{len(wrong)} differences, seed {seed}:", *wrong[:16]])


@everywhere
def test_what_is_done_on_a_node_is_seen_on_the_others(places: list[Path], seed: int) -> None:
    all_kinds(places, seed, 0)


@pytest.mark.parametrize("turn", [1, 2])
def test_and_the_other_way_round(places: list[Path], seed: int, turn: int) -> None:
    all_kinds(places, seed, turn)


def test_in_turns_on_one_file_and_one_directory(places: list[Path], seed: int) -> None:
    """Each node changes what another has just changed, and looks first at what it holds open."""
    dice = random.Random(seed)
    (places[0] / "f").write_bytes(b"0" * 10_000)
    files = [os.open(place / "f", os.O_RDWR) for place in places]
    model, names = bytearray(b"0" * 10_000), {"f"}
    try:
        for turn in range(60):
            node, other = dice.sample(range(3), 2)
            at, data = dice.randrange(12_000), dice.randbytes(dice.randrange(1, 3_000))
            os.pwrite(files[node], data, at)
            model[len(model) :] = bytes(max(0, at - len(model)))
            model[at : at + len(data)] = data
            os.utime(places[node] / "f", ns=(turn, turn))
            name = f"n{turn % 7}"
            if name in names:
                (places[node] / name).unlink()
                names.remove(name)
            else:
                os.mkfifo(places[node] / name)
                names.add(name)
            assert os.pread(files[other], 20_000, 0) == model, (seed, turn)
            assert os.fstat(files[other]).st_mtime_ns == turn and (places[other] / "f").stat().st_size == len(model), (seed, turn)
            assert os.path.lexists(places[other] / name) == (name in names) and set(os.listdir(places[other])) == names, (seed, turn)
    finally:
        for fd in files:
            os.close(fd)


def test_a_listing_under_way_while_another_node_changes_the_directory(places: list[Path]) -> None:
    """What was there all the time is listed once; what was never there is not."""
    folders = [place / "many" for place in places]
    folders[0].mkdir()
    kept = {f"kept{number:04}" + "k" * 230 for number in range(160)}
    for name in kept:
        (folders[0] / name).mkdir()  # a directory: nothing else is to be done for it
    listed: list[str] = []
    with os.scandir(folders[1]) as entries:
        for number, entry in enumerate(entries):
            listed.append(entry.name)
            if number % 20 == 0:
                (folders[2] / f"made{number}").mkdir()
                if number:
                    (folders[2] / f"made{number - 20}").rmdir()
    assert sorted(name for name in listed if name in kept) == sorted(kept)
    assert len(listed) == len(set(listed)) and all(name in kept or name.startswith("made") for name in listed)
    fd = os.open(folders[1], os.O_RDONLY)
    try:
        for node in (0, 2):
            (folders[node] / f"late{node}").mkdir()
            assert f"late{node}" in os.listdir(fd) and set(os.listdir(fd)) == set(os.listdir(folders[0]))
    finally:
        os.close(fd)


def test_locks_are_seen_at_once(places: list[Path]) -> None:
    (places[0] / "f").write_bytes(b"x")
    files = [os.open(place / "f", os.O_RDWR) for place in places]
    try:
        for holder in range(3):
            fcntl.flock(files[holder], fcntl.LOCK_EX)
            for other in {0, 1, 2} - {holder}:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(files[other], fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(files[holder], fcntl.LOCK_SH)
            for other in {0, 1, 2} - {holder}:
                fcntl.flock(files[other], fcntl.LOCK_SH | fcntl.LOCK_NB)
            with pytest.raises(OSError) as refused_upgrade:
                fcntl.flock(files[holder], fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert refused_upgrade.value.errno == errno.EAGAIN
            for fd in files:
                fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        for fd in files:
            os.close(fd)
