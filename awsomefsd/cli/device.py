"""awsomefsd device add|ls|show|collect|recover; device_pool.py has scan|grow|drain|remove|identify."""

from __future__ import annotations

import os
from typing import Any

import click

from awsomefsd.cli.device_pool import drain, grow, identify, remove, scan
from awsomefsd.cli.device_recover import recover
from awsomefsd.cli.main import Group, Session
from awsomefsd.cli.output import message_dict, output_option, print_json
from awsomefsd.cli.tables import print_devices
from awsomefsd.errors import NotFound, WouldLoseData
from awsomefsd.sizes import format_bytes


@click.group(cls=Group)
def device() -> None:
    """Add, list, grow and remove storage devices; recover a cluster from them."""


for _command in (recover, scan, grow, drain, remove, identify):
    device.add_command(_command)


@device.command()
@click.argument("path", type=click.Path())
@click.option("--shared", is_flag=True, help="Other nodes see the same device (SAN, iSCSI, NVMe-oF).")
@click.option("--force", is_flag=True, help="Take it even if it holds something: all of that is lost.  Asks for the path once more.")
@click.option("--yes-destroy", metavar="PATH", default="", help="With --force, for scripts: the path once more instead of the question.")
@output_option
@click.pass_obj
def add(session: Session, path: str, shared: bool, force: bool, yes_destroy: str, form: str) -> None:
    """Take the block device (or file) PATH into the cluster.

    A device that holds a filesystem, a partition table or anything else known is refused with exit status 4, unless forced.
    """
    path = os.path.abspath(path)
    destroy = confirmed(path, yes_destroy) if force or yes_destroy else ""
    with session.client() as client:
        added = client.call("AddDevice", timeout_s=120, path=path, shared=shared, destroy=destroy)
    if form == "json":
        print_json(message_dict(added))
    else:
        click.echo(f"added {added.path} as device {added.device}: {added.segments} segments of {added.segment_bytes >> 20} MiB")


def confirmed(path: str, given: str) -> str:
    """The path, typed once more; raises WouldLoseData if it is another one."""
    if not given:
        click.echo(f"Everything on {path} will be lost.", err=True)
        given = click.prompt("Type the path of the device to go on", default="", show_default=False, err=True)
    if given != path:
        raise WouldLoseData(f"the confirmation {given!r} is not {path!r}; nothing was done")
    return path


@device.command()
@output_option
@click.pass_obj
def ls(session: Session, form: str) -> None:
    """List all devices."""
    with session.client() as client:
        devices = client.call("ListDevices").devices
    if form == "json":
        print_json([message_dict(found) for found in devices])
    else:
        print_devices(devices)


@device.command()
@click.argument("which")
@output_option
@click.pass_obj
def show(session: Session, which: str, form: str) -> None:
    """Show one device, by its path, number or uuid."""
    with session.client() as client:
        found = _find(client.call("ListDevices").devices, which)
    if form == "json":
        print_json(message_dict(found))
        return
    shown = message_dict(found)
    seen = shown.pop("seen")
    for name, value in shown.items():
        click.echo(f"{name:<16}{value}")
    for one in seen:
        where = f"at {one['path']}" if one["path"] else "not found"
        click.echo(f"{'seen by':<16}{one['name']} {where}: {one['state']} ({one['heard_ms_ago'] / 1_000:.1f} s ago)")


@device.command()
@click.argument("action", type=click.Choice(["start", "status", "stop"]))
@output_option
@click.pass_obj
def collect(session: Session, action: str, form: str) -> None:
    """Collect sparse segments: copy what lives in them together, so that whole segments become free.

    It starts by itself when space is low or much of it is dead.  `start` goes on as long as it gives anything; `stop` holds until `start`,
    or until the daemon is started again.
    """
    with session.client() as client:
        told = client.call("Collect", action="" if action == "status" else action)
    if form == "json":
        print_json(message_dict(told))
        return
    click.echo(f"{'state':<20}{told.state}")
    for name, value in sorted(told.figures.items()):
        click.echo(f"{name:<20}{format_bytes(value) if name.endswith('_bytes') else value}")
    if told.last_error:
        click.echo(f"{'last error':<20}{told.last_error}")


def _find(devices: Any, which: str) -> Any:
    for found in devices:
        if which in (found.path, str(found.device), found.uuid) or os.path.abspath(which) == found.path:
            return found
    known = ", ".join(found.path or found.uuid for found in devices) or "none"
    raise NotFound(f"there is no device {which} (devices: {known}); see `awsomefsd device ls`")
