"""awsomefsd fsck: check a stopped node, and repair it.

Takes the lock on the state directory, so no daemon runs meanwhile.  The work is in awsomefsd/fsck.py; here are words and exit status, which
is fsck(8)'s where fsck(8) has one: 0 clean, 1 faults were there and are repaired, 4 faults are there still, 8 could not be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from awsomefsd.cli.main import Command, Session
from awsomefsd.cli.output import output_option, print_json
from awsomefsd.errors import Error, NotFound

if TYPE_CHECKING:
    from awsomefsd.fsck import Report

SHOWN_MAX = 200
CLEAN, REPAIRED, FAULTS_LEFT, NOT_DONE = 0, 1, 4, 8


@click.command(cls=Command)
@click.option("--repair", is_flag=True, help="Repair what can be repaired.  What cannot be saved is named, never made up.")
@click.option("--dry-run", is_flag=True, help="Say what --repair would do, and write nothing but the replay of the journal.")
@click.option("--no-replay", is_flag=True, help="Check the store as it lies, without what only the journal has.")
@output_option
@click.pass_obj
def fsck(session: Session, repair: bool, dry_run: bool, no_replay: bool, form: str) -> int:
    """Check metadata and devices of a stopped node, and repair them.

    The daemon must not run on this state directory; mounts may stay, they wait.  Copy the state directory before a repair.

    Files without a name go to lost+found in the root of their volume.  Bytes that are lost read as an I/O error, never as zeros, until
    they are overwritten.

    \b
    Exit status:
      0  no faults
      1  there were faults, and all of them are repaired
      4  there are faults (without --repair, with --dry-run, or those that cannot be repaired)
      8  the check could not be done (the daemon runs, nothing to check, no permission)
    """
    from awsomefsd import node
    from awsomefsd.fsck import Fsck

    if no_replay and repair and not dry_run:
        raise click.UsageError("--repair needs the journal: leave --no-replay out, or add --dry-run")
    try:
        settings = session.settings
        identity = node.load(settings.state_dir)
        if not (settings.state_dir / "meta" / "store" / "data.mdb").exists():
            raise NotFound(f"{settings.state_dir}/meta holds no metadata yet; start the daemon once with `awsomefsd run`")
        voters = bool(settings.metadata.voters)
        with node.StateLock(settings.state_dir, "fsck"):
            report = Fsck(settings.state_dir, identity, replay=not no_replay, repair=repair, dry_run=dry_run, voters=voters).run()
    except (Error, OSError) as err:
        click.echo(f"awsomefsd: {err}", err=True)
        return NOT_DONE
    left = report.remaining if repair and not dry_run else report.faults
    if form == "json":
        print_json({"clean": not left, **{name: getattr(report, name) for name in report.__struct_fields__}})
    else:
        _print(report, repaired=repair and not dry_run, planned=dry_run)
    if not report.faults:
        return CLEAN
    return FAULTS_LEFT if left else REPAIRED


def _print(report: Report, *, repaired: bool, planned: bool) -> None:
    _some([f"{fault['where']}: {fault['what']}" for fault in report.faults])
    if repaired or planned:
        verb = "repaired" if repaired else "would repair"
        _some([f"{verb}: {act['where']}: {act['what']}" + ("  [LOST]" if act["loss"] else "") for act in report.actions])
    checked = f"checked {report.volumes} volumes, {report.files} files, {report.devices} devices"
    if not report.faults:
        click.echo(f"clean; {checked}")
    elif not (repaired or planned):
        click.echo(f"{len(report.faults)} faults; {checked}; `awsomefsd fsck --dry-run` says what a repair would do")
    else:
        _some([f"cannot be repaired: {fault['where']}: {fault['what']}" for fault in report.remaining])
        lost = sum(bool(act["loss"]) for act in report.actions)
        would = "are" if repaired else "would be"
        click.echo(f"{len(report.faults)} faults, {len(report.remaining)} {would} left, {lost} times something is lost; {checked}")


def _some(lines: list[str]) -> None:
    for line in lines[:SHOWN_MAX]:
        click.echo(line)
    if len(lines) > SHOWN_MAX:
        click.echo(f"... and {len(lines) - SHOWN_MAX} more (-o json shows all)")
