"""awsomefsd mount, umount and flush."""

from __future__ import annotations

import os

import click

from awsomefsd import mount_options
from awsomefsd.cli.main import ERROR, OK, Command, Session
from awsomefsd.cli.output import message_dict, output_option, print_json
from awsomefsd.cli.tables import print_mounts
from awsomefsd.errors import Error


@click.command(cls=Command)
@click.argument("volume", required=False)
@click.argument("directory", type=click.Path(), required=False)
@click.option("-O", "--options", "options", multiple=True, help="As mount(8) takes them with -o: ro,noatime,nosuid,... (repeatable).")
@click.option("--read-only", "-r", is_flag=True, help="The same as -O ro.")
@output_option
@click.pass_obj
def mount(session: Session, volume: str | None, directory: str | None, options: tuple[str, ...], read_only: bool, form: str) -> None:
    """Mount VOLUME on DIRECTORY; without arguments, list the mounts.

    A volume is mounted once on a node; `mount --bind` shows it elsewhere.  mount(8) and fstab work too: mount -t awsomefs VOLUME DIR.
    """
    if volume is None:
        with session.client() as client:
            mounts = client.call("ListMounts").mounts
        print_json([message_dict(found) for found in mounts]) if form == "json" else print_mounts(mounts)
        return
    if directory is None:
        raise click.UsageError("where to? awsomefsd mount VOLUME DIRECTORY")
    words = mount_options.split(session.settings.mount.options) + [word for text in options for word in mount_options.split(text)]
    if read_only:
        words.append("ro")
    made = perform_mount(session, volume, directory, words)
    if form == "json":
        print_json(made)
    else:
        click.echo(f"mounted {made['volume']} on {made['directory']}")


def perform_mount(session: Session, volume: str, directory: str, options: list[str]) -> dict[str, object]:
    """Mount and return the mount point's fields."""
    from awsomefsd.admin.client import MOUNT_S

    mount_options.parse(options)  # a mistyped option is told before the daemon is asked
    with session.client() as client:
        made = client.call("Mount", timeout_s=MOUNT_S, volume=volume, directory=os.path.abspath(directory), options=options)
    return message_dict(made)


@click.command(cls=Command)
@click.argument("target", required=False)
@click.option("--all", "-a", "everything", is_flag=True, help="Every mount of this node, the last one first.")
@click.option("--force", "-f", is_flag=True, help="Abort requests that hang; waits only shortly for a flush.")
@output_option
@click.pass_obj
def umount(session: Session, target: str | None, everything: bool, force: bool, form: str) -> int:
    """Make everything durable and unmount TARGET: a directory, a volume or a mount id."""
    if everything == (target is not None):
        raise click.UsageError("what? awsomefsd umount DIRECTORY, or --all")
    if target is not None:
        _say_unmounted(perform_umount(session, target, force), form)
        return OK
    with session.client() as client:
        directories = sorted((str(found.directory) for found in client.call("ListMounts").mounts), reverse=True)
    failed = False
    ended = []
    for directory in directories:  # what lies below another one goes first
        try:
            ended.append(perform_umount(session, directory, force))
        except Error as err:
            failed = True
            click.echo(f"awsomefsd: {directory}: {err}", err=True)
    if form == "json":
        print_json(ended)
    else:
        for done in ended:
            _say_unmounted(done, form)
    return ERROR if failed else OK


def _say_unmounted(done: dict[str, object], form: str) -> None:
    if form == "json":
        print_json(done)
        return
    click.echo(f"unmounted {done['directory']}" + (" (bind mounts or other namespaces have it still)" if done["detached"] else ""))
    if not done["flushed"]:
        click.echo("awsomefsd: what was written last may be lost: it could not be made durable", err=True)


def perform_umount(session: Session, target: str, force: bool) -> dict[str, object]:
    from awsomefsd.admin.client import UMOUNT_S

    with session.client() as client:
        return message_dict(client.call("Umount", timeout_s=UMOUNT_S, target=_target(target), force=force))


@click.command(cls=Command)
@click.argument("target")
@output_option
@click.pass_obj
def flush(session: Session, target: str, form: str) -> None:
    """Make everything durable that was written to TARGET until now: a directory, a volume or a mount id.

    sync(1) does not reach a FUSE filesystem; fsync(2) of a file does, and this does for a whole mount.
    """
    from awsomefsd.admin.client import UMOUNT_S

    with session.client() as client:
        done = client.call("Flush", timeout_s=UMOUNT_S, target=_target(target))
    print_json(message_dict(done)) if form == "json" else click.echo(f"{done.directory} is durable")


def _target(target: str) -> str:
    """A path is made absolute here, where its beginning is known; a name stays one."""
    return os.path.abspath(target) if "/" in target or target in (".", "..") else target
