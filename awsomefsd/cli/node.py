"""awsomefsd node ls|show|cordon|uncordon|drain|remove."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.cli.main import Group, Session
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table
from awsomefsd.errors import NotFound

_DONE = {
    "cordon": "takes nothing new now",
    "uncordon": "takes new work again",
    "drain": "is drained: nothing is mounted on it, nothing lies on its devices alone",
    "remove": "is removed; it is refused everywhere from now on",
}


@click.group(cls=Group)
def node() -> None:
    """List, cordon, drain and remove nodes.  NODE is a name, a UUID, or the beginning of one."""


@node.command()
@click.option("--removed", is_flag=True, help="Also those that were removed.")
@output_option
@click.pass_obj
def ls(session: Session, removed: bool, form: str) -> None:
    """List the nodes of the cluster."""
    with session.client() as client:
        found = client.call("ListNodes", removed=removed).nodes
    if form == "json":
        print_json([message_dict(row) for row in found])
        return
    rows = [
        [row.name, row.node, row.role, row.state, _metadata(row), row.control or "-", _heard(row), row.version or "-"] for row in found
    ]  # fmt: skip
    print_table(["NAME", "NODE", "ROLE", "STATE", "METADATA", "ADDRESS", "HEARD", "VERSION"], rows, empty="no nodes")


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def show(session: Session, name: str, form: str) -> None:
    """Show everything about one node."""
    with session.client() as client:
        found = client.call("ListNodes", removed=True).nodes
    row = _pick(found, name)
    if form == "json":
        print_json(message_dict(row))
        return
    shown = {
        **message_dict(row),
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(row.labels.items())) or "none",
        "joined_ms": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.joined_ms / 1_000)),
        "heard_ms_ago": _heard(row),
    }
    names = {"joined_ms": "joined", "heard_ms_ago": "heard"}
    for key, value in shown.items():
        click.echo(f"{names.get(key, key):<10}{value}")


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


def _act(session: Session, action: str, name: str, form: str, force: bool = False) -> None:
    with session.client() as client:
        changed = client.call("SetNode", node=name, action=action, force=force)
    if form == "json":
        print_json(message_dict(changed))
    else:
        click.echo(f"node {changed.name} ({changed.node}) {_DONE[action]}")


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def cordon(session: Session, name: str, form: str) -> None:
    """The node takes nothing new: no mounts, no metadata."""
    _act(session, "cordon", name, form)


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def uncordon(session: Session, name: str, form: str) -> None:
    """The node takes new work again."""
    _act(session, "uncordon", name, form)


@node.command()
@click.argument("name", metavar="NODE")
@output_option
@click.pass_obj
def drain(session: Session, name: str, form: str) -> None:
    """The node takes nothing new, and is looked at: exit status 4 while something is mounted on it or lies on its devices alone."""
    _act(session, "drain", name, form)


@node.command()
@click.argument("name", metavar="NODE")
@click.option("--force", is_flag=True, help="Also if data or mounts on it are lost.")
@output_option
@click.pass_obj
def remove(session: Session, name: str, force: bool, form: str) -> None:
    """The node is no member any more and is refused everywhere; exit status 4 while data or the metadata's majority would be lost."""
    _act(session, "remove", name, form, force)
