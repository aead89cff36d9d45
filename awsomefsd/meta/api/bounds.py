"""The ranges of the integers in a request are checked before anything is done with it.

Keys are packed with fixed widths, so a number that does not fit would be an exception in the middle of `apply`: of an entry that is durable
already, at this start and every later one.  Everything that enters the log passes here first.  The rules go by field name, which the
commands keep to: a new field is a non-negative 63-bit number unless it is named below.

A command that is many in one has a bound on how many, since an entry is applied as a whole.

Texts of a report have a bound too: the leader keeps them, makes an entry of them by itself, and lists those of all nodes in one answer.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import Struct

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import (
    APPLY_RECORDS_MAX,
    ATIMES_PER_ENTRY_MAX,
    DEVICE_REPORT_TEXT_BYTES_MAX,
    LISTED_PER_COMMAND_MAX,
    LISTED_PER_QUESTION_MAX,
    NODE_REPORT_TEXT_BYTES_MAX,
    REPORT_NAME_BYTES_MAX,
    VOLUMES_PER_SNAPSHOT_MAX,
)
from awsomefsd.meta.api import commands, messages
from awsomefsd.meta.api.messages.devices import ReportDevices
from awsomefsd.meta.api.messages.nodes import NodeReport
from awsomefsd.meta.api.messages.pools import PoolCensus
from awsomefsd.meta.api.messages.snapshots import FlushVolumes

_U32, _I63, _U64 = (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1
_ERRNO = 4_095  # the kernel's largest
_WIDE = frozenset({"owner", "log", "mount", "after_mount"})  # random 64-bit numbers
_NARROW = frozenset(
    {"volume", "device", "mode", "uid", "gid", "rdev", "site", "worker", "flags", "mask", "umask", "until", "at", "snapshot"}
)
_SIGNED = frozenset({"quota_bytes", "quota_inodes"})
_TIMES = frozenset({"atime_ns", "mtime_ns"})  # 1677 to 2554: what msgpack holds in 64 bits
_CTIMES = {(commands.SetAttr, "ctime_ns"), (commands.InodeCommit, "mtime_ns")}  # to 2262, as the kernel's clock; a change moves it on by 1
_SIGNED_OF = {
    (commands.Reserve, "bytes"), (commands.PutToken, "uses"), (commands.SetCsiVolume, "capacity"), (messages.GetStatFs, "unneeded"),
}  # fmt: skip

_MANY: dict[type, dict[str, int]] = {  # the most that a list may have
    commands.Apply: {"records": APPLY_RECORDS_MAX, "inodes": LISTED_PER_COMMAND_MAX, "segments": LISTED_PER_COMMAND_MAX},
    commands.Commit: {"inodes": LISTED_PER_COMMAND_MAX, "segments": LISTED_PER_COMMAND_MAX},
    commands.WriteData: {"segments": LISTED_PER_COMMAND_MAX},
    commands.ReleaseOrphan: {"inos": LISTED_PER_COMMAND_MAX},
    commands.LeaseSegments: {"avoid": LISTED_PER_QUESTION_MAX},
    commands.LeaseBays: {"avoid": LISTED_PER_QUESTION_MAX, "ensembles": LISTED_PER_COMMAND_MAX},
    commands.DropBays: {"bays": LISTED_PER_COMMAND_MAX},
    commands.BaysTrimmed: {"bays": LISTED_PER_COMMAND_MAX},
    commands.CreateSnapshots: {"snapshots": VOLUMES_PER_SNAPSHOT_MAX},
    commands.BaysWrong: {"bays": LISTED_PER_COMMAND_MAX},
    commands.BaysSeen: {"wrong": LISTED_PER_COMMAND_MAX},
    commands.DrainPoolDevices: dict.fromkeys(("devices", "lost", "taking", "draining"), LISTED_PER_QUESTION_MAX),
    messages.GetSegments: {"segments": LISTED_PER_QUESTION_MAX},
    FlushVolumes: {"volumes": VOLUMES_PER_SNAPSHOT_MAX},
    PoolCensus: {"needs": LISTED_PER_COMMAND_MAX, "left_alone": LISTED_PER_QUESTION_MAX, "standing": LISTED_PER_COMMAND_MAX},
}

_Range = tuple[str, int, int]


class _Rules:
    """The rules of one type: integers and lists of integers with their ranges, and the fields that hold structs or lists of them."""

    __slots__ = ("lists", "numbers", "one", "several")

    def __init__(self, type_: type[Struct]) -> None:
        self.numbers: list[_Range] = []
        self.lists: list[_Range] = []
        self.one: list[str] = []
        self.several: list[str] = []
        for name, hint in typing.get_type_hints(type_).items():
            if name in type_.__struct_fields__:
                self._add(type_, name, hint)

    def _add(self, type_: type[Struct], name: str, hint: Any) -> None:
        arguments = typing.get_args(hint)
        if hint is int or (int in arguments and isinstance(hint, types.UnionType)):
            self.numbers.append((name, *_range(type_, name)))
        elif typing.get_origin(hint) is list:
            if arguments[0] is int:
                self.lists.append((name, *_range(type_, name)))
            elif _is_struct(arguments[0]):
                self.several.append(name)
        elif _is_struct(hint) or any(_is_struct(argument) for argument in arguments):
            self.one.append(name)


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Struct)


def _range(type_: type[Struct], name: str) -> tuple[int, int]:
    if name in _SIGNED or (type_, name) in _SIGNED_OF | _CTIMES:
        return -_I63 - 1, _I63
    if name in _TIMES:
        return -_I63 - 1, _U64
    if name == "errno":
        return 0, _ERRNO
    return 0, _U32 if name in _NARROW else _U64 if name in _WIDE else _I63


_RULES: dict[type, _Rules] = {}


def check(value: Any) -> None:
    """Raises ProtocolError if a number in the request body (or in a command in it) is out of range."""
    rules = _RULES.get(type(value))
    if rules is None:
        rules = _RULES[type(value)] = _Rules(type(value))
    for name, most in _MANY.get(type(value), {}).items():
        if len(getattr(value, name)) > most:
            raise ProtocolError(f"{type(value).__name__}: {len(getattr(value, name))} {name}; {most} is the most")
    for name, low, high in rules.numbers:
        number = getattr(value, name)
        if number is not None and not low <= number <= high:
            raise ProtocolError(f"{type(value).__name__}: {name} {number} is out of range")
    for name, low, high in rules.lists:
        for number in getattr(value, name):
            if not low <= number <= high:
                raise ProtocolError(f"{type(value).__name__}: a number in {name}, {number}, is out of range")
    for name in rules.one:
        inner = getattr(value, name)
        if inner is not None:
            check(inner)
    if type(value) in _CHECKS:
        _CHECKS[type(value)](value)
    for name in rules.several:
        for inner in getattr(value, name):
            check(inner)


def _check_atimes(value: commands.SetAtimes) -> None:
    low, high = _range(commands.SetAttr, "atime_ns")
    if len(value.atimes) > ATIMES_PER_ENTRY_MAX or not all(0 <= ino <= _I63 and low <= time_ns <= high for ino, time_ns in value.atimes):
        raise ProtocolError("SetAtimes: a number is out of range, or there are too many")


def _check_figures(value: messages.Report) -> None:
    if any(_bytes_of(name) > REPORT_NAME_BYTES_MAX for name in value.figures):
        raise ProtocolError(f"Report: a name has more than {REPORT_NAME_BYTES_MAX} bytes")


def _check_devices(value: ReportDevices) -> None:
    _bound("ReportDevices", DEVICE_REPORT_TEXT_BYTES_MAX, (text for one in value.sightings for text in (one.uuid, one.path, one.state)))


def _check_node(value: NodeReport) -> None:
    texts = (value.boot_id, value.version, value.name, value.control, value.metadata, value.bundle, value.issuer)
    _bound("NodeReport", NODE_REPORT_TEXT_BYTES_MAX, (*texts, *value.labels, *value.labels.values()))


def _check_census(value: PoolCensus) -> None:
    _bound("ReportCensus", NODE_REPORT_TEXT_BYTES_MAX, [value.why, *(one.why for one in value.standing)])


def _bound(what: str, most: int, texts: Iterable[str]) -> None:
    total = sum(map(_bytes_of, texts))
    if total > most:
        raise ProtocolError(f"{what}: texts of {total} bytes; {most} is the most")


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


_CHECKS: dict[type, Callable[[Any], None]] = {
    commands.SetAtimes: _check_atimes, messages.Report: _check_figures, ReportDevices: _check_devices, NodeReport: _check_node,
    PoolCensus: _check_census,
}  # fmt: skip

for _type in (*typing.get_args(messages.Body), *typing.get_args(commands.AnyCommand)):
    _RULES[_type] = _Rules(_type)
