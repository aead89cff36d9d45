"""awsomefsd device recover: the cluster again, from its devices alone; or a damaged state directory, from its device."""

from __future__ import annotations

import time

import click
from msgspec.structs import asdict

from awsomefsd.cli.main import ERROR, OK, Command, Session
from awsomefsd.cli.output import output_option, print_json


@click.command(cls=Command)
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--dry-run", is_flag=True, help="Say what would be recovered; write nothing.")
@click.option("--in-place", is_flag=True, help="Repair the damaged metadata of this state directory; the damaged files are kept beside.")
@click.option("--confirm-nobody-writes", is_flag=True, help="No process of before, on any machine, can still write to these devices.")
@output_option
@click.pass_obj
def recover(session: Session, paths: tuple[str, ...], dry_run: bool, in_place: bool, confirm_nobody_writes: bool, form: str) -> int:
    """Rebuild a cluster of one node from its devices PATHS, when its state directory is lost.

    What was fsynced after the last checkpoint's tail is lost: about the last second.  No daemon may run.
    """
    from awsomefsd.recovery import recover as recover_fresh
    from awsomefsd.recovery import recover_in_place

    proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
    work = recover_in_place if in_place else recover_fresh
    report = work(session.settings.state_dir, list(paths), proof, dry_run=dry_run)
    if form == "json":
        print_json(asdict(report))
    else:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.time_ns // 1_000_000_000))
        verb = "recovered" if report.done else "would recover"
        click.echo(f"{verb} cluster {report.cluster} up to entry {report.index} (term {report.term}) from {report.source}, written {when}")
        for missing in report.missing_devices:
            click.echo(f"device {missing} was not given: add it with `awsomefsd device add PATH` before its files are read")
        if report.done and not report.checkpointed:
            click.echo("the device had no room for a checkpoint of the recovered state; the daemon tries again")
        for fault in report.faults:
            click.echo(fault)
        if report.done:
            click.echo("the state is sound" if not report.faults else f"{len(report.faults)} faults, see above; do not go on without help")
    return ERROR if report.faults else OK
