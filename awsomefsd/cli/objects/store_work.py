"""awsomefsd store-work: do what the daemon asks at a store, in a process of its own (tier/store_work.py)."""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import click

from awsomefsd.cli.main import CliCommand


@click.command(name="store-work", cls=CliCommand, hidden=True)
def store_work() -> None:
    """Do a job at a store; the daemon runs this.  The job comes by standard input.

    SIGTERM ends it, and what a check has put is removed first; a second one changes nothing.
    """
    from awsomefsd.tier import store_work as work

    signal.signal(signal.SIGTERM, _ended)
    work.run(sys.stdin.buffer.read(), _tell)


def _ended(*_: object) -> None:
    """Ends the work once: the daemon signals when its caller is gone, and again when it gives the work up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
