"""awsomefsd join and leave: this machine becomes a node of a cluster, and stops being one."""

from __future__ import annotations

import time

import click

from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.output import output_option, print_json, say
from awsomefsd.cli.waiting import LongWork

PURGE_S = 60.0


@click.command(cls=CliCommand)
@click.argument("token", required=False)
@output_option
@click.pass_obj
def join(invocation: Invocation, token: str | None, form: str) -> None:
    """Make this machine a node of an existing cluster.

    TOKEN comes from `awsomefsd token create` on a node of the cluster.  "-" reads it from standard input.  Without TOKEN it is taken from
    AWSOMEFSD_TOKEN, AWSOMEFSD_TOKEN_FILE or the setting token.  Every user of this machine can see an argument while the command runs.
    A daemon that already runs here without a cluster goes on as this node, and is waited for; otherwise start keeper and daemon afterwards.
    """
    from awsomefsd.cli.processes import new_node
    from awsomefsd.cluster.control import join as joining

    settings = invocation.settings
    waited = new_node.daemon_waits(settings)
    given = joining.read_token(token, settings)
    with LongWork("joining"):
        made = joining.join(settings, given)
    answers = waited and new_node.await_daemon(invocation, made.node)
    if form == "json":
        print_json({"cluster": made.cluster, "node": made.node, "role": made.role, "site": made.site, "state_dir": str(settings.state_dir)})
        return
    say(f"cluster {made.cluster}\nnode    {made.node}\nrole    {made.role}\nstate   {settings.state_dir}")
    new_node.tell_next(waited, answers)


@click.command(cls=CliCommand)
@click.option("--force", is_flag=True, help="Leave even if data or mounts on this node are lost.")
@click.option("--purge", is_flag=True, help="Delete the state of this node afterwards; its daemon ends, and the machine may join again.")
@click.option("--yes-destroy", metavar="CLUSTER", default="", help="The cluster's UUID: end the cluster with its last node.")
@click.pass_obj
def leave(invocation: Invocation, force: bool, purge: bool, yes_destroy: str) -> None:
    """Take this node out of its cluster.

    Unmount everything here first, and copy or delete the files whose data lies only on devices of this node.  Otherwise the command is
    refused with exit status 4, and the node goes on as before.  --purge deletes what this program made below the state directory; it is
    refused while data that could not be committed lies there (`awsomefsd status` names it), or while anything is mounted here.  With
    --force it deletes that data and ends the mounts first.

    The last node ends its cluster, and its volumes are lost.  That needs --purge and --yes-destroy with the cluster's UUID; the refusal of
    a plain --purge prints the whole command.  It is refused if another node joins meanwhile.  The devices keep what is on them.
    """
    with invocation.client() as client:
        ends = [mount.directory for mount in client.call("ListMounts").mounts] if purge and force else []
        left = list(client.call("Leave", force=force, purge=purge, destroy=yes_destroy).left)
    for directory in ends:
        say(f"unmounted {directory} by force; what was not durable there is lost")
    identity = invocation.settings.state_dir / "node.json"
    until = time.monotonic() + PURGE_S
    with LongWork("waiting for the daemon, which deletes its state"):
        while purge and identity.exists() and time.monotonic() < until:
            time.sleep(0.05)
    if not purge:
        say(
            "this node has left the cluster; stop its daemon.  Its state directory is kept but has no use any more: delete it when you like"
        )
    else:
        done = "the cluster has ended" if yes_destroy else "this node has left the cluster"
        say(f"{done}, and its state here is deleted" if not identity.exists() else f"{done}; the daemon still ends")
        if left:
            say(f"kept in {invocation.settings.state_dir}: {', '.join(left)}")
        if invocation.settings.token.get_secret_value():
            say("the settings have a token: a daemon that starts here joins with it again; remove it, or stop the service")
