"""awsomefsd supervise: exec the supervisor (keeper/supervisor.py) with the settings as arguments."""

from __future__ import annotations

import os
from pathlib import Path

import click

from awsomefsd.base import program
from awsomefsd.cli.main import CliCommand, Invocation


@click.command(cls=CliCommand)
@click.option("--log-dir", type=click.Path(path_type=Path), help="Directory for the logs of daemon, keeper and workers [STATE_DIR/log].")
@click.pass_obj
def supervise(invocation: Invocation, log_dir: Path | None) -> None:
    """Run keeper and daemon, and restart them when they end.

    For hosts without a service manager.  A process that ends is started again within a second.  SIGTERM ends both; mounts stay until they
    are unmounted.
    """
    program.hide_token()
    settings = invocation.settings
    words = ["--run-dir", str(settings.run_dir), "--state-dir", str(settings.state_dir)]
    words += ["--log-dir", str((log_dir or settings.state_dir / "log").absolute())]
    words += ["--log-level", settings.log.level, "--log-format", settings.log.format]
    if invocation.config_file is not None:
        words += ["--config", str(invocation.config_file)]
    argv = program.command("supervise", *words)
    os.execve(argv[0], argv, program.environment())
