"""awsomefsd kubernetes: what runs in pods beside the nodes' own."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

import click

from awsomefsd.base.errors import Error
from awsomefsd.cli.main import CliGroup, Invocation
from awsomefsd.cli.token import seconds

TTL_S_MIN = 600  # a pod may take minutes to start: kubelet fetches the image first
USES_MAX = 1 << 31
OFF = "off"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
logger = logging.getLogger(__name__)


@click.group(cls=CliGroup)
def kubernetes() -> None:
    """Run what a cluster in Kubernetes needs beside the pods of its nodes.  The chart does it."""


@kubernetes.command(name="keep-nodes")
@click.option("--secret", required=True, metavar="NAME", help="The Secret that gets the join token, in the namespace of this pod.")
@click.option(
    "--role", type=click.Choice(["node", "client"]), default="node", show_default=True, help="The role of the machines that join with it."
)
@click.option(
    "--ttl", default="24h", show_default=True, help="How long a token is valid: a number with s, m, h or d.  It is renewed at half."
)
@click.option(
    "--uses", type=click.IntRange(0, USES_MAX), default=32, show_default=True,
    help="How many machines may join with one token; it is renewed at half.  0: no limit.",
)  # fmt: skip
@click.option(
    "--remove-after", default=OFF, show_default=True, metavar="TIME",
    help="Remove a node whose Kubernetes node has been gone for so long: a number with s, m, h or d, or off.",
)  # fmt: skip
@click.option(
    "--account", type=click.Path(path_type=Path), default=ACCOUNT, show_default=True, metavar="DIR",
    help="Directory of the service account.",
)  # fmt: skip
@click.option("--every", default="20s", show_default=True, help="Time between two looks.")
@click.pass_obj
def keep_nodes(
    invocation: Invocation, secret: str, role: str, ttl: str, uses: int, remove_after: str, account: Path, every: str
) -> None:
    """Renew the join token of a Secret, and remove nodes that are gone from Kubernetes.

    It runs until SIGTERM, in a pod on a node of role node.  It asks the daemon of that node through its admin socket, and the API server
    with the pod's service account.  NODE_NAME in the environment names that node.  Several may run at once.
    """
    from awsomefsd.base import log
    from awsomefsd.kubernetes.api_server import ApiServer, in_cluster
    from awsomefsd.kubernetes.join_secret import Wanted
    from awsomefsd.kubernetes.node_keeper import NodeKeeper, Orders

    settings, ttl_s, pause_s = invocation.settings, seconds(ttl), seconds(every, "--every")
    if ttl_s < TTL_S_MIN:
        raise click.UsageError(f"--ttl: {ttl} is too short for a pod to start in it; write 10m or more")
    own_node = os.environ.get("NODE_NAME", "")
    remove_s = 0 if remove_after == OFF else seconds(remove_after, "--remove-after")
    if remove_s and not own_node:
        raise click.UsageError("--remove-after needs NODE_NAME in the environment: the name of the Kubernetes node of this pod")
    log.setup("kubernetes", settings.log.level, settings.log.format)
    server = ApiServer(in_cluster(os.environ, account))
    keeper = NodeKeeper(Orders(server.namespace(), secret, Wanted(role, ttl_s, uses), remove_s, own_node), server, time.time_ns)
    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())  # as process 1 of a container it would be ignored
    last = ""
    while not ends.is_set():
        said = ""
        try:
            with invocation.client() as client:
                keeper.look(client)
        except Error as err:
            said = str(err)
        if said != last:
            logger.warning("it is tried again: %s", said) if said else logger.info("all is looked after again")
        last = said
        ends.wait(pause_s)
