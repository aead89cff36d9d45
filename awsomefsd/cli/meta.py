"""awsomefsd meta: back up, restore, dump, load and recover the metadata."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from awsomefsd.base.errors import AlreadyExists
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import ERROR, OK, CliCommand, CliGroup, Invocation
from awsomefsd.cli.output import counted, output_option, print_json, say
from awsomefsd.cli.waiting import LongWork

if TYPE_CHECKING:
    from awsomefsd.recovery.backup import BackupHeader
    from awsomefsd.recovery.restore import Restored

CONFIRM = "Confirm that no process on any machine can still write to these devices."


@click.group(cls=CliGroup)
def meta() -> None:
    """Back up, restore, dump, load and recover the metadata."""


@meta.command(cls=CliCommand)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@output_option
@click.pass_obj
def backup(invocation: Invocation, file: Path, force: bool, form: str) -> None:
    """Back up all metadata to FILE while mounts are in use.

    FILE appears complete or not at all, with mode 0600.  It holds the private key of the cluster's certificate authority: protect it like
    a private key.  It does not hold the data of files, which stays on the devices.
    """
    header = _take(invocation, file, force=force)
    if form == "json":
        print_json(asdict(header) | {"file": str(file), "bytes": file.stat().st_size})
    else:
        say(f"{file}: cluster {header.cluster} up to entry {header.index}, {format_bytes(file.stat().st_size)}, checked")


def _take(invocation: Invocation, file: Path, *, force: bool) -> BackupHeader:
    from awsomefsd.base import durable
    from awsomefsd.recovery.backup import read_backup

    if file.exists() and not force:
        raise AlreadyExists(f"{file} exists; choose another name, or replace it with --force")
    new = file.with_name(file.name + ".new")
    try:
        with invocation.client() as client, os.fdopen(durable.create(new), "wb") as out, LongWork("writing") as progress:
            for piece in client.backup():
                out.write(piece)
                progress.text = f"{format_bytes(out.tell())} written"
            out.flush()
            os.fsync(out.fileno())
        with LongWork("checking what was written"):
            header = read_backup(new)  # what was written is what comes back
        new.rename(file)
        durable.sync_directory(file.absolute().parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return header


@meta.command(cls=CliCommand)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("devices", nargs=-1, type=click.Path())
@click.option("--confirm-nobody-writes", is_flag=True, help=CONFIRM)
@click.option("--check", "only_check", is_flag=True, help="Read and verify FILE, print what it holds, and change nothing.")
@output_option
@click.pass_obj
def restore(invocation: Invocation, file: Path, devices: tuple[str, ...], confirm_nobody_writes: bool, only_check: bool, form: str) -> int:
    """Make a cluster of one node from the backup FILE.

    The state directory must not hold a node yet.  DEVICES are the paths of the cluster's devices, which hold the data of the files.
    Changes after the backup are lost; bytes that were overwritten since read as I/O errors, never as other data.  All former nodes are
    removed from the cluster: they join again with empty state directories.
    """
    from awsomefsd.recovery.backup import read_backup
    from awsomefsd.recovery.restore import begin, finish

    if only_check:
        with LongWork("checking"):
            header = read_backup(file)
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(header.time_ns // 1_000_000_000))
        words = f"{file} is whole: cluster {header.cluster} up to entry {header.index}, made {when} by node {header.node}"
        print_json(asdict(header)) if form == "json" else say(words)
        return OK
    with ExitStack() as undo:
        store = begin(invocation.settings.state_dir, undo)
        proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
        with LongWork("restoring"):
            header = read_backup(file, store / "data.mdb")
            made = finish(invocation.settings.state_dir, header.cluster, header.term, list(devices), proof, undo)
        return _say(made, form)


def _say(made: Restored, form: str) -> int:
    if form == "json":
        print_json(asdict(made))
    else:
        say(f"node {made.node} has the metadata of cluster {made.cluster} up to entry {made.index}")
        for missing in made.missing_devices:
            say(f"device {missing} was not given: add it with `awsomefsd device add PATH` before its files are read")
        for fault in made.faults:
            say(fault)
        say(
            f"{counted(len(made.faults), 'fault')}, see above" if made.faults else "the state is sound; start the node with `awsomefsd run`"
        )
    return ERROR if made.faults else OK


@meta.command(cls=CliCommand)
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.pass_obj
def dump(invocation: Invocation, file: Path | None) -> None:
    """Print the metadata of the running node, or of the backup FILE, as JSON lines.

    Each row is one line; secrets are left out.  `awsomefsd meta load` makes a node from the output.
    """
    from awsomefsd.recovery.dump import dump_backup

    with tempfile.TemporaryDirectory(prefix="awsomefsd-dump-") as name:
        scratch = Path(name)
        if file is None:
            file = scratch / "backup"
            _take(invocation, file, force=False)
        for line in dump_backup(file, scratch / "store"):
            sys.stdout.write(line)


@meta.command(cls=CliCommand)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("devices", nargs=-1, type=click.Path())
@click.option("--confirm-nobody-writes", is_flag=True, help=CONFIRM)
@output_option
@click.pass_obj
def load(invocation: Invocation, file: Path, devices: tuple[str, ...], confirm_nobody_writes: bool, form: str) -> int:
    """Make a cluster of one node from the dump FILE.

    See `awsomefsd meta restore`: DEVICES, and what is lost, are the same.
    """
    from awsomefsd.recovery.dump import load as load_dump
    from awsomefsd.recovery.restore import begin, finish

    with ExitStack() as undo:
        proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
        with LongWork("loading"):
            header: Any = load_dump(file, begin(invocation.settings.state_dir, undo))
            made = finish(invocation.settings.state_dir, header.cluster, header.term, list(devices), proof, undo)
        return _say(made, form)


@meta.command(cls=CliCommand)
@click.option("--force-single", is_flag=True, required=True, help="Make this stopped node the only voter (required).")
@click.option("--confirm-majority-lost", is_flag=True, help="Confirm that the majority of the voters is lost for good.")
@click.option("--confirm-nobody-writes", is_flag=True, help=CONFIRM)
@output_option
@click.pass_obj
def recover(invocation: Invocation, force_single: bool, confirm_majority_lost: bool, confirm_nobody_writes: bool, form: str) -> None:
    """Make this node the only voter after the majority of the voters was lost for good.

    Stop the daemon of this node first.  Choose the surviving node with the newest metadata (the highest "last_index" of its status).
    Unmount all volumes on all nodes, or switch those nodes off: no process that wrote to the devices before may go on.  All sessions end.
    Changes that only the lost nodes had are lost.  Former voters that come back later take no part, and their status says so.
    """
    from awsomefsd.cluster.addresses import described
    from awsomefsd.recovery import force_single as forcing

    settings = invocation.settings
    proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
    with LongWork("recovering"):
        made = forcing.force_single(settings.state_dir, described(settings)[1], confirmed=confirm_majority_lost, proof=proof)
    if form == "json":
        print_json(asdict(made))
        return
    say(f"node {made.node} is the only voter now, with everything up to entry {made.index} (generation {made.generation})")
    for lost in made.lost:
        say(f"no longer a voter: node {lost}; remove it (awsomefsd node remove), or move its state_dir/meta away before it starts again")
    for missing in made.missing_devices:
        say(f"not seen here, so not looked at: device {missing}")
    for fault in made.faults:
        say(f"fault: {fault}; run awsomefsd fsck")
    say("next: awsomefsd run")
