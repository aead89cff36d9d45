"""awsomefsd node: list, show, cordon, uncordon, drain and remove the nodes of the cluster."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.base.errors import NotFound
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_fields, print_json, print_table, say
from awsomefsd.cli.token import seconds

_DONE = {
    "cordon": "takes nothing new now",
    "uncordon": "takes new work again",
    "drain": "is drained: nothing is mounted on it, nothing lies on its devices alone",
    "remove": "is removed; it is refused everywhere from now on",
}


@click.group(cls=CliGroup)
def node() -> None:
    """List, cordon, drain and remove nodes.

    NODE is a name, a UUID, or the beginning of a UUID (at least 4 characters).
    """


@node.command()
@click.option("--removed", is_flag=True, help="List removed nodes too.")
@output_option
@click.pass_obj
def ls(invocation: Invocation, removed: bool, form: str) -> None:
    """List the nodes of the cluster."""
    with invocation.client() as client:
        found = client.call("ListNodes", removed=removed).nodes
    if form == "json":
        print_json([message_dict(row) for row in found])
        return
    rows = [
        [row.name, _state(row), row.role, _metadata(row), row.labels.get("zone", "-"), _age(row.joined_ms), _heard(row), row.version or "-",
         row.level, row.control or "-", row.node]
        for row in found
    ]  # fmt: skip
    columns = ["NAME", "STATUS", "ROLE", "METADATA", "ZONE", "AGE", "HEARD", "VERSION", "LEVEL", "ADDRESS", "NODE"]
    print_table(columns, rows, right=("LEVEL",), empty="no nodes")


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def show(invocation: Invocation, name: str, form: str) -> None:
    """Show the details of one node."""
    with invocation.client() as client:
        found = client.call("ListNodes", removed=True).nodes
    row = _pick(found, name)
    if form == "json":
        print_json(message_dict(row))
        return
    lag = "-" if not row.member else f"{row.lag} entries, heard {row.silent_ms / 1_000:.1f} s ago" if row.silent_ms >= 0 else "unknown"
    joined = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.joined_ms / 1_000))
    shown = {
        "name": row.name,
        "node": row.node,
        "status": _state(row),
        "role": row.role,
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "none",
        "joined": f"{joined} ({_age(row.joined_ms)} ago)",
        "heard": _heard(row),
        "version": f"{row.version or '-'}, knows level {row.level}",
        "control": row.control or "-",
        "metadata": row.metadata or "-",
        "carries": "yes" if row.carries or row.member else "no",
        "member": _metadata(row),
        "behind": lag,
        "issuer": row.issuer or "-",
    }
    print_fields(shown.items())


def _state(row: Any) -> str:
    """Returns the readiness and scheduling state of a node in one word, as kubectl prints them."""
    if row.state == "removed":
        return "removed"
    return row.readiness + (f",{row.state}" if row.state != "active" else "")


def _age(joined_ms: int) -> str:
    """Returns the age of a node, rounded as kubectl rounds it."""
    seconds = max(int(time.time() - joined_ms / 1_000), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _pick(found: Any, name: str) -> Any:
    for fits in (lambda row: row.node == name, lambda row: row.name == name, lambda row: len(name) >= 4 and row.node.startswith(name)):
        rows = [row for row in found if fits(row)]
        if rows:
            return rows[-1]
    raise NotFound(f"there is no node {name!r}; see `awsomefsd node ls`")


def _metadata(row: Any) -> str:
    return "leader" if row.leader else row.member or "-"


def _heard(row: Any) -> str:
    return "-" if row.heard_ms_ago < 0 else f"{row.heard_ms_ago / 1_000:.1f} s ago"


def _act(invocation: Invocation, action: str, name: str, form: str, force: bool = False) -> None:
    with invocation.client() as client:
        changed = client.call("SetNode", node=name, action=action, force=force)
    if form == "json":
        print_json(message_dict(changed))
    else:
        say(f"node {changed.name} ({changed.node}) {_DONE[action]}")


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def cordon(invocation: Invocation, name: str, form: str) -> None:
    """Stop giving the node new mounts and new metadata."""
    _act(invocation, "cordon", name, form)


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def uncordon(invocation: Invocation, name: str, form: str) -> None:
    """Let the node take new mounts and metadata again."""
    _act(invocation, "uncordon", name, form)


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def drain(invocation: Invocation, name: str, form: str) -> None:
    """Cordon the node, and check that it can be removed.

    Exit status 4 while something is mounted on it, or data lies only on its devices: unmount there, copy or delete those files, and run
    this again.  The node stays draining, also then, until `awsomefsd node uncordon`.
    """
    _act(invocation, "drain", name, form)


@node.command(hidden=True)
@click.argument("name", metavar="NODE")
@click.option("--for", "length", default="", help="For how long: a number with s, m, h or d, 7d at most.")
@click.option("--end", "ends", is_flag=True, help="It is over.")
@output_option
@click.pass_obj
def maintenance(invocation: Invocation, name: str, length: str, ends: bool, form: str) -> None:
    """Announce that the node will be away for some time, such as --for 1h.

    Until then nothing is copied because its devices of a pool are away.  That ends by itself; the devices are lost some minutes later, as
    those of any node, if they are not back.
    """
    if bool(length) == ends:
        raise click.UsageError("say --for how long, or --end")
    for_ms = 1_000 * seconds(length, "--for") if length else 0
    with invocation.client() as client:
        changed = client.call("SetNode", node=name, action="maintenance", for_ms=for_ms)
    if form == "json":
        print_json(message_dict(changed))
    elif ends:
        say(f"node {changed.name} ({changed.node}) is not under maintenance any more")
    else:
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed.maintenance_until_ms / 1_000))
        say(f"node {changed.name} ({changed.node}) is under maintenance until {until}: nothing is copied because it is away")


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--force", is_flag=True, help="Remove it even if data or mounts on it are lost.")
@output_option
@click.pass_obj
def remove(invocation: Invocation, name: str, force: bool, form: str) -> None:
    """Remove the node from the cluster.

    It is refused everywhere from then on.  Exit status 4 while data or the majority of the metadata would be lost.
    """
    _act(invocation, "remove", name, form, force)
