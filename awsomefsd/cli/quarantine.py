"""awsomefsd quarantine: list and release segments that late writes could still reach."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.base.errors import NotFound
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table, say, typed_again


@click.group(cls=CliGroup)
def quarantine() -> None:
    """List and release segments that late writes could still reach.

    When a worker is gone and nothing proves that none of its writes is still on the way to a device, its segments stay in quarantine: they
    are not used again until such a proof arrives, or until you confirm that no write can come any more.
    """


@quarantine.command()
@output_option
@click.pass_obj
def ls(invocation: Invocation, form: str) -> None:
    """List the sessions whose segments are in quarantine."""
    with invocation.client() as client:
        report = client.call("ListQuarantine")
    if form == "json":
        print_json(message_dict(report))
        return
    rows = [
        [
            one.session, one.node_name or one.node, one.volume or "(collection)", _since(one), one.segments, format_bytes(one.bytes),
            format_bytes(one.live_bytes),
        ]
        for one in report.sessions
    ]  # fmt: skip
    columns = ["SESSION", "NODE", "VOLUME", "SINCE", "SEGMENTS", "SIZE", "LIVE"]
    print_table(columns, rows, right=("SEGMENTS", "SIZE", "LIVE"), empty="nothing is in quarantine")


def _since(one: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.ended_ms / 1_000)) if one.ended_ms else "-"


@quarantine.command()
@click.argument("number", metavar="SESSION", type=int)
@click.option("--reason", required=True, help="Why that session cannot write any more; stored in the log.")
@click.option("--confirm", metavar="NODE", default="", help="For scripts: the name of the node, instead of the question.")
@output_option
@click.pass_obj
def release(invocation: Invocation, number: int, reason: str, confirm: str, form: str) -> None:
    """Release the quarantined segments of SESSION.

    Do this only if the machine of the session is off, was rebooted, or has lost its access to the device for good.  A write that arrives
    later destroys data that others have stored there since; that data then reads as an I/O error.
    """
    with invocation.client() as client:
        if not confirm:
            sessions = client.call("ListQuarantine").sessions
            found = next((one for one in sessions if one.session == number), None)
            if found is None:
                raise NotFound(f"session {number} has nothing in quarantine; see `awsomefsd quarantine ls`")
            name = found.node_name or found.node
            click.echo(f"If a write of node {name} still arrives after this, it destroys data of others.", err=True)
            confirm = typed_again("the name of the node", "--confirm")
        done = client.call("ReleaseQuarantine", session=number, reason=reason, confirm=confirm)
    if form == "json":
        print_json(message_dict(done))
    else:
        say(f"{done.segments} segments of session {number} are released")
