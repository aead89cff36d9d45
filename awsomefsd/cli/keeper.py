"""awsomefsd keeper: becomes the keeper, which knows neither click nor the configuration file.

The settings are looked up here and given as arguments to the same program by exec: the keeper stays a standard-library process.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from awsomefsd import program
from awsomefsd.cli.main import Command, Session


@click.command(cls=Command)
@click.option("--log-dir", type=click.Path(path_type=Path), help="Where workers write their logs [RUN_DIR/log].")
@click.pass_obj
def keeper(session: Session, log_dir: Path | None) -> None:
    """Run the keeper, which holds the mounts of this host.

    It survives the daemon and the workers, starts workers again, and hands its mounts to its successor.
    """
    settings = session.settings
    words = ["--run-dir", str(settings.run_dir), "--log-level", settings.log.level, "--log-format", settings.log.format]
    if log_dir is not None:
        words += ["--log-dir", str(log_dir.absolute())]
    argv = program.command("keeper", *words)
    os.execve(argv[0], argv, program.environment())
