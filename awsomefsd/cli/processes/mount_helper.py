"""The helpers of mount(8) and umount(8): /sbin/mount.awsomefs and /sbin/umount.fuse.awsomefs (packaging/sbin) exec these.

Their command lines are fixed by util-linux: `mount.awsomefs VOLUME DIR [-sfnv] [-o options] [-t type]` and
`umount.fuse.awsomefs DIR [-flnrv] [-t type]`.  Exit status as mount(8) documents it: 1 for bad usage, 32 for a failed mount.
Of the options, run_dir=, state_dir= and config= are for us (a node with other directories); all others go to the daemon.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from awsomefsd.base import errors
from awsomefsd.base.log import printable
from awsomefsd.cli.main import GivenPath, Invocation
from awsomefsd.cli.mount import asked_words, check_words, perform_mount, perform_umount
from awsomefsd.config import mount_options

BAD_USAGE, FAILED = 1, 32
_OURS = {"run_dir": "run_dir", "state_dir": "state_dir", "config": "config_file"}


class BadUsage(click.UsageError):
    exit_code = BAD_USAGE


class HelperCommand(click.Command):
    """A command whose wrong usage ends with the status that mount(8) documents for it."""

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as err:
            raise BadUsage(err.format_message(), err.ctx) from None


@click.command(name="mount-helper", cls=HelperCommand, hidden=True)
@click.argument("volume")
@click.argument("directory", type=GivenPath())
@click.option("-s", "sloppy", is_flag=True, help="Ignore unknown options.")
@click.option("-f", "fake", is_flag=True, help="Check everything, mount nothing.")
@click.option("-n", is_flag=True, expose_value=False, help="Ignored: there is no mtab any more.")
@click.option("-v", "verbose", is_flag=True, help="Print what was mounted.")
@click.option("-o", "options", multiple=True, help="Mount options, separated by commas.")
@click.option("-t", "fstype", expose_value=False, help="Ignored: the type is known.")
@click.option("-N", "namespace", expose_value=False, help="Ignored.")
@click.pass_obj
def mount_helper(
    invocation: Invocation,
    volume: str,
    directory: Path,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    options: tuple[str, ...],
) -> int:
    """Mount VOLUME on DIR, called by mount(8): mount.awsomefs VOLUME DIR [-sfnv] [-o options]."""
    words = ours_taken(invocation, [word for text in options for word in mount_options.split(text)])
    if mount_options.REMOUNT in words:  # mount(8) has merged fstab or the mount table with what to change: a flag it does not name is off
        words = [*mount_options.NO_FLAGS, *words]
    words = asked_words(invocation, words)
    if sloppy:
        words = [word for word in words if _known(word)]
    try:
        check_words(words)
    except errors.Error as err:
        click.echo(f"mount.awsomefs: {printable(err)}", err=True)
        return BAD_USAGE
    if fake:
        return 0
    try:
        made = perform_mount(invocation, volume, str(directory), words)
    except errors.Error as err:
        click.echo(f"mount.awsomefs: {printable(err)}", err=True)
        return FAILED
    if verbose:
        click.echo(f"mount.awsomefs: {made['volume']} mounted on {made['directory']}")
        if made["power_cut"]:
            click.echo(f"mount.awsomefs: {made['power_cut']}")
    return 0


@click.command(name="umount-helper", cls=HelperCommand, hidden=True)
@click.argument("directory")
@click.option("-f", "force", is_flag=True, help="Abort requests that hang, and wait only shortly for the flush.")
@click.option("-l", "lazy", is_flag=True, help="Flush, then detach the mount from the tree.")
@click.option("-n", is_flag=True, expose_value=False, help="Ignored: there is no mtab any more.")
@click.option("-r", is_flag=True, expose_value=False, help="Ignored.")
@click.option("-v", "verbose", is_flag=True, help="Print what was unmounted.")
@click.option("-t", "fstype", expose_value=False, help="Ignored: the type is known.")
@click.option("-N", "namespace", expose_value=False, help="Ignored.")
@click.pass_obj
def umount_helper(invocation: Invocation, directory: str, force: bool, lazy: bool, verbose: bool) -> int:
    """Unmount DIR, called by umount(8): umount.fuse.awsomefs DIR [-flnrv].

    A lazy unmount flushes the mount first and then detaches it from the tree, as umount -il does.
    """
    try:
        if lazy:
            return _lazily(invocation, directory)
        done = perform_umount(invocation, directory, force)
    except errors.Error as err:
        click.echo(f"umount.fuse.awsomefs: {printable(err)}", err=True)
        return FAILED
    if verbose:
        click.echo(f"umount.fuse.awsomefs: {done['directory']} unmounted")
    return 0


def _lazily(invocation: Invocation, directory: str) -> int:
    from awsomefsd.admin.client import UMOUNT_S
    from awsomefsd.keeper import mount_syscalls

    with invocation.client() as client:
        client.call("Flush", timeout_s=UMOUNT_S, target=directory)
    mount_syscalls.umount(directory, mount_syscalls.MNT_DETACH | mount_syscalls.UMOUNT_NOFOLLOW)
    return 0


def ours_taken(invocation: Invocation, words: list[str]) -> list[str]:
    """Returns the mount options without run_dir=, state_dir= and config=, which it stores in the invocation."""
    rest = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in _OURS:
            setattr(invocation, _OURS[name], Path(value).absolute())
        else:
            rest.append(word)
    return rest


def _known(word: str) -> bool:
    if word == mount_options.REMOUNT:
        return True
    try:
        mount_options.parse(["shared", word])  # an option that needs `shared` is known too
    except errors.Error:
        return False
    return True
