"""awsomefsd run: run the node daemon in the foreground."""

from __future__ import annotations

import os
import sys
import time

import click

from awsomefsd.cli.main import CliCommand, Invocation


@click.command(cls=CliCommand)
@click.pass_obj
def run(invocation: Invocation) -> None:
    """Run the node daemon in the foreground.

    The daemon serves the metadata, the admin API and the mounts of this node; it needs a running keeper to mount (`awsomefsd keeper`).
    SIGTERM stops it.  Mounts stay: requests that need the daemon wait until it runs again.
    """
    from awsomefsd.base import log, program
    from awsomefsd.keeper.mount_holder import MountHolder

    program.hide_token()
    settings = invocation.settings
    log.setup("daemon", settings.log.level, settings.log.format)
    began = time.monotonic()
    MountHolder(settings.run_dir).start()  # before the journal is replayed, which may take minutes; it ends with this process
    from awsomefsd.daemon import metadata_core

    first = metadata_core.begin(settings)  # it serves already; the rest is imported when mounts wait no longer
    from awsomefsd.daemon import daemon

    code = daemon.run(settings, first, began)
    # Everything is closed.  A call that still waits for the keeper has a thread that the interpreter would wait for, perhaps for minutes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
