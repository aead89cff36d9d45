"""awsomefsd status: how this node is.  Exit status 3 when something needs an operator."""

from __future__ import annotations

from typing import Any

import click

from awsomefsd.cli.main import DEGRADED, OK, Command, Session
from awsomefsd.cli.output import message_dict, output_option, print_json
from awsomefsd.cli.tables import print_devices, print_mounts, print_volumes
from awsomefsd.sizes import format_bytes

_FIGURES = (
    "role", "leader", "term", "applied", "last_index", "first_index", "sessions", "store_map_bytes", "store_map_use_percent",
    "store_commit_ms_max",
)  # fmt: skip


@click.command(cls=Command)
@click.option("--verbose", "-v", is_flag=True, help="All figures of the metadata service.")
@output_option
@click.pass_obj
def status(session: Session, verbose: bool, form: str) -> int:
    """Show how this node is; exit status 3 if something needs you."""
    with session.client() as client:
        reply = client.call("GetStatus")
    if form == "json":
        print_json({**message_dict(reply), "degraded": bool(reply.reasons)})
    else:
        _print(reply, verbose)
    return DEGRADED if reply.reasons else OK


def _print(reply: Any, verbose: bool) -> None:
    if not reply.node:  # a daemon without an identity (cluster/waiting.py)
        for reason in reply.reasons:
            click.echo(reason)
        return
    health = click.style("degraded", fg="yellow") if reply.reasons else click.style("ok", fg="green")
    click.echo(f"{health}   node {reply.node} of cluster {reply.cluster}, site {reply.site}, version {reply.version}")
    keeper = f"pid {reply.keeper_pid}" if reply.keeper else "does not answer"
    memory = f"{format_bytes(reply.memory_bytes)} of {format_bytes(reply.memory_bytes_max)}"
    click.echo(f"     daemon pid {reply.pid} up {_duration(reply.uptime_s)}, memory {memory}; keeper {keeper}")
    figures = dict(reply.figures)
    shown = sorted(figures) if verbose else [name for name in _FIGURES if name in figures]
    click.echo("     metadata " + ", ".join(f"{name} {figures[name]}" for name in shown))
    if figures.get("role", "leader") != "leader":
        leader = f"node {figures['leader']}" if figures.get("leader") else "nobody now"
        click.echo(f"     the metadata is led by {leader}; devices and volumes are shown there")
    for name in sorted(name for name in figures if name.startswith("lag_")):
        click.echo(f"     voter {name.removeprefix('lag_')} is {figures[name]} entries behind")
    for reason in reply.reasons:
        click.echo(click.style(f"  !  {reason}", fg="yellow"))
    click.echo("")
    print_devices(reply.devices)
    click.echo("")
    print_volumes(reply.volumes)
    click.echo("")
    print_mounts(reply.mounts)
    for conflict in reply.conflicts:
        click.echo(f"kept aside: {conflict.path} ({format_bytes(conflict.bytes)})")


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
