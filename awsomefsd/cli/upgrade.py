"""awsomefsd upgrade status|finalize: exchanging the builds of a running cluster, node by node."""

from __future__ import annotations

from typing import Any

import click

from awsomefsd.cli.main import Command, Group, Session
from awsomefsd.cli.output import message_dict, output_option, print_json


@click.group(cls=Group)
def upgrade() -> None:
    """Follow and finish a rolling upgrade.

    Exchange the program on one node after the other; mounts go on.  The cluster acts as the oldest of them does until `finalize`.  Before
    that every node may go back to the older build, afterwards none.
    """


@upgrade.command(cls=Command)
@output_option
@click.pass_obj
def status(session: Session, form: str) -> None:
    """Show at which level the cluster acts, and what each node knows."""
    with session.client() as client:
        _show(client.call("GetUpgrade"), form)


@upgrade.command(cls=Command)
@output_option
@click.pass_obj
def finalize(session: Session, form: str) -> None:
    """Let the cluster act at the highest level that every node knows.  There is no way back."""
    with session.client() as client:
        _show(client.call("FinalizeUpgrade"), form)


def _show(found: Any, form: str) -> None:
    if form == "json":
        print_json(message_dict(found))
        return
    click.echo(f"the cluster acts at level {found.level}; every node knows level {found.known}")
    for node in found.nodes:
        click.echo(f"  {node.name}  version {node.version or '?'}  level {node.level}")
    if found.known > found.level:
        click.echo("next: `awsomefsd upgrade finalize`, when no node shall go back to the older build")
