"""awsomefsd run: the node daemon in the foreground."""

from __future__ import annotations

import os
import sys
import time

import click

from awsomefsd.cli.main import Command, Session


@click.command(cls=Command)
@click.pass_obj
def run(session: Session) -> None:
    """Run the node daemon in the foreground.

    Stops on SIGTERM; mounts go on and wait for the next one.
    """
    from awsomefsd import log, program

    program.hide_token()
    settings = session.settings
    log.setup("daemon", settings.log.level, settings.log.format)
    began = time.monotonic()
    from awsomefsd import metadata_part

    first = metadata_part.begin(settings)  # serves; the rest is imported when mounts wait no longer
    from awsomefsd import daemon

    code = daemon.run(settings, first, began)
    # Everything is closed.  A call that still waits for the keeper sits on a thread that the interpreter would wait for, minutes maybe.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
