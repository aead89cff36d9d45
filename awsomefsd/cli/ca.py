"""awsomefsd ca: list and rotate the certificate authority of the cluster."""

from __future__ import annotations

import time

import click

from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.output import message_dict, output_option, print_json, print_table, say


@click.group(cls=CliGroup)
def ca() -> None:
    """List and rotate the certificate authority of the cluster."""


@ca.command()
@output_option
@click.pass_obj
def ls(invocation: Invocation, form: str) -> None:
    """List the authorities that nodes trust; the active one signs certificates."""
    with invocation.client() as client:
        found = client.call("ListCas").cas
    if form == "json":
        print_json([message_dict(row) for row in found])
        return
    rows = [[row.id, row.state, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.created_ms / 1_000))] for row in found]
    print_table(["SHA-256", "STATE", "MADE"], rows, empty="no certificate authorities")


@ca.command()
@output_option
@click.pass_obj
def rotate(invocation: Invocation, form: str) -> None:
    """Replace the certificate authority.

    Makes a new authority.  It signs as soon as all nodes trust it; the old one is removed when all nodes have renewed their certificates.
    This goes on in the background; `awsomefsd ca ls` shows the state.  Tokens made before end with the old authority.
    """
    with invocation.client() as client:
        made = client.call("RotateCa").id
    if form == "json":
        print_json({"id": made})
    else:
        say(f"authority {made} is trusted from now on; the rotation goes on by itself (awsomefsd ca ls)")
