"""awsomefsd join and leave: this machine becomes a node of a cluster, and stops being one."""

from __future__ import annotations

import time

import click

from awsomefsd.cli.main import Command, Session
from awsomefsd.cli.output import output_option, print_json

PURGE_S = 60.0


@click.command(cls=Command)
@click.argument("token", required=False)
@output_option
@click.pass_obj
def join(session: Session, token: str | None, form: str) -> None:
    """Make this machine a node of the cluster that TOKEN names (from `awsomefsd token create`).

    "-" reads it from standard input; without TOKEN it is AWSOMEFSD_TOKEN, AWSOMEFSD_TOKEN_FILE or the configuration key token.  As an
    argument it can be seen by everybody on this machine while the command runs.  A daemon that waits here goes on by itself.
    """
    from awsomefsd.cluster import join as joining

    settings = session.settings
    made = joining.join(settings, joining.read_token(token, settings))
    if form == "json":
        print_json({"cluster": made.cluster, "node": made.node, "role": made.role, "site": made.site, "state_dir": str(settings.state_dir)})
        return
    running = (settings.run_dir / "admin.sock").exists()
    click.echo(f"cluster {made.cluster}\nnode    {made.node}\nrole    {made.role}\nstate   {settings.state_dir}")
    if not running:
        click.echo("next    awsomefsd keeper & awsomefsd run &")


@click.command(cls=Command)
@click.option("--force", is_flag=True, help="Also if data or mounts on this node are lost.")
@click.option("--purge", is_flag=True, help="Delete this node's state afterwards; its daemon ends, and the machine may join again.")
@click.pass_obj
def leave(session: Session, force: bool, purge: bool) -> None:
    """Take this node out of its cluster: nothing may be mounted here, and nothing lie on its devices alone (else exit status 4)."""
    with session.client() as client:
        client.call("Leave", force=force, purge=purge)
    identity = session.settings.state_dir / "node.json"
    until = time.monotonic() + PURGE_S
    while purge and identity.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if not purge:
        click.echo("this node has left the cluster; stop its daemon.  Its state is kept, and of no use any more: `rm -r` it when you like")
    else:
        click.echo(
            "this node has left the cluster, and its state is deleted"
            if not identity.exists()
            else "this node has left; its daemon still ends"
        )
