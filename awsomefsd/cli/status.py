"""awsomefsd status: show the state of this node and its cluster.  Exit status 3 if something needs attention."""

from __future__ import annotations

from typing import Any

import click

from awsomefsd.base.log import printable
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import DEGRADED, OK, CliCommand, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_fields, print_json, print_table, say
from awsomefsd.cli.tables import print_devices, print_mounts, print_power_cuts, print_volumes
from awsomefsd.node.health.codes import CODES

_FIGURES = (
    "role", "leader", "term", "applied", "last_index", "first_index", "sessions", "store_map_bytes", "store_map_use_percent",
    "store_commit_ms_max",
)  # fmt: skip


_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command(cls=CliCommand)
@click.option("--verbose", "-v", is_flag=True, help="Show all figures of the metadata service, and what a power cut may take.")
@click.option("--codes", is_flag=True, help="List all health codes and their fixes instead; needs no daemon.")
@output_option
@click.pass_obj
def status(invocation: Invocation, verbose: bool, codes: bool, form: str) -> int:
    """Show the state of this node and its cluster.

    Prints health findings with their fixes, devices, volumes and mounts.  Exit status 3 if something needs attention.
    """
    if codes:
        _print_codes(form)
        return OK
    with invocation.client() as client:
        reply = client.call("GetStatus")
    if form == "json":
        print_json({**message_dict(reply), "degraded": bool(reply.reasons)})
    else:
        _print(reply, verbose)
    return DEGRADED if reply.reasons else OK


def _print_codes(form: str) -> None:
    if form == "json":
        print_json([code._asdict() for code in CODES.values()])
        return
    rows = [[code.name, code.severity, code.says, code.fix.replace("`", "")] for code in CODES.values()]
    print_table(["CODE", "SEVERITY", "WHAT", "FIX"], rows)


def _print(reply: Any, verbose: bool) -> None:
    if not reply.node:  # a daemon without an identity (daemon/without_identity.py)
        for reason in reply.reasons:
            say(reason)
        return
    health = click.style("degraded", fg="yellow") if reply.reasons else click.style("ok", fg="green")
    say(f"{health}   node {reply.node} of cluster {reply.cluster}, site {reply.site}, version {reply.version}")
    keeper = f"pid {reply.keeper_pid}, version {reply.keeper_version}" if reply.keeper else "does not answer"
    memory = f"{format_bytes(reply.memory_bytes)} of {format_bytes(reply.memory_bytes_max)}"
    say(f"     daemon pid {reply.pid} up {_duration(reply.uptime_s)}, memory {memory}; keeper {keeper}")
    for server in reply.segment_servers:
        _print_segment_server(server)
    _print_figures(dict(reply.figures), verbose)
    _print_cluster(reply.metadata)
    for one in reply.health:
        mark = " i" if one.severity == "info" else " !"
        say(f" {mark}  {one.code}  {printable(one.what)}", fg=_COLOURS.get(one.severity), indent=5)
        say(f"       fix: {one.fix}")
    say()
    print_devices(reply.devices)
    say()
    print_volumes(reply.volumes)
    say()
    print_mounts(reply.mounts)
    if verbose:
        print_power_cuts(reply.mounts)
    for conflict in reply.conflicts:
        say(f"conflict: {conflict.path} ({format_bytes(conflict.bytes)})")


def _print_segment_server(server: Any) -> None:
    if not server.pid:
        say(f"     segment server does not answer for {_duration(server.silent_s)}: {server.trouble}")
        return
    where = f"at {server.address}" if server.address else "not reached by other nodes"
    trouble = f"; {server.trouble}" if server.trouble else ""
    say(f"     segment server pid {server.pid} {where}, {_count(server.figures['segment_connections'], 'connection')}{trouble}")


def _print_figures(figures: dict[str, str], verbose: bool) -> None:
    """The figures that most people want, in one line; with `verbose` all of them, one a line."""
    if not verbose:
        say("     metadata " + ", ".join(f"{name} {figures[name]}" for name in _FIGURES if name in figures))
        return
    say("     metadata")
    print_fields((f"       {name}", figures[name]) for name in sorted(figures))


def _print_cluster(metadata: Any) -> None:
    if metadata.leader:
        heard = f", {metadata.voters_heard} of {_count(metadata.voters, 'voter')} heard" if metadata.voters_heard else ""
        where = "" if metadata.carries else "; this node carries none"
        name = f"{metadata.leader_name} ({metadata.leader})" if metadata.leader_name != metadata.leader else metadata.leader
        say(f"     led by node {name}, term {metadata.term}, level {metadata.level}{heard}{where}")
    else:
        last = metadata.last_leader_name or "none"
        say(f"     no leader since {_duration(metadata.without_leader_s)} ago; the last known: {last}")
    if metadata.failures_survived > 0:
        say(f"     {_count(metadata.failures_survived, 'more voter')} can fail, and the metadata goes on")
    elif metadata.failures_survived == 0 and metadata.voters > 1:
        say("     the metadata stops when one more voter fails")
    for one in metadata.members:
        if not one.leader:
            since = f"heard {one.silent_ms / 1_000:.1f} s ago" if one.heard else f"not heard for {one.silent_ms / 1_000:.0f} s"
            say(f"     {one.member} {one.name} is {one.lag} entries behind, {since}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    days, hours, minutes = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"
