"""awsomefsd init: the identity of the first node."""

from __future__ import annotations

import click

from awsomefsd.cli.main import Command, Session
from awsomefsd.cli.output import output_option, print_json


@click.command(cls=Command)
@click.option("--site", type=click.IntRange(0, 255), help="Number of this site; stamped into every change [configuration: site].")
@output_option
@click.pass_obj
def init(session: Session, site: int | None, form: str) -> None:
    """Make this machine the first node of a new cluster.

    Writes STATE_DIR/node.json, once: a second init of the same directory is an error.  Makes the cluster's certificate authority and this
    node's certificate too (STATE_DIR/pki).
    """
    from awsomefsd import node
    from awsomefsd.cluster.pki_files import PkiFiles

    settings = session.settings
    files = PkiFiles(settings.state_dir)
    made = node.init(
        settings.state_dir, settings.site if site is None else site, prepare=lambda made: files.found(made.cluster, made.node)
    )
    if form == "json":
        print_json({"cluster": made.cluster, "node": made.node, "site": made.site, "state_dir": str(settings.state_dir)})
        return
    click.echo(f"cluster {made.cluster}\nnode    {made.node}\nstate   {settings.state_dir}\nnext    awsomefsd keeper & awsomefsd run &")
