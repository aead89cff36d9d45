"""awsomefsd fsck: check a stopped node, and repair it.

It takes the lock on the state directory, so no daemon runs meanwhile.  The work is in awsomefsd/recovery/fsck.py; this module prints it and
returns the exit status of fsck(8): 0 no faults, 1 faults were found and repaired, 4 faults are left, 8 the check could not be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from awsomefsd.base.errors import Error, NotFound
from awsomefsd.base.log import printable
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import counted, output_option, print_json, say
from awsomefsd.cli.waiting import LongWork

if TYPE_CHECKING:
    from awsomefsd.recovery.fsck import FsckReport

SHOWN_MAX = 200
CLEAN, REPAIRED, FAULTS_LEFT, NOT_DONE = 0, 1, 4, 8


@click.command(cls=CliCommand)
@click.option("--repair", is_flag=True, help="Repair the faults.  Lost data is named in the output; it is never made up.")
@click.option("--dry-run", is_flag=True, help="Print what --repair would do.  Writes nothing but the replay of the journal.")
@click.option("--no-replay", is_flag=True, help="Check the store as it is, without the entries that only the journal has.")
@output_option
@click.pass_obj
def fsck(invocation: Invocation, repair: bool, dry_run: bool, no_replay: bool, form: str) -> int:
    """Check and repair the metadata and devices of a stopped node.

    Stop the daemon first; the keeper and mounts may stay, their requests wait.  Copy the state directory before a repair.

    A repair moves files without a name to lost+found in the root of their volume.  Lost bytes read as an I/O error, never as zeros, until
    they are overwritten.

    \b
    Exit status:
      0  no faults
      1  faults were found, and all of them are repaired
      4  faults are left (without --repair, with --dry-run, or because they cannot be repaired)
      8  the check could not be done (the daemon runs, nothing to check, no permission)
    """
    from awsomefsd.base import identity
    from awsomefsd.recovery.fsck import Fsck

    if no_replay and repair and not dry_run:
        raise click.UsageError("--repair needs the journal: leave --no-replay out, or add --dry-run")
    try:
        settings = invocation.settings
        node = identity.load(settings.state_dir)
        if not (settings.state_dir / "meta" / "store" / "data.mdb").exists():
            raise NotFound(f"{settings.state_dir}/meta holds no metadata yet; start the daemon once with `awsomefsd run`")
        voters = bool(settings.metadata.voters)
        with identity.StateLock(settings.state_dir, "fsck"), LongWork("checking"):
            report = Fsck(settings.state_dir, node, replay=not no_replay, repair=repair, dry_run=dry_run, voters=voters).run()
    except (Error, OSError) as err:
        words = f"{err.filename}: {err.strerror}" if isinstance(err, OSError) and err.filename else str(err)
        click.echo(f"awsomefsd: {printable(words)}", err=True)
        return NOT_DONE
    left = report.remaining if repair and not dry_run else report.faults
    if form == "json":
        print_json({"clean": not left, **{name: getattr(report, name) for name in report.__struct_fields__}})
    else:
        _print(report, repaired=repair and not dry_run, planned=dry_run)
    if not report.faults:
        return CLEAN
    return FAULTS_LEFT if left else REPAIRED


def _print(report: FsckReport, *, repaired: bool, planned: bool) -> None:
    _some([f"{fault['where']}: {fault['what']}" for fault in report.faults])
    if repaired or planned:
        verb = "repaired" if repaired else "would repair"
        _some([f"{verb}: {act['where']}: {act['what']}" + ("  [LOST]" if act["loss"] else "") for act in report.actions])
    parts = (report.volumes, "volume"), (report.files, "file"), (report.devices, "device")
    checked = "checked " + ", ".join(counted(number, noun) for number, noun in parts)
    if not report.faults:
        say(f"clean; {checked}")
    elif not (repaired or planned):
        say(f"{counted(len(report.faults), 'fault')}; {checked}; `awsomefsd fsck --dry-run` says what a repair would do")
    else:
        _some([f"cannot be repaired: {fault['where']}: {fault['what']}" for fault in report.remaining])
        lost = sum(bool(act["loss"]) for act in report.actions)
        would = "are" if repaired else "would be"
        found = f"{counted(len(report.faults), 'fault')}, {len(report.remaining)} {would} left"
        say(f"{found}, {counted(lost, 'time')} something is lost; {checked}")


def _some(lines: list[str]) -> None:
    for line in lines[:SHOWN_MAX]:
        say(printable(line))
    if len(lines) > SHOWN_MAX:
        say(f"... and {len(lines) - SHOWN_MAX} more (-o json shows all)")
