"""awsomefsd run: the node daemon in the foreground."""

from __future__ import annotations

import click

from awsomefsd.cli.main import Command, Session


@click.command(cls=Command)
@click.pass_obj
def run(session: Session) -> int:
    """Run the node daemon in the foreground.

    Stops on SIGTERM; mounts go on and wait for the next one.
    """
    from awsomefsd import log

    settings = session.settings
    log.setup("daemon", settings.log.level, settings.log.format)
    from awsomefsd import daemon

    return daemon.run(settings)
