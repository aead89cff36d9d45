"""awsomefsd volume snapshot: create, list and delete snapshots of volumes.  Not complete: in no help."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import GivenName, message_dict, output_option, print_json, print_table, say

CREATE_S = 120.0  # longer than the leader waits for mounts
_WORDS = {
    "crash": "crash: what was stored already",
    "synced": "synced: all that had returned on any node before",
    "flushed": "flushed: all that had returned on any node before, in order",
}


class SnapshotName(click.ParamType):
    """VOLUME@NAME; the value is both."""

    name = "volume@name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        volume, at, name = str(value).partition("@")
        if not (volume and at and name):
            self.fail(f"{value!r} is no snapshot; write VOLUME@NAME", param, ctx)
        return volume, name


@click.group(cls=CliGroup, hidden=True)
def snapshot() -> None:
    """Create, list and delete snapshots of volumes."""


@snapshot.command()
@click.argument("wanted", metavar="VOLUME@NAME", type=SnapshotName())
@click.argument("more", metavar="VOLUME", nargs=-1)
@click.option("--crash-consistent", is_flag=True, help="Make it of what is stored already; no mount is waited for.")
@output_option
@click.pass_obj
def create(invocation: Invocation, wanted: tuple[str, str], more: tuple[str, ...], crash_consistent: bool, form: str) -> None:
    """Keep the state of VOLUME as snapshot NAME; with further volumes, theirs of the same moment.

    All mounts of the volume, on any node, first write what they hold back; a mount that does not within a minute is named, and nothing is
    made.
    """
    volume, name = wanted
    with invocation.client() as client:
        asked = {"volumes": [volume, *more], "name": name, "crash_consistent": crash_consistent}
        made = client.call("CreateSnapshots", timeout_s=CREATE_S, **asked).snapshots
    if form == "json":
        print_json([message_dict(one) for one in made])
        return
    for one in made:
        say(f"created snapshot {one.volume}@{one.name} ({_WORDS.get(one.word, one.word)})")


@snapshot.command()
@click.argument("volume", type=GivenName("look at `awsomefsd volume ls`"))
@output_option
@click.pass_obj
def ls(invocation: Invocation, volume: str, form: str) -> None:
    """List the snapshots of VOLUME; FREES is what the deletion of that one alone would free."""
    with invocation.client() as client:
        found = client.call("ListSnapshots", volume=volume).snapshots
    if form == "json":
        print_json([message_dict(one) for one in found])
        return
    rows = [[one.name, _when(one.created_ns), one.word, format_bytes(one.used_bytes), format_bytes(one.freed_bytes)] for one in found]
    print_table(["NAME", "MADE", "HAS", "USED", "FREES"], rows, empty="no snapshots")


@snapshot.command()
@click.argument("wanted", metavar="VOLUME@NAME", type=SnapshotName())
@click.pass_obj
def delete(invocation: Invocation, wanted: tuple[str, str]) -> None:
    """Delete a snapshot; what it alone has is freed in the background."""
    volume, name = wanted
    with invocation.client() as client:
        client.call("DeleteSnapshot", volume=volume, name=name)
    say(f"deleted snapshot {volume}@{name}")


def _when(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns / 1e9))
