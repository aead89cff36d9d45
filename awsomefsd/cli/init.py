"""awsomefsd init: make the identity of the first node of a cluster."""

from __future__ import annotations

import click

from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import output_option, print_json, say


@click.command(cls=CliCommand)
@click.option("--site", type=click.IntRange(0, 255), help="Number of this site, stamped into every change [setting: site].")
@output_option
@click.pass_obj
def init(invocation: Invocation, site: int | None, form: str) -> None:
    """Make this machine the first node of a new cluster.

    Writes the identity of the node to STATE_DIR/node.json, and the certificate authority of the cluster and the certificate of this node
    to STATE_DIR/pki.  A directory that already has an identity is refused.  A daemon that already runs here without a cluster goes on as
    this node, and is waited for; otherwise start `awsomefsd keeper` and `awsomefsd run`, or the services of the package.
    """
    from awsomefsd.base import identity
    from awsomefsd.cli.processes import new_node
    from awsomefsd.cluster.pki.pki_files import PkiFiles

    settings = invocation.settings
    waited = new_node.daemon_waits(settings)
    files = PkiFiles(settings.state_dir)
    made = identity.init(
        settings.state_dir, settings.site if site is None else site, prepare=lambda made: files.found(made.cluster, made.node)
    )
    answers = waited and new_node.await_daemon(invocation, made.node)
    if form == "json":
        print_json({"cluster": made.cluster, "node": made.node, "site": made.site, "state_dir": str(settings.state_dir)})
        return
    say(f"cluster {made.cluster}\nnode    {made.node}\nstate   {settings.state_dir}")
    new_node.tell_next(waited, answers)
