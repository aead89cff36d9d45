"""awsomefsd volume: create, list, show, change, delete and release volumes."""

from __future__ import annotations

import os
from typing import Any

import click

from awsomefsd.base import power_cut
from awsomefsd.base.errors import Refused, WouldLoseData
from awsomefsd.base.types import NAMES_WORDS
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import (
    FILE_QUOTA,
    QUOTA,
    GivenName,
    message_dict,
    output_option,
    print_fields,
    print_json,
    readable,
    say,
    typed_again,
)
from awsomefsd.cli.tables import print_volumes
from awsomefsd.cli.volumes.snapshot import snapshot


class Mode(click.ParamType):
    name = "octal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            mode = value if isinstance(value, int) else int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o7777:
            self.fail(f"{value!r} is not a file mode; write it in octal, such as 755 or 1777", param, ctx)
        return mode


VOLUME_NAME = GivenName("look at `awsomefsd volume ls`")


@click.group(cls=CliGroup)
def volume() -> None:
    """Create, list, change and delete volumes."""


volume.add_command(snapshot)


@volume.command()
@click.argument("name", type=VOLUME_NAME)
@click.option("--quota", type=QUOTA, default=0, help="Bytes that the volume may use, such as 100G, or none [none].")
@click.option("--quota-files", type=FILE_QUOTA, default=0, help="Files and directories that the volume may have, or none [none].")
@click.option("--mode", type=Mode(), default=0o755, help="Mode of the root directory, octal [755].")
@click.option("--uid", type=click.IntRange(0, 2**32 - 2), default=os.geteuid, help="Owner of the root directory [you].")
@click.option("--gid", type=click.IntRange(0, 2**32 - 2), default=os.getegid, help="Group of the root directory [yours].")
@click.option("--names", type=click.Choice(NAMES_WORDS), help="When changes of names are durable [delegated].")
@click.option("--redundancy", default="", hidden=True, help="Of a volume in a pool, such as replicas=3.")
@output_option
@click.pass_obj
def create(invocation: Invocation, name: str, names: str | None, redundancy: str, form: str, **fields: int) -> None:
    """Create an empty volume.

    With --names=delegated a mount that has the volume for itself decides changes of names by itself: they are durable at fsync, flush and
    unmount, and else a moment later, in order.  With --names=durable every change is in the cluster's log when it is answered; so it is in
    a cluster that acts at a level below 4, too.
    """
    fields = {"quota_bytes": fields.pop("quota"), "quota_inodes": fields.pop("quota_files"), **fields}
    with invocation.client() as client:
        made = client.call("CreateVolume", name=name, names=names or "", redundancy=redundancy, **fields)
        if names is not None and made.names != names and names != NAMES_WORDS[0]:  # it left out what it does not know
            client.call("DeleteVolume", name=name)
            raise Refused("the daemon is of an older build and knows no --names; no volume was created: restart the daemon, and try again")
    _print_one(made, form, f"created volume {made.name} ({made.uuid})\n{_said(made)}")


@volume.command()
@output_option
@click.pass_obj
def ls(invocation: Invocation, form: str) -> None:
    """List all volumes."""
    with invocation.client() as client:
        volumes = client.call("ListVolumes").volumes
    if form == "json":
        print_json([message_dict(found) for found in volumes])
    else:
        print_volumes(volumes)
        for names in sorted({found.names for found in volumes} - {""}):
            say(f"{names}: {power_cut.of_volume(names)}")


@volume.command()
@click.argument("name", type=VOLUME_NAME)
@output_option
@click.pass_obj
def show(invocation: Invocation, name: str, form: str) -> None:
    """Show the details of one volume."""
    with invocation.client() as client:
        (found,) = client.call("ListVolumes", name=name).volumes
    if form == "json":
        print_json(message_dict(found))
    else:
        print_fields([*readable(message_dict(found)), ("power cut", _said(found))])


def _said(found: Any) -> str:
    """Returns what a power cut may take from a volume; one of a daemon of an older build is as ever."""
    return power_cut.of_volume(found.names or NAMES_WORDS[0])


@volume.command(name="set")
@click.argument("name", type=VOLUME_NAME)
@click.option("--quota", type=QUOTA, help="Bytes that the volume may use, such as 100G; none for no limit.")
@click.option("--quota-files", type=FILE_QUOTA, help="Files and directories that the volume may have; none for no limit.")
@click.option("--name", "new_name", type=VOLUME_NAME, help="New name of the volume.")
@click.option("--names", type=click.Choice(NAMES_WORDS), help="When changes of names are durable; a mount learns it when it begins.")
@output_option
@click.pass_obj
def set_(
    invocation: Invocation, name: str, quota: int | None, quota_files: int | None, new_name: str | None, names: str | None, form: str
) -> None:
    """Change the quotas or the name of a volume, or when changes of names are durable.

    With --names=durable every change of a name is in the cluster's log when it is answered.  With --names=delegated a mount that has the
    volume for itself decides by itself: changes are durable at fsync, flush and unmount, and else a moment later, in order.  Either
    holds for a mount from its next beginning on: unmount the volume and mount it again.
    """
    if quota is None and quota_files is None and new_name is None and names is None:
        raise click.UsageError("nothing to change: give --quota, --quota-files, --name or --names")
    if new_name in NAMES_WORDS:
        raise click.UsageError(f"--name is a new name of the volume; when changes of names are durable is --names {new_name}")
    with invocation.client() as client:
        asked: dict[str, Any] = {"quota_bytes": quota, "quota_inodes": quota_files, "new_name": new_name or "", "names": names or ""}
        changed = client.call("SetVolume", name=name, **asked)
    if names is not None and changed.names != names:
        raise Refused("the daemon is of an older build and knows no --names; nothing of it was changed: restart the daemon, and try again")
    again = f"; names={names} holds for a mount of it from its next beginning on: unmount it and mount it again" if names else ""
    _print_one(changed, form, f"changed volume {changed.name}{again}")


@volume.command()
@click.argument("name", type=VOLUME_NAME)
@click.option("--force", is_flag=True, help="Delete a volume that has files: all of them are lost.  Asks for the name again.")
@click.option("--yes-destroy", metavar="NAME", default="", help="For scripts: the name again, instead of --force and the question.")
@click.pass_obj
def delete(invocation: Invocation, name: str, force: bool, yes_destroy: str) -> None:
    """Delete a volume.

    A volume with files is refused with exit status 4 unless --force is given.
    """
    destroy = ""
    if force or yes_destroy:
        if not yes_destroy:
            click.echo(f"All files of volume {name} will be lost.", err=True)
            yes_destroy = typed_again("the name of the volume", "--yes-destroy")
        if yes_destroy != name:
            raise WouldLoseData(f"the confirmation {yes_destroy!r} is not {name!r}; nothing was done")
        destroy = name
    with invocation.client() as client:
        client.call("DeleteVolume", name=name, destroy=destroy)
    say(f"deleted volume {name}")


@volume.command()
@click.argument("name", type=VOLUME_NAME)
@click.option("--node", required=True, metavar="NODE", help="Node that claims the volume and is gone: its name or UUID.")
@click.option("--yes-release", metavar="NODE", default="", help="For scripts: the node again, instead of the question.")
@click.pass_obj
def release(invocation: Invocation, name: str, node: str, yes_release: str) -> None:
    """End the claim of a node on a volume, so that other nodes may use it.

    For volumes that one node uses (Kubernetes: ReadWriteOnce) when that node died for good.  Make sure first that the machine is off: if it
    still runs, two nodes use the volume, and files may be damaged.  A node that is removed from the cluster (`awsomefsd node remove`)
    loses all its claims.
    """
    if not yes_release:
        click.echo(f"If node {node} still runs, both nodes use volume {name}, and its files may be damaged.", err=True)
        yes_release = typed_again("the node", "--yes-release")
    if yes_release != node:
        raise WouldLoseData(f"the confirmation {yes_release!r} is not {node!r}; nothing was done")
    with invocation.client() as client:
        paths = client.call("ReleaseVolume", name=name, node=node, confirm=yes_release).paths
    for path in paths:
        say(f"released {name}{f'/{path}' if path else ''} of node {node}")


def _print_one(found: Any, form: str, words: str) -> None:
    if form == "json":
        print_json(message_dict(found))
    else:
        say(words)
