"""awsomefsd probe: check whether the daemon of this node answers.  For liveness probes: it asks the local process, never the cluster.

`--ready` is for readiness probes: a rolling upgrade that waits for it restarts one voter after the other, and never the majority.
"""

from __future__ import annotations

import click

from awsomefsd.base.errors import Unavailable
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.node.health.probes import not_ready


@click.command(cls=CliCommand)
@click.option(
    "--ready",
    is_flag=True,
    help="Also check that the metadata has a leader, that it hears this node if it is a voter, and that the keeper answers.",
)
@click.pass_obj
def probe(invocation: Invocation, ready: bool) -> None:
    """Check whether the daemon of this node answers.

    Exit status 0 if it answers, 1 if it does not.  Without --ready this says nothing about the cluster: a daemon without a quorum answers
    too.
    """
    with invocation.client() as client:
        client.probe()
        missing = not_ready(client.call("GetStatus")) if ready else ""
    if missing:
        raise Unavailable(f"not ready: {missing}")
