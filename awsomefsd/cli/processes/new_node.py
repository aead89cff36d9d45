"""`init` and `join` where a daemon waits for them: what is typed next finds it as a node of the cluster."""

from __future__ import annotations

import time

from awsomefsd.base import sockets
from awsomefsd.base.errors import Error
from awsomefsd.cli.main import Invocation
from awsomefsd.cli.output import say
from awsomefsd.cli.waiting import LongWork
from awsomefsd.config.settings import Settings

CONNECT_S = 1.0
GOES_ON_S = 30.0
LOOK_S = 0.1
START = "next    awsomefsd keeper & awsomefsd run &"


def daemon_waits(settings: Settings) -> bool:
    """Returns whether a daemon runs here; to be asked before this machine is a node, so that it can only be one that waits for that."""
    try:
        sockets.connect_unix(settings.admin_socket, CONNECT_S).close()
    except OSError:
        return False
    return True


def await_daemon(invocation: Invocation, node: str) -> bool:
    """Blocks until the daemon that waited answers as this node; returns False if it does not within GOES_ON_S.

    It closes its socket meanwhile: without this wait the next command of a script said that no daemon runs.
    """
    deadline = time.monotonic() + GOES_ON_S
    with LongWork("waiting for the daemon, which goes on as this node"):
        while time.monotonic() < deadline:
            try:
                with invocation.client() as client:
                    if client.call("GetStatus").node == node:
                        return True
            except Error:  # it waits still, or is between the two
                pass
            time.sleep(LOOK_S)
    return False


def tell_next(waited: bool, answers: bool) -> None:
    """Says what to start, or that the daemon is slow; nothing where it goes on."""
    if not waited:
        say(START)
    elif not answers:
        say(f"the daemon that waited here does not answer as this node within {GOES_ON_S:.0f} s; look at its log")
