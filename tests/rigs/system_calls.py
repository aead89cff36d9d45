"""Counts of the system calls of running processes, by strace.

Counts hold on a busy machine as on an idle one, so they are what tests of speed assert.  Times do not: strace makes each call many times
as slow.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAIT_S = 60.0
_ROW = re.compile(r"^\s*(\d+)\s+(\w+)$")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="counts of system calls need strace")


@contextmanager
def counted(pid: int, directory: Path) -> Iterator[Counter[str]]:
    """Counts the calls of all threads of a process, by name, from the moment the block begins; filled when the block has ended."""
    counts: Counter[str] = Counter()
    table = directory / f"calls-{pid}"
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(table), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        try:
            line = strace.stderr.readline()
            assert "attached" in line, line
            yield counts
        finally:
            strace.send_signal(signal.SIGINT)
            strace.communicate(timeout=WAIT_S)
    for row in table.read_text().splitlines():
        found = _ROW.match(row)
        if found is not None and found[2] != "total":
            counts[found[2]] += int(found[1])
