"""awsomefsd events: who did what to the cluster, as an audit log that follows the change stream.

Every event is one entry of the log, so events have the same order on every node, and none is missing or told twice.  Names, data and leases
of files are no events; `awsomefsd log follow` prints them too.
"""

from __future__ import annotations

import json
import time

import click

from awsomefsd.admin.events import EVENTS, EventNames, event_of
from awsomefsd.base.log import printable
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import GivenName, say


@click.command(cls=CliCommand)
@click.option(
    "--from", "after", type=click.IntRange(0, 2**63 - 1), default=0, help="Begin after this index [the oldest entry that is kept]."
)
@click.option("--reader", type=GivenName(), help="Name of this reader.  It continues next time where it stopped; the log is kept for it.")
@click.option("--no-wait", is_flag=True, help="Exit after the newest event.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(sorted({kind for kind, _ in EVENTS.values()})), help="Only these kinds.")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format: lines for people, JSON objects for programs.",
)
@click.pass_obj
def events(invocation: Invocation, after: int, reader: str | None, no_wait: bool, kinds: tuple[str, ...], form: str) -> None:
    """Print who did what to the cluster, in order, and wait for more.

    Nodes that join, change or leave, voters, devices, volumes, tokens, mounts, sessions that are fenced, and quarantine.  What is asked for
    is told when it is in the log, also if a rule refused it then.  Without --reader only what the log still has is told.
    """
    with invocation.client() as client:
        names = EventNames(client)
        for change in client.follow(after=after, follow=not no_wait, reader=reader or ""):
            event = event_of(change, names)
            if event is None or (kinds and event["kind"] not in kinds):
                continue
            if form == "json":
                click.echo(json.dumps(event, ensure_ascii=False))
            else:
                stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time_ns"] / 1e9))
                say(printable(f"{event['index']:>8}  {stamp}  {event['kind']:<10}  {event['who']}: {event['what']}"), indent=12)
