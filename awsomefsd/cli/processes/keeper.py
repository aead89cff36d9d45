"""awsomefsd keeper: exec the keeper, a process that knows neither click nor the configuration file.

The settings are read here and passed as arguments to the same program by exec: the keeper stays a standard-library process.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import click

from awsomefsd.base import program
from awsomefsd.base.errors import FsError
from awsomefsd.cli.main import CliCommand, Invocation
from awsomefsd.cli.waiting import LongWork

BUSY_S_MAX = 30.0
BUSY_PAUSE_S = 0.2


@click.command(cls=CliCommand)
@click.option("--log-dir", type=click.Path(path_type=Path), help="Directory for the logs of the workers [RUN_DIR/log].")
@click.option("--upgrade", is_flag=True, help="Make the running keeper execute the newly installed program; this command then exits.")
@click.pass_obj
def keeper(invocation: Invocation, log_dir: Path | None, upgrade: bool) -> None:
    """Run the keeper, which keeps the mounts of this host alive.

    It holds the kernel's descriptors of every mount while daemon and workers are restarted or replaced, starts a worker again that ends,
    and hands its mounts to the keeper that is started after it.
    """
    settings = invocation.settings
    if upgrade:
        with LongWork("waiting for the keeper"):
            told = _upgrade(settings.run_dir)
        click.echo(told)
        return
    words = ["--run-dir", str(settings.run_dir), "--log-level", settings.log.level, "--log-format", settings.log.format]
    if log_dir is not None:
        words += ["--log-dir", str(log_dir.absolute())]
    argv = program.command("keeper", *words)
    os.execve(argv[0], argv, program.environment())


def _upgrade(run_dir: Path) -> str:
    """Makes the keeper exec the new program; process, descriptors and workers stay.  Waits while it is busy with a mount or an unmount.

    Returns what to say.
    """
    from awsomefsd.keeper.client import KeeperClient

    client, deadline = KeeperClient(run_dir), time.monotonic() + BUSY_S_MAX
    while True:
        try:
            reply = client.upgrade()
        except FsError as err:
            if err.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_S)
        else:
            return f"keeper pid {reply['pid']} is of version {reply['version']} now"
