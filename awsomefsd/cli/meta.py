"""awsomefsd meta backup|restore|dump|load: the metadata as a file."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click
from msgspec.structs import asdict

from awsomefsd.cli.main import ERROR, OK, Command, Group, Session
from awsomefsd.cli.output import output_option, print_json
from awsomefsd.errors import AlreadyExists

if TYPE_CHECKING:
    from awsomefsd.backup import BackupHeader
    from awsomefsd.restore import Restored

CONFIRM = "No process of before, on any machine, can still write to these devices."


@click.group(cls=Group)
def meta() -> None:
    """Back up, restore, dump and load the metadata."""


@meta.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@output_option
@click.pass_obj
def backup(session: Session, file: Path, force: bool, form: str) -> None:
    """Write all metadata, as it is now, to FILE; mounts go on meanwhile.

    FILE appears whole or not at all, mode 0600.  It holds the cluster's CA key: keep it like a private key.  The data of the files is not
    in it; that stays on the devices.
    """
    header = _take(session, file, force=force)
    if form == "json":
        print_json(asdict(header) | {"file": str(file), "bytes": file.stat().st_size})
    else:
        click.echo(f"{file}: cluster {header.cluster} up to entry {header.index}, {file.stat().st_size} bytes, checked")


def _take(session: Session, file: Path, *, force: bool) -> BackupHeader:
    from awsomefsd import durable
    from awsomefsd.backup import read_backup

    if file.exists() and not force:
        raise AlreadyExists(f"{file} exists; choose another name, or replace it with --force")
    new = file.with_name(file.name + ".new")
    try:
        with session.client() as client, _created(new) as out:
            for piece in client.backup():
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        header = read_backup(new)  # what was written is what comes back
        new.rename(file)
        durable.sync_directory(file.absolute().parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return header


def _created(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


@meta.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("devices", nargs=-1, type=click.Path())
@click.option("--confirm-nobody-writes", is_flag=True, help=CONFIRM)
@click.option("--check", "only_check", is_flag=True, help="Read all of FILE, say what it is, and do nothing.")
@output_option
@click.pass_obj
def restore(session: Session, file: Path, devices: tuple[str, ...], confirm_nobody_writes: bool, only_check: bool, form: str) -> int:
    """Make a cluster of one node from a backup, on a state directory without a node.

    DEVICES are the paths of the cluster's devices, where the files' data is.  What changed after the backup was made is lost; bytes that
    were overwritten since read as I/O errors, never as something else.  All nodes of before are
    removed from it: they join again, with empty state directories.
    """
    from awsomefsd.backup import read_backup
    from awsomefsd.restore import begin, finish

    if only_check:
        header = read_backup(file)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.time_ns // 1_000_000_000))
        words = f"{file} is whole: cluster {header.cluster} up to entry {header.index}, made {when} by node {header.node}"
        print_json(asdict(header)) if form == "json" else click.echo(words)
        return OK
    with ExitStack() as undo:
        store = begin(session.settings.state_dir, undo)
        header = read_backup(file, store / "data.mdb")
        proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
        return _say(finish(session.settings.state_dir, header.cluster, header.term, list(devices), proof, undo), form)


def _say(made: Restored, form: str) -> int:
    if form == "json":
        print_json(asdict(made))
    else:
        click.echo(f"node {made.node} has the metadata of cluster {made.cluster} up to entry {made.index}")
        for missing in made.missing_devices:
            click.echo(f"device {missing} was not given: add it with `awsomefsd device add PATH` before its files are read")
        for fault in made.faults:
            click.echo(fault)
        click.echo(
            "the state is sound; start the node with `awsomefsd run`" if not made.faults else f"{len(made.faults)} faults, see above"
        )
    return ERROR if made.faults else OK


@meta.command(cls=Command)
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_obj
def dump(session: Session, file: Path | None) -> None:
    """Print the metadata as JSON lines: of the backup FILE, or of the running node.

    A line a row; secrets are left out.  `awsomefsd meta load` makes a node from it.
    """
    from awsomefsd.backup import read_backup
    from awsomefsd.dump import lines
    from awsomefsd.meta.store import Store

    with tempfile.TemporaryDirectory(prefix="awsomefsd-dump-") as name:
        scratch = Path(name)
        if file is None:
            file = scratch / "backup"
            _take(session, file, force=False)
        (scratch / "store").mkdir(mode=0o700)
        header = read_backup(file, scratch / "store" / "data.mdb")
        store = Store.open(scratch / "store", readonly=True)
        try:
            for line in lines(header, store):
                sys.stdout.write(line)
        finally:
            store.close()


@meta.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("devices", nargs=-1, type=click.Path())
@click.option("--confirm-nobody-writes", is_flag=True, help=CONFIRM)
@output_option
@click.pass_obj
def load(session: Session, file: Path, devices: tuple[str, ...], confirm_nobody_writes: bool, form: str) -> int:
    """Make a cluster of one node from a dump, as `restore` does from a backup."""
    from awsomefsd.dump import load as load_dump
    from awsomefsd.restore import begin, finish

    with ExitStack() as undo:
        header: Any = load_dump(file, begin(session.settings.state_dir, undo))
        proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
        return _say(finish(session.settings.state_dir, header.cluster, header.term, list(devices), proof, undo), form)


@meta.command(cls=Command)
@click.option("--force-single", is_flag=True, required=True, help="Make this stopped node the only voter.")
@click.option("--confirm-majority-lost", is_flag=True, help="The majority of the voters is lost for good.")
@output_option
@click.pass_obj
def recover(session: Session, force_single: bool, confirm_majority_lost: bool, form: str) -> None:
    """Go on with this node alone, when the majority of the voters is lost for good.

    Take the node that was the most up to date ("last_index" of its status), with its daemon stopped.  What only the lost ones had is lost.
    Voters of before that come back later take no part any more, and say so.
    """
    from awsomefsd import force_single as forcing
    from awsomefsd.cluster.addresses import described

    settings = session.settings
    made = forcing.force_single(settings.state_dir, described(settings)[1], confirmed=confirm_majority_lost)
    if form == "json":
        print_json(asdict(made))
        return
    click.echo(f"node {made.node} is the only voter now, with everything up to entry {made.index} (generation {made.generation})")
    for lost in made.lost:
        click.echo(f"left behind: node {lost}; remove it (awsomefsd node remove), or move its state_dir/meta away before it starts again")
    for fault in made.faults:
        click.echo(f"fault: {fault}; run awsomefsd fsck")
    click.echo("next: awsomefsd run")
