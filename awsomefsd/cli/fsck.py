"""awsomefsd fsck: every invariant of a stopped node.

Takes the lock on the state directory (so no daemon runs), brings the store up to the journal's end exactly as a start of the daemon would,
then reads: all rows through meta/check.py, and the superblock of each device.  Exit status 0 clean, 1 faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from awsomefsd.cli.main import ERROR, OK, Command, Session
from awsomefsd.cli.output import output_option, print_json

FAULTS_SHOWN_MAX = 200


@click.command(cls=Command)
@click.option("--no-replay", is_flag=True, help="Write nothing: check the store as it lies, without what only the journal has.")
@output_option
@click.pass_obj
def fsck(session: Session, no_replay: bool, form: str) -> int:
    """Check metadata and devices of a stopped node.

    The daemon must not run on this state directory.
    """
    from awsomefsd import node

    settings = session.settings
    identity = node.load(settings.state_dir)
    with node.StateLock(settings.state_dir, "fsck"):
        faults, counted = examine(settings.state_dir, identity, replay=not no_replay)
    if form == "json":
        print_json({"clean": not faults, "faults": faults, **counted})
    else:
        for fault in faults[:FAULTS_SHOWN_MAX]:
            click.echo(f"{fault['where']}: {fault['what']}")
        if len(faults) > FAULTS_SHOWN_MAX:
            click.echo(f"... and {len(faults) - FAULTS_SHOWN_MAX} more (-o json shows all)")
        checked = ", ".join(f"{value} {name}" for name, value in counted.items())
        click.echo(f"{len(faults)} faults; checked {checked}" if faults else f"clean; checked {checked}")
    return ERROR if faults else OK


def examine(state_dir: Path, identity: Any, *, replay: bool) -> tuple[list[dict[str, str]], dict[str, int]]:
    """(faults, what was looked at)."""
    from awsomefsd import devices
    from awsomefsd.errors import Error, NotFound
    from awsomefsd.io.devices import DeviceTable
    from awsomefsd.meta.check import check
    from awsomefsd.meta.machine import Machine
    from awsomefsd.meta.messages import Devices, GetDevices, GetVolumes, Volumes
    from awsomefsd.meta.queries import answer
    from awsomefsd.meta.replica import Replica
    from awsomefsd.meta.store import Store

    directory = state_dir / "meta"
    if not (directory / "store" / "data.mdb").exists():
        raise NotFound(f"{directory} holds no metadata yet; start the daemon once with `awsomefsd run`")
    if replay:
        replica = Replica.open_solo(directory, identity.cluster, identity.node, Machine)
        try:
            replica.commit()
        finally:
            replica.close()
    store = Store.open(directory / "store", readonly=True)
    try:
        faults = [{"kind": fault.kind, "where": fault.where, "what": fault.detail} for fault in check(store)]
        machine = Machine(store)
        known, volumes = answer(machine, GetDevices()), answer(machine, GetVolumes())
        assert isinstance(known, Devices) and isinstance(volumes, Volumes)
    finally:
        store.close()
    paths = DeviceTable(state_dir).paths()
    for device in known.devices:
        where = paths.get(device.uuid, "")
        try:
            if not where:
                raise Error("this node has no path for it; add it with `awsomefsd device add PATH`")
            devices.check(where, identity.cluster, device.uuid)
        except (Error, OSError) as err:
            faults.append({"kind": "device", "where": f"device {where or device.uuid}", "what": str(err)})
    return faults, {
        "volumes": len(volumes.volumes),
        "files": sum(volume.used_inodes for volume in volumes.volumes),
        "devices": len(known.devices),
    }
