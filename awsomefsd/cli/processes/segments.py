"""awsomefsd segments: exec the segment server of this node, a process that knows neither click nor the configuration file.

The settings and the identity of the node are read here and handed over in a descriptor.
"""

from __future__ import annotations

import os

import click

from awsomefsd.base import identity, program
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.config.settings import Settings, parse_endpoint
from awsomefsd.daemon.worker_config import certificates, places
from awsomefsd.meta.client.endpoints import ENDPOINTS_NAME
from awsomefsd.segments.config import SegmentsConfig, hand_over


@click.command(cls=CliCommand, hidden=True)
@click.pass_obj
def segments(invocation: Invocation) -> None:
    """Serve this node's devices of pools to the other nodes.

    SIGTERM ends it.  It may be ended and started at any time: what others write there at that moment goes on in other segments.
    """
    settings = invocation.settings
    fd = hand_over(segments_config(settings, identity.load(settings.state_dir)))
    argv = program.command("segments", "--config-fd", str(fd))
    os.execve(argv[0], argv, program.environment())


def segments_config(settings: Settings, node: identity.Node) -> SegmentsConfig:
    """Returns the configuration of this node's segment server."""
    return SegmentsConfig(
        cluster=node.cluster, node=node.node, role=node.role,
        state_dir=str(settings.state_dir), run_dir=str(settings.run_dir), meta_sock=str(settings.meta_socket),
        endpoints=str(settings.state_dir / ENDPOINTS_NAME), places=places(settings), tls=certificates(settings),
        listen=parse_endpoint(settings.segments.listen) if settings.segments.listen else None, advertise=settings.cluster.advertise,
        log_level=settings.log.level, log_format=settings.log.format,
    )  # fmt: skip
