"""awsomefsd profile: which operations of a mount take the time, on which files, and of whom, while the command runs."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import click

from awsomefsd.base.errors import Error, Unavailable
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.cli.looking.info import PathOnMount, await_answer
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import Seconds, counted, output_option, print_json, print_table, say
from awsomefsd.cli.waiting import LongWork
from awsomefsd.node.profiling import Place, Profile, Sum, program_of, watch

PATHS_AT_ONCE = 1_024  # of one call (admin/observe_service.py)

SHOWN = 20
SHOWN_MAX = 256


@click.command(cls=CliCommand)
@click.argument("mount", type=PathOnMount())
@click.option("--for", "seconds", type=Seconds(0.1, 3_600), default=10.0, show_default=True, help="Seconds to look.")
@click.option("--count", type=click.IntRange(1, SHOWN_MAX), default=SHOWN, show_default=True, help="Rows to show.")
@output_option
@click.pass_obj
def profile(invocation: Invocation, mount: str, seconds: float, count: int, form: str) -> None:
    """Show what takes the time on MOUNT, by kind and path.

    The rows are ordered by the time of all their requests of the kernel together; Ctrl-C ends earlier.  Only root may look.  What the
    kernel answers from its caches is not seen, and what still waits is not told before it ends.  Nothing is noted while nobody looks.
    """
    with invocation.client() as client:
        place = mount_of(client, mount)
        await_answer(place.directory)
        found = Profile(program_of)
        fd = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with LongWork("looking"), suppress(KeyboardInterrupt):
                watch(fd, seconds, found)
        finally:
            os.close(fd)
        rows = found.slowest(count)
        paths = _paths(client, place, {ino for _, (ino, _), _ in rows}, found)
    told = [_row(operation, _path(place.directory, paths, where), one) for operation, where, one in rows]
    if form == "json":
        print_json({"mount": place.directory, "volume": place.volume, "operations": found.count, "lost": found.lost, "rows": told})
        return
    shown: list[list[object]] = [
        [f"{row['total_ms']:.1f}", row["count"], f"{row['mean_ms']:.2f}", f"{row['most_ms']:.2f}", row["operation"],
         ", ".join(row["programs"][:2]), row["path"]]
        for row in told
    ]  # fmt: skip
    heads = ["TOTAL ms", "COUNT", "MEAN ms", "MOST ms", "OPERATION", "BY", "PATH"]
    print_table(heads, shown, right=heads[:4], empty="nothing was asked of this mount")
    if found.count:
        say()
        lost = f", {counted(found.lost, 'more operation')} not told" if found.lost else ""
        say(f"{counted(found.count, 'operation')}; {counted(len(found.sums), 'pair')} of kind and path{lost}")


def mount_of(client: Any, path: str) -> Any:
    """Returns the mount of this node at a directory, as ListMounts has it.  Raises click.UsageError with those that are there."""
    mounts = {mount.directory: mount for mount in client.call("ListMounts").mounts}
    wanted = os.path.abspath(path)
    if wanted not in mounts:
        with suppress(Unavailable):  # a path that hangs is not looked at any further
            await_answer(path)
            wanted = os.path.realpath(path)
    if wanted in mounts:
        return mounts[wanted]
    there = f"mounts are {', '.join(sorted(mounts))}" if mounts else "it has no mounts"
    raise click.UsageError(f"{path} is no mount of this node; {there}")


def _paths(client: Any, place: Any, inodes: set[int], found: Profile) -> dict[int, str]:
    """Returns the paths of inodes from the root of the volume, as the metadata has them, or as they were seen by name."""
    wanted = set(inodes)
    for ino in inodes:
        while ino in found.found and (ino := found.found[ino][0]) not in wanted:
            wanted.add(ino)
    paths: dict[int, str] = {}
    first = [*sorted(inodes), *sorted(wanted - inodes)]
    with suppress(Error):  # without a leader, or with a daemon of an earlier build, numbers stand for them
        for at in range(0, len(first), PATHS_AT_ONCE):
            reply = client.call("GetPaths", volume=place.volume, inodes=first[at : at + PATHS_AT_ONCE])
            paths.update({one.inode: one.path for one in reply.paths if one.path})
    for ino in sorted(inodes - set(paths)):
        if ino in found.found and found.found[ino][0] in paths:  # gone already, or not yet in the log of the cluster
            parent, name = found.found[ino]
            paths[ino] = os.path.join(paths[parent], name.decode(errors="backslashreplace"))
    return paths


def _path(directory: str, paths: dict[int, str], where: Place) -> str:
    ino, name = where
    start = (directory + paths[ino]).rstrip("/") if ino in paths else f"inode {ino}"
    return os.path.join(start, name.decode(errors="backslashreplace")) if name else start


def _row(operation: str, path: str, one: Sum) -> dict[str, Any]:
    return {
        "operation": operation,
        "path": path,
        "count": one.count,
        "errors": one.errors,
        "total_ms": one.total_ns / NS_PER_MS,
        "mean_ms": one.total_ns / one.count / NS_PER_MS,
        "most_ms": one.most_ns / NS_PER_MS,
        "programs": sorted(one.programs, key=lambda name: -one.programs[name]),
        "uids": sorted(one.uids),
    }
