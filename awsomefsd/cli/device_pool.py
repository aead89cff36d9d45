"""awsomefsd device scan|grow|drain|remove|identify."""

from __future__ import annotations

import time

import click

from awsomefsd.cli.main import Command, Session
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table
from awsomefsd.sizes import format_bytes

DRAIN_LOOK_S = 1.0
SLOW_S = 300.0


@click.command(cls=Command)
@output_option
@click.pass_obj
def scan(session: Session, form: str) -> None:
    """Look at all block devices of this node for devices of the cluster, whatever their path."""
    with session.client() as client:
        found = client.call("ScanDevices", timeout_s=SLOW_S).devices
    if form == "json":
        print_json([message_dict(one) for one in found])
        return
    rows = [[one.path, format_bytes(one.bytes), one.uuid or "-", one.verdict] for one in found]
    print_table(["PATH", "SIZE", "DEVICE", "STATE"], rows, right=("SIZE",), empty="no block device here has a superblock of awsomefsd")


@click.command(cls=Command)
@click.argument("device")
@output_option
@click.pass_obj
def grow(session: Session, device: str, form: str) -> None:
    """Use the new room of a DEVICE that has become larger.  It stays in use meanwhile."""
    with session.client() as client:
        grown = client.call("GrowDevice", timeout_s=SLOW_S, device=device)
    if form == "json":
        print_json(message_dict(grown))
    else:
        click.echo(f"device {grown.device} has {grown.segments} segments now, {format_bytes(grown.bytes)}")


@click.command(cls=Command)
@click.argument("device")
@click.option("--undo", is_flag=True, help="Use it again.")
@click.option("--wait", "waits", is_flag=True, help="Until it is empty.")
@output_option
@click.pass_obj
def drain(session: Session, device: str, undo: bool, waits: bool, form: str) -> None:
    """Put nothing new on DEVICE, and move what is there to others of its kind.  It stays so until --undo or `device remove`.

    Refused where the others have no room.  Without --wait it returns at once; `device show` says how many segments are in use.
    """
    with session.client() as client:
        told = client.call("DrainDevice", timeout_s=SLOW_S, device=device, undo=undo)
        while waits and not undo and told.segments_used:
            time.sleep(DRAIN_LOOK_S)
            told = client.call("DrainDevice", timeout_s=SLOW_S, device=str(told.device.device), look=True)
    if form == "json":
        print_json(message_dict(told))
    elif undo:
        click.echo(f"device {told.device.device} is used again")
    else:
        left = f"{told.segments_used} segments are in use, {format_bytes(told.live_bytes)} live in them"
        click.echo(f"device {told.device.device} takes nothing new; {left if told.segments_used else 'it is empty'}")


@click.command(cls=Command)
@click.argument("device")
@click.pass_obj
def remove(session: Session, device: str) -> None:
    """Take an empty, drained DEVICE out of the pool and wipe its superblock; exit status 4 while anything is on it."""
    with session.client() as client:
        click.echo(client.call("RemoveDevice", timeout_s=SLOW_S, device=device).done)


@click.command(cls=Command)
@click.argument("device")
@output_option
@click.pass_obj
def identify(session: Session, device: str, form: str) -> None:
    """Say which piece of hardware DEVICE is: paths, names, serial number, superblock, and who sees it."""
    with session.client() as client:
        facts = client.call("IdentifyDevice", timeout_s=SLOW_S, device=device).facts
    if form == "json":
        print_json([message_dict(fact) for fact in facts])
        return
    width = max((len(fact.name) for fact in facts), default=0) + 2
    for fact in facts:
        click.echo(f"{fact.name:<{width}}{fact.value}")
