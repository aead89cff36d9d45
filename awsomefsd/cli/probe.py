"""awsomefsd probe: does the daemon of this node answer?  For liveness probes: it asks the process here, never the cluster.

`--ready` is for readiness: a rolling upgrade that waits for it takes one voter after the other, and never the majority.
"""

from __future__ import annotations

from typing import Any

import click

from awsomefsd.cli.main import Command, Session
from awsomefsd.errors import Unavailable


@click.command(cls=Command)
@click.option("--ready", is_flag=True, help="Also: somebody leads the metadata and hears this node if it votes, and the keeper answers.")
@click.pass_obj
def probe(session: Session, ready: bool) -> None:
    """Exit 0 if this node's daemon answers, 1 if it does not.

    Without --ready it says nothing about the cluster: a daemon without a quorum answers too.
    """
    with session.client() as client:
        client.probe()
        missing = not_ready(client.call("GetStatus")) if ready else ""
    if missing:
        raise Unavailable(f"not ready: {missing}")


def not_ready(status: Any) -> str:
    """What this node lacks to do its work; "" for nothing."""
    if not status.node:
        return "; ".join(status.reasons) or "this node is in no cluster yet"
    if not status.metadata.leader:
        return "nobody is known to lead the metadata"
    own = next((one for one in status.metadata.members if one.node == status.node), None)
    if own is not None and not own.leader and not own.heard:
        return "the leader has not heard this voter yet"
    return "" if status.keeper else "the keeper does not answer"
