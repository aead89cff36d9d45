"""awsomefsd mount, umount and flush: mount volumes on this node, and unmount and flush them."""

from __future__ import annotations

import os
from pathlib import Path

import click

from awsomefsd.base.errors import Error
from awsomefsd.cli.main import ERROR, OK, CliCommand, GivenPath, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_json, say
from awsomefsd.cli.tables import print_mounts, print_power_cuts
from awsomefsd.config import mount_options


@click.command(cls=CliCommand)
@click.argument("volume", required=False)
@click.argument("directory", type=GivenPath(), required=False)
@click.option(
    "-O", "--options", "options", multiple=True, help="Mount options as mount(8) takes them after -o: ro,noatime,nosuid,... (repeatable)."
)
@click.option("--read-only", "-r", is_flag=True, help="Mount read-only; the same as -O ro.")
@output_option
@click.pass_obj
def mount(invocation: Invocation, volume: str | None, directory: Path | None, options: tuple[str, ...], read_only: bool, form: str) -> None:
    """Mount VOLUME on DIRECTORY; without arguments, list the mounts of this node.

    A volume can be mounted on several directories, each with its own ro, nosuid, nodev, noexec; other options are the same.

    mount(8) and fstab work too: mount -t awsomefs VOLUME DIR.
    """
    if volume is None:
        if options or read_only:
            raise click.UsageError("VOLUME and DIRECTORY are missing: awsomefsd mount VOLUME DIRECTORY -O OPTIONS")
        with invocation.client() as client:
            mounts = client.call("ListMounts", power_cut=True).mounts
        if form == "json":
            print_json([message_dict(found) for found in mounts])
            return
        print_mounts(mounts)
        print_power_cuts(mounts)
        return
    if directory is None:
        raise click.UsageError("DIRECTORY is missing: awsomefsd mount VOLUME DIRECTORY")
    words = asked_words(invocation, [word for text in options for word in mount_options.split(text)])
    if read_only:
        words.append("ro")
    made = perform_mount(invocation, volume, str(directory), words)
    if form == "json":
        print_json(made)
    else:
        say(f"mounted {made['volume']} on {made['directory']}")
        if made["power_cut"]:  # a daemon of an older build does not say it
            say(str(made["power_cut"]))


def asked_words(invocation: Invocation, words: list[str]) -> list[str]:
    """Returns the options of a mount as the daemon is asked for them; a remount names all that shall change, so no defaults are added."""
    return words if mount_options.REMOUNT in words else mount_options.split(invocation.settings.mount.options) + words


def check_words(words: list[str]) -> None:
    """Raises ConfigError for options that no mount takes; what a remount may change is the daemon's to say, who knows the mount."""
    mount_options.parse(["shared", *mount_options.of_remount(words)] if mount_options.REMOUNT in words else words)


def perform_mount(invocation: Invocation, volume: str, directory: str, options: list[str]) -> dict[str, object]:
    """Mounts a volume through the daemon; returns the fields of the mount (admin.proto).  Blocks until the mount is served.

    Raises ConfigError for a mistyped option, and as AdminClient.call.
    """
    from awsomefsd.admin.client import MOUNT_S

    check_words(options)  # a mistyped option is an error before the daemon is asked
    with invocation.client() as client:
        made = client.call("Mount", timeout_s=MOUNT_S, volume=volume, directory=os.path.abspath(directory), options=options)
    return message_dict(made)


@click.command(cls=CliCommand)
@click.argument("target", required=False)
@click.option("--all", "-a", "everything", is_flag=True, help="Unmount every mount of this node.")
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Abort requests that hang, and wait only shortly for the flush: buffered data and delegated changes of names may be lost.",
)
@output_option
@click.pass_obj
def umount(invocation: Invocation, target: str | None, everything: bool, force: bool, form: str) -> int:
    """Write everything to storage and unmount TARGET.

    TARGET is a directory, a volume or a mount id.  Exit status 1 if something could not be unmounted.
    """
    if everything == (target is not None):
        raise click.UsageError("give one target or --all: awsomefsd umount DIRECTORY, or awsomefsd umount --all")
    if target is not None:
        _say_unmounted(perform_umount(invocation, target, force), form)
        return OK
    with invocation.client() as client:
        directories = sorted((str(found.directory) for found in client.call("ListMounts").mounts), reverse=True)
    failed = False
    ended = []
    for directory in directories:  # a mount below another one is unmounted first
        try:
            ended.append(perform_umount(invocation, directory, force))
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
    say(f"unmounted {done['directory']}" + (" (bind mounts or other mount namespaces still use it)" if done["detached"] else ""))
    if not done["flushed"]:
        click.echo("awsomefsd: the newest writes may be lost: they could not be written to storage", err=True)


def perform_umount(invocation: Invocation, target: str, force: bool) -> dict[str, object]:
    """Unmounts a directory, volume or mount id through the daemon; returns the fields of UmountReply.  Blocks for the flush."""
    from awsomefsd.admin.client import UMOUNT_S

    with invocation.client() as client:
        return message_dict(client.call("Umount", timeout_s=UMOUNT_S, target=_target(target), force=force))


@click.command(cls=CliCommand)
@click.argument("target")
@output_option
@click.pass_obj
def flush(invocation: Invocation, target: str, form: str) -> None:
    """Write the buffered data of TARGET to storage.

    TARGET is a directory, a volume or a mount id.  Everything that was written to it before the command is durable when it returns.
    sync(1) does not reach a FUSE filesystem; fsync(2) does so for one file, this command for a whole mount.
    """
    from awsomefsd.admin.client import UMOUNT_S

    with invocation.client() as client:
        done = client.call("Flush", timeout_s=UMOUNT_S, target=_target(target))
    print_json(message_dict(done)) if form == "json" else say(f"{done.directory} is durable")


def _target(target: str) -> str:
    """Returns the target as the daemon takes it: a path is made absolute here, a volume or mount id stays as it is."""
    return os.path.abspath(target) if "/" in target or target in (".", "..") else target
