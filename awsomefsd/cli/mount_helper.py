"""What mount(8) and umount(8) run: /sbin/mount.awsomefs and /sbin/umount.fuse.awsomefs (packaging/sbin) exec these.

Their command lines are fixed by util-linux: `mount.awsomefs VOLUME DIR [-sfnv] [-o options] [-t type]` and
`umount.fuse.awsomefs DIR [-flnrv] [-t type]`.  Exit status as mount(8) documents it: 1 for bad usage, 32 for a failed mount.
Of the options, run_dir=, state_dir= and config= are for us (a node beside the usual place); everything else goes to the daemon.
"""

from __future__ import annotations

from pathlib import Path

import click

from awsomefsd import errors, mount_options
from awsomefsd.cli.main import Session
from awsomefsd.cli.mount import perform_mount, perform_umount

BAD_USAGE, FAILED = 1, 32
_OURS = {"run_dir": "run_dir", "state_dir": "state_dir", "config": "config_file"}


@click.command(name="mount-helper", hidden=True)
@click.argument("volume")
@click.argument("directory")
@click.option("-s", "sloppy", is_flag=True, help="Leave out options that are unknown.")
@click.option("-f", "fake", is_flag=True, help="Check everything, mount nothing.")
@click.option("-n", is_flag=True, expose_value=False, help="Nothing: there is no mtab any more.")
@click.option("-v", "verbose", is_flag=True)
@click.option("-o", "options", multiple=True)
@click.option("-t", "fstype", expose_value=False)
@click.option("-N", "namespace", expose_value=False)
@click.pass_obj
def mount_helper(
    session: Session,
    volume: str,
    directory: str,
    sloppy: bool,
    fake: bool,
    verbose: bool,
    options: tuple[str, ...],
) -> int:
    """mount.awsomefs VOLUME DIR [-sfnv] [-o options]"""
    words = ours_taken(session, [word for text in options for word in mount_options.split(text)])
    words = mount_options.split(session.settings.mount.options) + words
    if sloppy:
        words = [word for word in words if _known(word)]
    try:
        mount_options.parse(words)
    except errors.Error as err:
        click.echo(f"mount.awsomefs: {err}", err=True)
        return BAD_USAGE
    if fake:
        return 0
    try:
        made = perform_mount(session, volume, directory, words)
    except errors.Error as err:
        click.echo(f"mount.awsomefs: {err}", err=True)
        return FAILED
    if verbose:
        click.echo(f"mount.awsomefs: {made['volume']} mounted on {made['directory']}")
    return 0


@click.command(name="umount-helper", hidden=True)
@click.argument("directory")
@click.option("-f", "force", is_flag=True)
@click.option("-l", "lazy", is_flag=True)
@click.option("-n", is_flag=True, expose_value=False)
@click.option("-r", is_flag=True, expose_value=False)
@click.option("-v", "verbose", is_flag=True)
@click.option("-t", "fstype", expose_value=False)
@click.option("-N", "namespace", expose_value=False)
@click.pass_obj
def umount_helper(session: Session, directory: str, force: bool, lazy: bool, verbose: bool) -> int:
    """umount.fuse.awsomefs DIR [-flnrv]

    A lazy umount is made durable first, then taken out of the tree by the kernel: umount -il.
    """
    try:
        if lazy:
            return _lazily(session, directory)
        done = perform_umount(session, directory, force)
    except errors.Error as err:
        click.echo(f"umount.fuse.awsomefs: {err}", err=True)
        return FAILED
    if verbose:
        click.echo(f"umount.fuse.awsomefs: {done['directory']} unmounted")
    return 0


def _lazily(session: Session, directory: str) -> int:
    from awsomefsd.admin.client import UMOUNT_S
    from awsomefsd.fuse import mount_syscall

    with session.client() as client:
        client.call("Flush", timeout_s=UMOUNT_S, target=directory)
    mount_syscall.umount(directory, mount_syscall.MNT_DETACH | mount_syscall.UMOUNT_NOFOLLOW)
    return 0


def ours_taken(session: Session, words: list[str]) -> list[str]:
    """The options without those that say which node to ask."""
    rest = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in _OURS:
            setattr(session, _OURS[name], Path(value).absolute())
        else:
            rest.append(word)
    return rest


def _known(word: str) -> bool:
    try:
        mount_options.parse(["shared", word])  # what is known only beside `shared` is no unknown option
    except errors.Error:
        return False
    return True
