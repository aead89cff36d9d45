"""awsomefsd supervise: becomes the supervisor (supervisor.py), with the settings as arguments."""

from __future__ import annotations

import os
from pathlib import Path

import click

from awsomefsd import program
from awsomefsd.cli.main import Command, Session


@click.command(cls=Command)
@click.option("--log-dir", type=click.Path(path_type=Path), help="Where daemon, keeper and workers write their logs [STATE_DIR/log].")
@click.pass_obj
def supervise(session: Session, log_dir: Path | None) -> None:
    """Keep keeper and daemon running (where no service manager does).

    One that ends is started again within a second.  SIGTERM ends both; mounts go on until they are unmounted.
    """
    program.hide_token()
    settings = session.settings
    words = ["--run-dir", str(settings.run_dir), "--state-dir", str(settings.state_dir)]
    words += ["--log-dir", str((log_dir or settings.state_dir / "log").absolute())]
    words += ["--log-level", settings.log.level, "--log-format", settings.log.format]
    if session.config_file is not None:
        words += ["--config", str(session.config_file)]
    argv = program.command("supervise", *words)
    os.execve(argv[0], argv, program.environment())
