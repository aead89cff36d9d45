"""What is let into the log can be applied: an exception there would be one of every voter, at each start."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import structs

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.rule_levels import POOLS
from awsomefsd.base.types import LOCK_POSIX, Extent, SegmentInfo
from awsomefsd.meta.api import bounds
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.collection import GetPieces
from awsomefsd.meta.api.messages.snapshots import AnswerFlush
from tests.rigs.machine_driver import Drive, sound
from tests.unit.meta.server.test_service import filled

EXTREMES = (-(1 << 63), (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1)
GUARDED = {c.RaiseLevel}  # by the leader, who knows the levels of builds (Proposals.refusal)
Path = tuple[str | int, ...]


class Scene(Drive):
    """A volume with a file, a directory and a segment, and a session that holds it whole."""

    def __init__(self) -> None:
        super().__init__(level=POOLS)
        self.make_volume()
        self.open()
        self.file = self.create(b"f")
        self.mkdir(b"d")
        self.ok(c.SetXattr(self.volume, self.file, b"user.x", b"1"))
        self.segment: SegmentInfo = self.lease()[0]

    def command(self, kind: type) -> Any:
        """A command of this kind that finds what it names, as far as one is simple to say."""
        volume, file = self.volume, self.file
        said: dict[type, Any] = {
            c.Create: lambda: c.Create(volume, 1, b"new", 0o100644, 1, 1),
            c.Tmpfile: lambda: c.Tmpfile(volume, 1, 0o600, 1, 1),
            c.Link: lambda: c.Link(volume, file, 1, b"l"),
            c.Unlink: lambda: c.Unlink(volume, 1, b"f"),
            c.Rmdir: lambda: c.Rmdir(volume, 1, b"d"),
            c.Rename: lambda: c.Rename(volume, 1, b"f", 1, b"g"),
            c.SetAttr: lambda: c.SetAttr(volume, file, (1 << 9) - 1),
            c.SetXattr: lambda: c.SetXattr(volume, file, b"user.a", b"1"),
            c.RemoveXattr: lambda: c.RemoveXattr(volume, file, b"user.x"),
            c.SetAtimes: lambda: c.SetAtimes(volume, [(file, 5)]),
            c.SetLock: lambda: c.SetLock(volume, file, LOCK_POSIX, 1, 2, 1, 0, 10),
            c.Fallocate: lambda: c.Fallocate(volume, file, c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE, 0, 4096),
            c.Commit: lambda: self.commit(self.segment, c.InodeCommit(file, 1, 9, 100, 5, [self.frame(self.segment, 0, 100)])),
            c.Apply: lambda: self.batch(c.SetAttr(volume, file, (1 << 9) - 1)),
        }
        command = said[kind]() if kind in said else filled(kind)
        known = {"volume": volume, "ino": file, "session": self.session, "epoch": self.epoch}
        if kind not in said:
            command = structs.replace(command, **{name: known[name] for name in known if name in command.__struct_fields__})
        return command

    def batch(self, command: Any) -> c.Apply:
        one: dict[type, list[int]] = {c.Unlink: [self.file], c.Create: [0], c.Link: [0], c.Rmdir: [self.file + 1]}
        record = c.DecidedRecord(1, 1, 1, command, 0, [self.file, 0] if isinstance(command, c.Rename) else one.get(type(command), []))
        return c.Apply(self.volume, 5, 0, 1, [record], [], [], 0)


def numbers_in(value: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from numbers_in(getattr(value, name), (*path, name))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from numbers_in(item, (*path, at))
    elif value is None or (isinstance(value, int) and not isinstance(value, bool)):
        yield path


def replaced(value: Any, path: Path, number: int) -> Any:
    if not path:
        return number
    if isinstance(value, msgspec.Struct):
        name = str(path[0])
        return structs.replace(value, **{name: replaced(getattr(value, name), path[1:], number)})
    return type(value)(replaced(item, path[1:], number) if at == path[0] else item for at, item in enumerate(value))


def let_in(command: Any) -> bool:
    try:
        bounds.check(msgspec.msgpack.decode(msgspec.msgpack.encode(m.Propose(1, 1, 1, [], command)), type=m.Propose))
    except (ProtocolError, msgspec.ValidationError):
        return False
    return True


def after(scene: Scene, command: Any) -> None:
    """Applies a command, and then what changes the same rows again."""
    for session in (scene.session, 0):
        scene.apply(command, session=session)
    scene.machine.flush()
    scene.apply(c.SetAttr(scene.volume, scene.file, c.SET_MODE, 0o600))
    scene.apply(c.Create(scene.volume, 1, b"z", 0o100644, 1, 1))
    scene.apply(c.SetAttr(scene.volume, scene.file, c.SET_SIZE, size=7))
    scene.reload()
    scene.apply(c.EndSession(scene.session, scene.epoch, False), session=0, epoch=0, mount=0)
    scene.machine.flush()


@pytest.mark.parametrize(
    "kind", [kind for kind in (*typing.get_args(m.Body), *typing.get_args(c.AnyCommand)) if kind not in (m.Hello, m.WaitLock)]
)
def test_what_an_older_build_leaves_out_is_let_in(kind: type) -> None:
    """It sends a list that ends early: what is missing has its default here."""
    given = structs.asdict(filled(kind))
    defaults = {field.name for field in structs.fields(kind) if not field.required}
    body = kind(**{name: value for name, value in given.items() if name not in defaults})
    bounds.check(body)


ALONE = [(kind, False) for kind in typing.get_args(c.AnyCommand) if kind not in GUARDED]
IN_BATCH = [(kind, True) for kind in typing.get_args(c.DelegatedCommand)]


@pytest.mark.parametrize(("kind", "in_batch"), [*ALONE, *IN_BATCH])
def test_a_command_with_the_first_or_last_number_that_is_let_in_can_be_applied(kind: type, in_batch: bool) -> None:
    first = Scene()  # all are alike
    said = first.command(kind)
    for path in numbers_in(said):
        allowed = []
        for number in EXTREMES:
            command = replaced(said, path, number)
            whole = first.batch(command) if in_batch else command
            if let_in(whole):
                allowed.append(whole)
        for whole in allowed[:1] + allowed[1:][-1:]:
            after(Scene(), whole)


@pytest.mark.parametrize(
    ("field", "mask", "last"),
    [("atime_ns", c.SET_ATIME, 64), ("mtime_ns", c.SET_MTIME, 64), ("ctime_ns", c.SET_CTIME, 63)], ids=["atime", "mtime", "ctime"],
)  # fmt: skip
def test_an_inode_with_the_first_and_the_last_time_can_still_be_changed(field: str, mask: int, last: int) -> None:
    """Each change moves the ctime on, so the last one of that leaves room behind it."""
    scene = Scene()
    for time_ns in (-(1 << 63), (1 << last) - 1):
        command = c.SetAttr(scene.volume, scene.file, mask, **{field: time_ns})  # type: ignore[arg-type]
        assert let_in(command)
        scene.ok(command)
        scene.ok(c.SetAttr(scene.volume, scene.file, c.SET_MODE, 0o600))
        scene.write(scene.segment, scene.file, 0, 4096)
        sound(scene)
    for time_ns in (-(1 << 63) - 1, 1 << last):
        with pytest.raises(ProtocolError):
            bounds.check(m.Propose(1, 1, 1, [], c.SetAttr(1, 1, mask, **{field: time_ns})))  # type: ignore[arg-type]


def test_what_no_worker_sends_at_once_does_not_get_into_the_log() -> None:
    """An entry is applied as a whole by each voter, whatever waits there; its numbers are looked at one by one, and its answer is kept."""
    scene = Scene()
    record = scene.batch(c.SetAttr(1, 1, 0)).records[0]
    batch, commit = scene.batch(c.SetAttr(1, 1, 0)), scene.commit(scene.segment, c.InodeCommit(scene.file, 1, 9, 0, 5))
    step = commit.segments[0]
    written = structs.replace(scene.command(c.WriteData), segments=[step])
    for command, name, one in (
        (batch, "records", record), (batch, "inodes", commit.inodes[0]), (batch, "segments", step),
        (commit, "inodes", commit.inodes[0]), (commit, "segments", step), (written, "segments", step),
        (c.ReleaseOrphan(1, []), "inos", 1), (c.LeaseSegments(1, 0), "avoid", 1), (m.GetSegments([]), "segments", 1),
    ):  # fmt: skip
        most = 4_096 if name == "avoid" or isinstance(command, m.GetSegments) else 1_024
        for count in (most, most + 1):
            said: Any = structs.replace(command, **{name: [one] * count})
            body = said if isinstance(said, m.GetSegments) else m.Propose(1, 1, 1, [], said)
            if count == most:
                bounds.check(body)
            else:
                with pytest.raises(ProtocolError, match=f"{name}; {most} is the most"):
                    bounds.check(body)
    with pytest.raises(ProtocolError):
        bounds.check(m.Propose(1, 1, 1, [], scene.batch(c.ReleaseOrphan(1, [1] * 1_025))))


@pytest.mark.parametrize("until", [-1, 1 << 32])
def test_a_chapter_that_no_key_has_room_for_is_not_let_in(until: int) -> None:
    """A move without places is applied as far as its key; a question gets to its key at once."""
    extent = Extent(0, 1, 1, 1, 1, 0, 64, 0)
    for body in (c.Relocate([c.Relocation(1, 2, extent, [], until)], []), GetPieces(1, 0, 1, 2, 0, 1, until)):
        with pytest.raises(ProtocolError, match="until"):
            bounds.check(body)


@pytest.mark.parametrize("number", [-1, 4_096, 1 << 31])
def test_an_errno_that_has_no_words_is_not_let_in(number: int) -> None:
    """The leader says it in words, by strerror(3), which takes an int of C."""
    bounds.check(AnswerFlush(1, 1, 1, 4_095))
    with pytest.raises(ProtocolError, match="errno"):
        bounds.check(AnswerFlush(1, 1, 1, number))
