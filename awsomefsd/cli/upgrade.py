"""awsomefsd upgrade: follow and finish the upgrade of a running cluster, node by node."""

from __future__ import annotations

from typing import Any

import click

from awsomefsd.base.log import printable
from awsomefsd.cli.main import CliCommand, CliGroup, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_json, say


@click.group(cls=CliGroup)
def upgrade() -> None:
    """Follow and finish a rolling upgrade.

    Install the new version on one node after the other; mounts stay in use.  The cluster keeps the feature level of the oldest node until
    `finalize`.  Before that every node may go back to the older version, afterwards none.
    """


@upgrade.command(cls=CliCommand)
@output_option
@click.pass_obj
def status(invocation: Invocation, form: str) -> None:
    """Show the feature level of the cluster, and the version and level of each node."""
    with invocation.client() as client:
        _show(client.call("GetUpgrade"), form)


@upgrade.command(cls=CliCommand)
@output_option
@click.pass_obj
def finalize(invocation: Invocation, form: str) -> None:
    """Raise the cluster to the highest level that every node knows.

    This cannot be undone: no node can go back to an older version.
    """
    with invocation.client() as client:
        _show(client.call("FinalizeUpgrade"), form)


def _show(found: Any, form: str) -> None:
    if form == "json":
        print_json(message_dict(found))
        return
    say(f"the cluster acts at level {found.level}; every node knows level {found.known}")
    for node in found.nodes:
        say(f"  {node.name}  version {printable(node.version or '?')}  level {node.level}")
    if found.known > found.level:
        say("next: `awsomefsd upgrade finalize`, when no node needs to go back to the older version")
