"""awsomefsd quarantine ls|release."""

from __future__ import annotations

import time
from typing import Any

import click

from awsomefsd.cli.main import Group, Session
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table
from awsomefsd.errors import NotFound
from awsomefsd.sizes import format_bytes


@click.group(cls=Group)
def quarantine() -> None:
    """Segments that late writes of a worker that is gone could still reach, and the operator's word that none will come."""


@quarantine.command()
@output_option
@click.pass_obj
def ls(session: Session, form: str) -> None:
    """List sessions whose segments are in quarantine."""
    with session.client() as client:
        told = client.call("ListQuarantine")
    if form == "json":
        print_json(message_dict(told))
        return
    rows = [
        [
            one.session, one.node_name or one.node, one.volume or "(collection)", _since(one), one.segments, format_bytes(one.bytes),
            format_bytes(one.live_bytes),
        ]
        for one in told.sessions
    ]  # fmt: skip
    columns = ["SESSION", "NODE", "VOLUME", "SINCE", "SEGMENTS", "SIZE", "LIVE"]
    print_table(columns, rows, right=("SEGMENTS", "SIZE", "LIVE"), empty="nothing is in quarantine")


def _since(one: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.ended_ms / 1_000)) if one.ended_ms else "-"


@quarantine.command()
@click.argument("number", metavar="SESSION", type=int)
@click.option("--reason", required=True, help="Why nothing of that session can write any more; it is kept in the log.")
@click.option("--confirm", metavar="NODE", default="", help="For scripts: the name of the node instead of the question.")
@output_option
@click.pass_obj
def release(session: Session, number: int, reason: str, confirm: str, form: str) -> None:
    """Give segments of SESSION free on your word.

    Only if the machine is off, or was started anew, or its access to the device is cut for good: a write that comes later than this
    destroys what others have put there since, which then reads as an I/O error.
    """
    with session.client() as client:
        if not confirm:
            told = client.call("ListQuarantine").sessions
            found = next((one for one in told if one.session == number), None)
            if found is None:
                raise NotFound(f"session {number} has nothing in quarantine; see `awsomefsd quarantine ls`")
            name = found.node_name or found.node
            click.echo(f"If a write of node {name} still comes after this, it destroys data of others.", err=True)
            confirm = click.prompt("Type the name of the node to go on", default="", show_default=False, err=True)
        done = client.call("ReleaseQuarantine", session=number, reason=reason, confirm=confirm)
    if form == "json":
        print_json(message_dict(done))
    else:
        click.echo(f"{done.segments} segments of session {number} are released")
