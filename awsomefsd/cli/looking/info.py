"""awsomefsd info: what a file is to the metadata, on which devices its data lies, and which processes of this machine have it open."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from awsomefsd.base.errors import NotFound, Unavailable
from awsomefsd.base.log import printable
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import counted, message_dict, output_option, print_fields, print_json, print_table, say
from awsomefsd.keeper import mount_syscalls
from awsomefsd.node import silent_paths

EXTENTS_SHOWN = 10
ANSWER_S = 15.0
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}  # fmt: skip


class PathOnMount(click.Path):
    """A path that is not looked at before the command does so: its mount may be hung."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> str:
        return os.fspath(value)


def place_of(client: Any, path: str) -> tuple[str, os.stat_result]:
    """Returns the volume that a path is on, and what stat(2) says of it, symbolic links not followed.  Raises NotFound, OSError.

    Raises Unavailable if it does not answer.  Of other mounts the kernel's table says enough: one of them may be hung.
    """
    await_answer(path)
    found = os.lstat(path)
    directory, name = os.path.split(os.path.abspath(path))
    full = os.path.join(os.path.realpath(directory), name)
    devices = {entry.dir: entry.device for entry in mount_syscalls.mounts()}  # of two at one place that on top
    for mount in client.call("ListMounts").mounts:
        if devices.get(mount.directory) == _device(found) and (full + "/").startswith(mount.directory.rstrip("/") + "/"):
            return mount.volume, found
    raise NotFound(f"{path} is on no mount of this node; `awsomefsd mount` lists them")


def await_answer(path: str) -> None:
    """Raises Unavailable if a path does not answer: its mount is hung, and whoever asks it cannot be ended."""
    if not silent_paths.errnos(os.lstat, [path], ANSWER_S):
        raise Unavailable(f"{path} does not answer within {ANSWER_S:.0f} s; `awsomefsd status` shows its mount")


def _device(found: os.stat_result) -> str:
    return f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"


def openers(found: os.stat_result) -> list[dict[str, Any]]:
    """Returns the processes of this machine that have the file open, as far as the caller may see them.

    No descriptor of another filesystem is asked what it is of: that may be hung.
    """
    told: dict[int, dict[str, Any]] = {}
    processes = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    mount_ids = _mount_ids(_device(found), processes)
    for pid in processes:
        with suppress(OSError):
            if any(_is_open(pid, descriptor, found, mount_ids) for descriptor in os.listdir(f"/proc/{pid}/fd")):
                told[pid] = {"pid": pid, "program": Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()}
    return list(told.values())


def _mount_ids(device: str, processes: list[int]) -> set[str]:
    """Returns the mounts of a device (major:minor) in all mount namespaces; no two mounts of a machine have the same id."""
    ids: set[str] = set()
    seen: set[str] = set()
    for pid in processes:
        with suppress(OSError):
            if (namespace := os.readlink(f"/proc/{pid}/ns/mnt")) not in seen:
                table = [line.split(b" ", 3) for line in Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()]
                ids.update(line[0].decode() for line in table if line[2].decode() == device)
                seen.add(namespace)
    return ids


def _is_open(pid: int, descriptor: str, found: os.stat_result, mount_ids: set[str]) -> bool:
    with suppress(OSError):  # it was closed meanwhile
        said = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text(errors="replace")
        fields = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        if fields["mnt_id"].strip() in mount_ids:
            return os.stat(f"/proc/{pid}/fd/{descriptor}").st_ino == found.st_ino
    return False


@click.command(cls=CliCommand)
@click.argument("path", type=PathOnMount())
@output_option
@click.pass_obj
def info(invocation: Invocation, path: str, form: str) -> None:
    """Show what the metadata has of PATH, on which devices its data lies, and who has it open.

    PATH is in a mount of this node; a symbolic link is not followed.  Data that a mount still buffers has no place yet (`awsomefsd flush`).
    Processes are those of this machine.
    """
    with invocation.client() as client:
        volume, found = place_of(client, path)
        facts = client.call("GetFile", volume=volume, inode=found.st_ino)
    who = openers(found)
    if form == "json":
        print_json({"volume": volume, **message_dict(facts), "open_by": who})
        return
    print_fields(
        [
            ("path", path),
            ("volume", volume),
            ("inode", facts.inode),
            ("kind", _KINDS.get(stat.S_IFMT(facts.mode), "?")),
            ("mode", f"{stat.S_IMODE(facts.mode):04o}, owner {facts.uid}, group {facts.gid}, {_links(facts)}"),
            ("size", f"{format_bytes(facts.size)}, {format_bytes(facts.stored_bytes)} stored"),
            ("data", _where(facts)),
            ("open by", ", ".join(printable(f"{one['program']} ({one['pid']})") for one in who) or "no process that you may see"),
        ]
    )
    _print_places(facts)


def _links(facts: Any) -> str:
    return counted(facts.nlink, "link" if stat.S_ISDIR(facts.mode) else "name")  # a directory has one name, and a link of each below it


def _where(facts: Any) -> str:
    if facts.inline_data:
        return "in the metadata" if facts.stored_bytes else "none: no byte of it is stored"
    more = " and more" if facts.cut else ""
    return f"{counted(facts.extents, 'extent')}{more} in {counted(facts.segments, 'segment')}" if facts.extents else "none on a device"


def _print_places(facts: Any) -> None:
    if not facts.places:
        return
    say()
    rows: list[list[object]] = [[one.device, one.path or "-", one.segments, one.extents, format_bytes(one.bytes)] for one in facts.places]
    print_table(["DEVICE", "PATH", "SEGMENTS", "EXTENTS", "BYTES"], rows, right=("SEGMENTS", "EXTENTS", "BYTES"))
    say()
    shown = facts.first_extents[:EXTENTS_SHOWN]
    rows = [[one.offset, format_bytes(one.length), one.device, one.segment, one.frame_offset] for one in shown]
    print_table(["OFFSET", "LENGTH", "DEVICE", "SEGMENT", "AT"], rows, right=("OFFSET", "LENGTH", "DEVICE", "SEGMENT", "AT"))
    if facts.extents > len(shown):
        say(f"... and {facts.extents - len(shown)} more (-o json shows {len(facts.first_extents)})")
