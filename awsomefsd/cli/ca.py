"""awsomefsd ca ls|rotate: the cluster's certificate authority."""

from __future__ import annotations

import time

import click

from awsomefsd.cli.main import Group, Session
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table


@click.group(cls=Group)
def ca() -> None:
    """List and rotate the certificate authority."""


@ca.command()
@output_option
@click.pass_obj
def ls(session: Session, form: str) -> None:
    """List the authorities that nodes trust; the active one signs."""
    with session.client() as client:
        found = client.call("ListCas").cas
    if form == "json":
        print_json([message_dict(row) for row in found])
        return
    rows = [[row.id, row.state, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created_ms / 1_000))] for row in found]
    print_table(["SHA-256", "STATE", "MADE"], rows, empty="no certificate authorities")


@ca.command()
@output_option
@click.pass_obj
def rotate(session: Session, form: str) -> None:
    """Make a new authority.  When all nodes trust it, it signs; when all have renewed, the old one goes.  Tokens made before then end."""
    with session.client() as client:
        made = client.call("RotateCa").id
    if form == "json":
        print_json({"id": made})
    else:
        click.echo(f"authority {made} is trusted from now on; the rotation goes on by itself (awsomefsd ca ls)")
