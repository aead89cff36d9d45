"""The daemon's side of `awsomefsd store-work`: a job at a store runs in a child, which may be left at any time."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from awsomefsd.base import program
from awsomefsd.base.errors import ConfigError, Error, Refused, Unavailable
from awsomefsd.tier.store_work import Job, packed

JOB_S_MAX = 3_600
END_S = 20  # for what a check has put to be removed
KILLED_S = 1
_AGAIN = ("down", "slow")  # kinds of errors that pass

logger = logging.getLogger(__name__)
Leave = Callable[[Callable[[], object]], object]  # is given what ends the job before its time
Work = Generator[dict[str, Any], None, dict[str, Any]]


def run(job: Job, leave: Leave) -> Work:
    """Does a job: yields each finding, and returns what came out of it.  Blocks.  Whoever does not go on ends the child.

    Raises Unavailable where the store does not answer, ConfigError for options that cannot be, and Refused for all else.
    """
    with _started() as process:
        leave(process.terminate)
        overdue = threading.Timer(JOB_S_MAX, process.kill)
        overdue.daemon = True
        overdue.start()
        try:
            for line in _said(process, job):
                if "finding" in line:
                    yield line["finding"]
                elif "error" in line:
                    raise _error(line["error"]["kind"], line["error"]["words"])
                else:
                    return dict(line["done"])
        finally:
            overdue.cancel()
    raise Unavailable(f"the work at {job.url} was ended before it was done; try again")


@contextmanager
def _started() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        program.command("store-work"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
        env=program.environment(),
    )  # fmt: skip
    try:
        yield process
    finally:
        _end(process)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the child; one that hangs in a call which nothing interrupts is left behind, and reaped when it is gone."""
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(KILLED_S)
            logger.warning("work at a store did not end and was killed; a check may have left objects there")
        except subprocess.TimeoutExpired:
            logger.warning("work at a store hangs in the kernel and is left behind", extra={"pid": process.pid})


def _said(process: subprocess.Popen[bytes], job: Job) -> Iterator[dict[str, Any]]:
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):  # it has ended: there will be no line
        process.stdin.write(packed(job))
        process.stdin.close()
    for raw in process.stdout:
        with suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict):
                yield line


def _error(kind: str, words: str) -> Error:
    if kind in _AGAIN:
        return Unavailable(words)
    return ConfigError(words) if kind == "settings" else Refused(words)
