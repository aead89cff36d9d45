"""awsomefsd device: add, list, scan, grow, drain, identify and remove devices; recover a cluster from them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import asdict

from awsomefsd.base.errors import NotFound, WouldLoseData
from awsomefsd.base.sizes import format_bytes
from awsomefsd.base.types import DEVICE_CLASSES
from awsomefsd.cli.main import ERROR, OK, CliGroup, Invocation
from awsomefsd.cli.output import (
    SIZE,
    counted,
    message_dict,
    output_option,
    print_fields,
    print_json,
    print_table,
    readable,
    say,
    typed_again,
)
from awsomefsd.cli.tables import print_devices
from awsomefsd.cli.waiting import LongWork

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient

DRAIN_POLL_S = 1.0
SLOW_S = 300.0


@click.group(cls=CliGroup)
def device() -> None:
    """Add, list, grow, drain, remove and recover storage devices."""


@device.command()
@click.argument("path", type=click.Path())
@click.option("--shared", is_flag=True, help="Other nodes see the same device too (SAN, iSCSI, NVMe-oF).")
@click.option("--force", is_flag=True, help="Use the device even if it holds data: all of it is lost.  Asks for the path again.")
@click.option("--yes-destroy", metavar="PATH", default="", help="For scripts: the path again, instead of --force and the question.")
@click.option("--pool", is_flag=True, hidden=True, help="The device joins the pool of node-local storage.")
@click.option("--class", "device_class", type=click.Choice(DEVICE_CLASSES), default=None, hidden=True, help="What the device is.")
@click.option("--segment-size", type=SIZE, default=0, hidden=True, help="Of the pool's first device, such as 64M.")
@output_option
@click.pass_obj
def add(
    invocation: Invocation, path: str, shared: bool, force: bool, yes_destroy: str, pool: bool, device_class: str | None, segment_size: int,
    form: str,
) -> None:  # fmt: skip
    """Add the block device or file PATH to the cluster.

    A device that holds a filesystem, a partition table or other data of a known kind is refused with exit status 4 unless --force is given.
    """
    if not pool and (device_class or segment_size):
        raise click.UsageError("--class and --segment-size are for devices of a pool; add --pool, or leave them out")
    path = os.path.abspath(path)
    destroy = confirmed(path, yes_destroy) if force or yes_destroy else ""
    with invocation.client() as client:
        added = client.call(
            "AddDevice", timeout_s=120, path=path, shared=shared, destroy=destroy, pool=int(pool), device_class=device_class or "",
            segment_bytes=segment_size,
        )  # fmt: skip
    if form == "json":
        print_json(message_dict(added))
    else:
        say(f"added {added.path} as device {added.device}: {counted(added.segments, 'segment')} of {added.segment_bytes >> 20} MiB")


def confirmed(path: str, given: str) -> str:
    """Returns the path if the user typed it again, in `given` or at a prompt.  Raises WouldLoseData for any other text."""
    if not given:
        click.echo(f"Everything on {path} will be lost.", err=True)
        given = typed_again("the path of the device", "--yes-destroy")
    if given != path:
        raise WouldLoseData(f"the confirmation {given!r} is not {path!r}; nothing was done")
    return path


@device.command()
@output_option
@click.pass_obj
def ls(invocation: Invocation, form: str) -> None:
    """List all devices of the cluster."""
    with invocation.client() as client:
        devices = client.call("ListDevices").devices
    if form == "json":
        print_json([message_dict(found) for found in devices])
    else:
        print_devices(devices)


@device.command()
@click.argument("which", metavar="DEVICE")
@output_option
@click.pass_obj
def show(invocation: Invocation, which: str, form: str) -> None:
    """Show the details of one DEVICE: its path, number or UUID."""
    with invocation.client() as client:
        found = _find(client.call("ListDevices").devices, which)
    if form == "json":
        print_json(message_dict(found))
        return
    shown = message_dict(found)
    seen, served = shown.pop("seen"), shown.pop("served")
    fields = readable(shown)
    for one in seen:
        where = f"at {one['path']}" if one["path"] else "not found"
        fields.append(("seen by", f"{one['name']} {where}: {one['state']} ({one['heard_ms_ago'] / 1_000:.1f} s ago)"))
    for said in served:
        fields += served_fields(said)
    print_fields(fields)


def served_fields(said: dict[str, Any]) -> list[tuple[str, object]]:
    """Returns what this node's segment server says of a device, for people."""
    fields: list[tuple[str, object]] = [("bays", f"{said['bays']}, {said['bays_open']} being written to")]
    for one in said["copying"]:
        done, end = format_bytes(one["done_bytes"]), format_bytes(one["end_bytes"])
        fields.append(("copying", f"segment {one['segment']} into bay {one['index']}: {done} of {end}"))
    for one in said["work"]:
        much = f", {format_bytes(one['bytes'])}" if one["bytes"] else ""
        kinds = "flushes" if one["kind"] == "flush" else f"{one['kind']}s"
        fields.append((kinds, f"{one['done']}{much}, usually {one['usual_ms']:.1f} ms, {counted(one['errors'], 'error')}"))
    return fields


@device.command()
@click.argument("action", type=click.Choice(["start", "status", "stop"]))
@output_option
@click.pass_obj
def collect(invocation: Invocation, action: str, form: str) -> None:
    """Collect sparse segments, so that whole segments become free.

    The collector copies the live data of sparse segments together.  It starts by itself when space is low or much of it is dead.  `start`
    runs it as long as it frees space; `stop` stops it until `start`, or until the daemon is restarted; `status` shows its figures.
    """
    with invocation.client() as client:
        report = client.call("Collect", action="" if action == "status" else action)
    if form == "json":
        print_json(message_dict(report))
        return
    figures = [(name, format_bytes(value) if name.endswith("_bytes") else value) for name, value in sorted(report.figures.items())]
    print_fields([("state", report.state), *figures, *([("last error", report.last_error)] if report.last_error else [])])


@device.command()
@output_option
@click.pass_obj
def scan(invocation: Invocation, form: str) -> None:
    """Search all block devices of this node for devices of the cluster, whatever their path."""
    with invocation.client() as client:
        found = client.call("ScanDevices", timeout_s=SLOW_S).devices
    if form == "json":
        print_json([message_dict(one) for one in found])
        return
    rows = [[one.path, format_bytes(one.bytes), one.uuid or "-", one.verdict] for one in found]
    print_table(
        ["PATH", "SIZE", "DEVICE", "STATE"], rows, right=("SIZE",), empty="no block device of this node has a superblock of awsomefsd"
    )


@device.command()
@click.argument("which", metavar="DEVICE")
@output_option
@click.pass_obj
def grow(invocation: Invocation, which: str, form: str) -> None:
    """Use the added space of a DEVICE that has become larger.

    The device stays in use meanwhile.
    """
    with invocation.client() as client:
        grown = client.call("GrowDevice", timeout_s=SLOW_S, device=which)
    if form == "json":
        print_json(message_dict(grown))
    else:
        say(f"device {grown.device} has {counted(grown.segments, 'segment')} now, {format_bytes(grown.bytes)}")


@device.command()
@click.argument("which", metavar="DEVICE")
@click.option("--undo", is_flag=True, help="End the drain and use the device again.")
@click.option("--wait", "waits", is_flag=True, help="Wait until the device is empty.")
@output_option
@click.pass_obj
def drain(invocation: Invocation, which: str, undo: bool, waits: bool, form: str) -> None:
    """Move all data from DEVICE to other devices, and put nothing new on it.

    The data of a shared device moves to other shared devices, that of a local device to other devices of the same node.  The command is
    refused if those have no room.  The device stays drained until --undo or `device remove`.  Without --wait the command returns at once;
    `device show` prints how many segments are in use.
    """
    with invocation.client() as client:
        report = client.call("DrainDevice", timeout_s=SLOW_S, device=which, undo=undo)
        if waits and not undo:
            report = _emptied(client, report)
    if form == "json":
        print_json(message_dict(report))
    elif undo:
        say(f"device {report.device.device} is used again")
    else:
        are = "is" if report.segments_used == 1 else "are"
        left = f"{counted(report.segments_used, 'segment')} {are} in use, {format_bytes(report.live_bytes)} live in them"
        say(f"device {report.device.device} takes nothing new; {left if report.segments_used else 'it is empty'}")
        if report.segments_standing:
            say(_standing(report))


def _emptied(client: AdminClient, report: Any) -> Any:
    """Waits until the device is empty, and returns the last report.

    What keeps the drain from going on is said on standard error, once for each reason that is there at two looks in a row: bays that were
    freed a moment ago are trimmed within seconds.
    """
    said = before = ""
    with LongWork("draining") as progress:
        while report.segments_used:
            progress.text = f"{counted(report.segments_used, 'segment')} to move, {format_bytes(report.live_bytes)} live"
            if report.why == before and report.why != said:
                said = report.why
                if said:
                    click.echo(f"{_standing(report)}; the command goes on waiting", err=True)
            before = report.why
            time.sleep(DRAIN_POLL_S)
            report = client.call("DrainDevice", timeout_s=SLOW_S, device=str(report.device.device), look=True)
    return report


def _standing(report: Any) -> str:
    """Returns why the drain of a device does not go on, in words."""
    return f"{counted(report.segments_standing, 'segment')} cannot leave device {report.device.device} now: {report.why}"


@device.command()
@click.argument("which", metavar="DEVICE")
@click.pass_obj
def remove(invocation: Invocation, which: str) -> None:
    """Remove an empty, drained DEVICE from the cluster and wipe its superblock.

    Exit status 4 while anything is on it.
    """
    with invocation.client() as client:
        say(client.call("RemoveDevice", timeout_s=SLOW_S, device=which).done)


@device.command()
@click.argument("which", metavar="DEVICE")
@output_option
@click.pass_obj
def identify(invocation: Invocation, which: str, form: str) -> None:
    """Show which piece of hardware DEVICE is.

    Prints its paths, names, serial number and superblock, and the nodes that see it.
    """
    with invocation.client() as client:
        facts = client.call("IdentifyDevice", timeout_s=SLOW_S, device=which).facts
    if form == "json":
        print_json([message_dict(fact) for fact in facts])
        return
    print_fields((fact.name, fact.value) for fact in facts)


@device.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--dry-run", is_flag=True, help="Print what would be recovered; write nothing.")
@click.option("--in-place", is_flag=True, help="Repair the damaged metadata of this state directory; the damaged files are kept beside it.")
@click.option("--confirm-nobody-writes", is_flag=True, help="Confirm that no process on any machine can still write to these devices.")
@output_option
@click.pass_obj
def recover(invocation: Invocation, paths: tuple[str, ...], dry_run: bool, in_place: bool, confirm_nobody_writes: bool, form: str) -> int:
    """Rebuild a cluster of one node from its devices when its state directory is lost.

    PATHS are the devices of the cluster.  Stop every daemon first.  Data that was fsynced after the tail of the last checkpoint is lost:
    about the last second.
    """
    from awsomefsd.recovery.device_recover import recover as recover_fresh
    from awsomefsd.recovery.device_recover import recover_in_place

    proof = "the operator confirmed that nobody writes" if confirm_nobody_writes else ""
    work = recover_in_place if in_place else recover_fresh
    with LongWork("reading the devices"):
        report = work(invocation.settings.state_dir, list(paths), proof, dry_run=dry_run)
    if form == "json":
        print_json(asdict(report))
    else:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.time_ns // 1_000_000_000))
        verb = "recovered" if report.done else "would recover"
        say(f"{verb} cluster {report.cluster} up to entry {report.index} (term {report.term}) from {report.source}, written {when}")
        for missing in report.missing_devices:
            say(f"device {missing} was not given: add it with `awsomefsd device add PATH` before its files are read")
        if report.done and not report.checkpointed:
            say("the device had no room for a checkpoint of the recovered state; the daemon tries again")
        for fault in report.faults:
            say(fault)
        if report.done:
            found = f"{counted(len(report.faults), 'fault')}, see above; do not go on without help"
            say(found if report.faults else "the state is sound")
    return ERROR if report.faults else OK


def _find(devices: Any, which: str) -> Any:
    for found in devices:
        if which in (found.path, str(found.device), found.uuid) or os.path.abspath(which) == found.path:
            return found
    known = ", ".join(found.path or found.uuid for found in devices) or "none"
    raise NotFound(f"there is no device {which} (devices: {known}); see `awsomefsd device ls`")
