"""A supervisor for tests, with children of the test's making: RUN-DIR STATE-DIR LOG_BYTES_MAX, then NAME=SHELL-COMMAND for each child.

NAME@FILE=SHELL-COMMAND is a child that is needed while FILE is in RUN-DIR.
"""

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
    supervisor.NEED_LOOK_S = 0.05
    children = []
    for word in sys.argv[4:]:
        words, _, text = word.partition("=")
        name, _, file = words.partition("@")
        needed = directory / file if file else None
        children.append(supervisor.Child(name, ["sh", "-c", text], directory / f"{name}.log", needed))
    sys.exit(supervisor.supervise(directory, Path(sys.argv[2]), children))
