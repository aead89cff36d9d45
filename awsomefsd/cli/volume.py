"""awsomefsd volume create|ls|show|set|delete|release."""

from __future__ import annotations

import os
from typing import Any

import click

from awsomefsd.cli.main import Group, Session
from awsomefsd.cli.output import SIZE, message_dict, output_option, print_json
from awsomefsd.cli.tables import print_volumes
from awsomefsd.errors import WouldLoseData


class Mode(click.ParamType):
    name = "octal"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            mode = value if isinstance(value, int) else int(value, 8)
        except ValueError:
            mode = -1
        if not 0 <= mode <= 0o7777:
            self.fail(f"{value!r} is no mode; write it like 755 or 1777", param, ctx)
        return mode


@click.group(cls=Group)
def volume() -> None:
    """Create, list, change and delete volumes."""


@volume.command()
@click.argument("name")
@click.option("--quota", type=SIZE, default=0, help="Bytes it may use, such as 100G [no bound].")
@click.option("--quota-files", type=click.IntRange(0), default=0, help="Files and directories it may have [no bound].")
@click.option("--mode", type=Mode(), default=0o755, help="Mode of the root directory [755].")
@click.option("--uid", type=click.IntRange(0, 2**32 - 2), default=os.geteuid, help="Owner of the root directory [you].")
@click.option("--gid", type=click.IntRange(0, 2**32 - 2), default=os.getegid, help="Group of the root directory [yours].")
@output_option
@click.pass_obj
def create(session: Session, name: str, quota: int, quota_files: int, mode: int, uid: int, gid: int, form: str) -> None:
    """Create an empty volume."""
    with session.client() as client:
        made = client.call("CreateVolume", name=name, quota_bytes=quota, quota_inodes=quota_files, mode=mode, uid=uid, gid=gid)
    _print_one(made, form, f"created volume {made.name} ({made.uuid})")


@volume.command()
@output_option
@click.pass_obj
def ls(session: Session, form: str) -> None:
    """List all volumes."""
    with session.client() as client:
        volumes = client.call("ListVolumes").volumes
    if form == "json":
        print_json([message_dict(found) for found in volumes])
    else:
        print_volumes(volumes)


@volume.command()
@click.argument("name")
@output_option
@click.pass_obj
def show(session: Session, name: str, form: str) -> None:
    """Show one volume."""
    with session.client() as client:
        (found,) = client.call("ListVolumes", name=name).volumes
    _print_one(found, form, "\n".join(f"{key:<16}{value}" for key, value in message_dict(found).items()))


@volume.command(name="set")
@click.argument("name")
@click.option("--quota", type=SIZE, help="Bytes it may use; 0 for no bound.")
@click.option("--quota-files", type=click.IntRange(0), help="Files and directories it may have; 0 for no bound.")
@click.option("--name", "new_name", default="", help="A new name.")
@output_option
@click.pass_obj
def set_(session: Session, name: str, quota: int | None, quota_files: int | None, new_name: str, form: str) -> None:
    """Change quotas or the name of a volume."""
    if quota is None and quota_files is None and not new_name:
        raise click.UsageError("nothing to change: give --quota, --quota-files or --name")
    with session.client() as client:
        changed = client.call("SetVolume", name=name, quota_bytes=quota, quota_inodes=quota_files, new_name=new_name)
    _print_one(changed, form, f"changed volume {changed.name}")


@volume.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if it has files: all of them are lost.  Asks for the name once more.")
@click.option("--yes-destroy", metavar="NAME", default="", help="With --force, for scripts: the name once more instead of the question.")
@click.pass_obj
def delete(session: Session, name: str, force: bool, yes_destroy: str) -> None:
    """Delete a volume; one with files is refused with exit status 4, unless forced."""
    destroy = ""
    if force or yes_destroy:
        if not yes_destroy:
            click.echo(f"All files of volume {name} will be lost.", err=True)
            yes_destroy = click.prompt("Type the name of the volume to go on", default="", show_default=False, err=True)
        if yes_destroy != name:
            raise WouldLoseData(f"the confirmation {yes_destroy!r} is not {name!r}; nothing was done")
        destroy = name
    with session.client() as client:
        client.call("DeleteVolume", name=name, destroy=destroy)
    click.echo(f"deleted volume {name}")


@volume.command()
@click.argument("name")
@click.option("--node", required=True, metavar="NODE", help="The node (name or UUID) that claims it, and is gone.")
@click.option("--yes-release", metavar="NODE", default="", help="For scripts: the node once more instead of the question.")
@click.pass_obj
def release(session: Session, name: str, node: str, yes_release: str) -> None:
    """End a node's claim on a volume, so that others may use it.

    For volumes of one node (Kubernetes: ReadWriteOnce) whose node died for good.  If it lives, two nodes use the volume afterwards: see
    first that the machine is off.  A node that is removed from the cluster (`node remove`) loses all its claims.
    """
    if not yes_release:
        click.echo(f"If node {node} still runs, files of volume {name} may be damaged by what runs on both.", err=True)
        yes_release = click.prompt("Type the node to go on", default="", show_default=False, err=True)
    if yes_release != node:
        raise WouldLoseData(f"the confirmation {yes_release!r} is not {node!r}; nothing was done")
    with session.client() as client:
        paths = client.call("ReleaseVolume", name=name, node=node, confirm=yes_release).paths
    for path in paths:
        click.echo(f"released {name}{f'/{path}' if path else ''} of node {node}")


def _print_one(found: Any, form: str, words: str) -> None:
    if form == "json":
        print_json(message_dict(found))
    else:
        click.echo(words)
