"""awsomefsd probe: does the daemon of this node answer?  For liveness probes: it asks the process here, never the cluster."""

from __future__ import annotations

import click

from awsomefsd.cli.main import Command, Session


@click.command(cls=Command)
@click.pass_obj
def probe(session: Session) -> None:
    """Exit 0 if this node's daemon answers, 1 if it does not.

    It says nothing about the cluster: a daemon without a quorum answers too.
    """
    with session.client() as client:
        client.probe()
