"""A supervisor for tests, with children of the test's making: RUN-DIR STATE-DIR LOG_BYTES_MAX, then NAME=SHELL-COMMAND for each child."""

from __future__ import annotations

import sys
from pathlib import Path

from awsomefsd.base import log
from awsomefsd.keeper import supervisor

if __name__ == "__main__":
    log.setup("supervisor")
    directory = Path(sys.argv[1])
    supervisor.LOG_BYTES_MAX = int(sys.argv[3])
    supervisor.LOG_LOOK_S = 0.05
    pairs = [word.partition("=") for word in sys.argv[4:]]
    children = [supervisor.Child(name, ["sh", "-c", text], directory / f"{name}.log") for name, _, text in pairs]
    sys.exit(supervisor.supervise(directory, Path(sys.argv[2]), children))
