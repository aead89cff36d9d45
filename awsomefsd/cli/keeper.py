"""awsomefsd keeper: becomes the keeper, which knows neither click nor the configuration file.

The settings are looked up here and given as arguments to the same program by exec: the keeper stays a standard-library process.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import click

from awsomefsd import program
from awsomefsd.cli.main import Command, Session
from awsomefsd.errors import FsError

BUSY_S_MAX = 30.0
BUSY_PAUSE_S = 0.2


@click.command(cls=Command)
@click.option("--log-dir", type=click.Path(path_type=Path), help="Where workers write their logs [RUN_DIR/log].")
@click.option("--upgrade", is_flag=True, help="Instead: have the running keeper become the installed program.")
@click.pass_obj
def keeper(session: Session, log_dir: Path | None, upgrade: bool) -> None:
    """Run the keeper, which holds the mounts of this host.

    It survives the daemon and the workers, starts workers again, and hands its mounts to its successor.
    """
    settings = session.settings
    if upgrade:
        _upgrade(settings.run_dir)
        return
    words = ["--run-dir", str(settings.run_dir), "--log-level", settings.log.level, "--log-format", settings.log.format]
    if log_dir is not None:
        words += ["--log-dir", str(log_dir.absolute())]
    argv = program.command("keeper", *words)
    os.execve(argv[0], argv, program.environment())


def _upgrade(run_dir: Path) -> None:
    """By exec: the process, its descriptors and its workers stay.  A keeper that mounts or unmounts something says so; wait for that."""
    from awsomefsd.fuse.keeper_client import KeeperClient

    client, deadline = KeeperClient(run_dir), time.monotonic() + BUSY_S_MAX
    while True:
        try:
            reply = client.upgrade()
        except FsError as err:
            if err.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(BUSY_PAUSE_S)
        else:
            click.echo(f"keeper pid {reply['pid']} is of version {reply['version']} now")
            return
